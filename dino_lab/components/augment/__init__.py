"""Augmentations: images to crops, and which crops are compared."""
