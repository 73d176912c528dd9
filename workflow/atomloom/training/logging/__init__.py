"""The history of a run, and where it goes."""
