"""History of a run, and its loggers."""
