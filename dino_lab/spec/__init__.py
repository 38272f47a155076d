"""Specs: YAML files read, merged, checked and explained, and what identifies a run."""
