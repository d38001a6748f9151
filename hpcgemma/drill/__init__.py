"""A drill: a real, tiny run that is warned, ended and killed on purpose, and a report of what became of it."""
