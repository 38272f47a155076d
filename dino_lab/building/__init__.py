"""From a spec to its components."""
