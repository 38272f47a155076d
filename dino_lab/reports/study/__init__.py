"""Tables, charts and estimates of compared runs."""
