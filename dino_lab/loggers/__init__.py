"""Loggers: experiment trackers that get a run's rows; none of them is part of a spec."""
