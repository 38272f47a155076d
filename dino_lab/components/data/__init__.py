"""Data: labelled images from files, from other packages, or drawn."""
