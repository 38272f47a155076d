"""The command line: one file for each verb, which imports heavy packages only when it is called."""
