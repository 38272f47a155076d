"""Heads and predictors: features to outputs."""
