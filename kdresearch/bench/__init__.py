"""A run as a value: what it is, apart from the command that starts it."""
