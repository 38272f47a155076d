"""Several runs with networks of equal shapes, trained as one stack."""
