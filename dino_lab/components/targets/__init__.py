"""Targets: the teacher's outputs, centred, sharpened or normalised."""
