"""Sweeps: many specs from one file, planned as a whole and trained side by side."""
