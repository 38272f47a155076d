"""Layers computed in a faster way: the same numbers up to rounding."""
