"""Backbones: images to features, patch tokens and attention."""
