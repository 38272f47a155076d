"""Several runs with networks of one shape, trained as one stack."""
