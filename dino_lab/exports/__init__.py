"""A run's backbone in the formats that others read, each checked against the run before it is kept."""
