"""A run on several processes: which of them this one is, how they start, and what they decide together."""
