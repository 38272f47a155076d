"""Trackers of experiments that a run's rows are sent to; none of them is part of a spec."""
