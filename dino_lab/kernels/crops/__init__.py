"""Crops of images made in few passes: on a CPU by Numba, on a GPU by Triton, anywhere else by torch."""
