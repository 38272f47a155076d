"""Exports: a run's backbone in other formats, each compared with the run before it is kept."""
