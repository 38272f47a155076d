"""The folder of a run: its files, its lock, how the run ended, and its networks opened again."""
