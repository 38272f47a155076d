"""Layers computed in a faster way, with the same numbers up to rounding."""
