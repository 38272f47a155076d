"""The folder of a run: its files, lock, checkpoints and status; and its networks, opened again."""
