"""Many specs out of one file: planned as a whole, run side by side."""
