"""Reports: the HTML page of runs, and the tables and charts of compared runs."""
