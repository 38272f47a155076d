"""Evaluators: scores of a frozen network."""
