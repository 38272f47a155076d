"""Frozen networks, and what evaluators measure of them."""
