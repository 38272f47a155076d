"""Tables, pictures and estimates of runs that are compared."""
