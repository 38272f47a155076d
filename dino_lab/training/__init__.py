"""Training: the loop of one run, its optimizer and diagnostics, and the trainer that keeps its folder."""
