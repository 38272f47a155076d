"""Components of a spec: built, each from its own seed, and checked together."""
