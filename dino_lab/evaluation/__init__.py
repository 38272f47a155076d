"""Evaluation: the outputs of frozen networks, and their scores by evaluators."""
