"""Regularizers: penalties on the student's features or outputs alone."""
