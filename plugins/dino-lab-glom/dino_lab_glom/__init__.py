"""GLOM for dino-lab: a backbone of columns and levels, and an evaluator of its islands of agreement."""

__version__ = "0.1.0"
