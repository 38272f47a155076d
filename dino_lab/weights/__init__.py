"""Weights that lie in files: read without running anything, named as timm names them, put into a backbone."""
