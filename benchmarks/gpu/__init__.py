"""All that a machine with a GPU is asked, in one command: `python -m benchmarks.gpu --to FOLDER`."""
