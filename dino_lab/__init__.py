"""dino-lab: a declarative experiment runner for self-supervised vision."""

__version__ = "0.1.0"
