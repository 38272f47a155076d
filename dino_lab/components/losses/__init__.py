"""Losses: the distance between the outputs of the student and their targets."""
