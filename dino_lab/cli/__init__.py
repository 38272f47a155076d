"""The command line. Everything heavy is imported inside the verb that needs it."""
