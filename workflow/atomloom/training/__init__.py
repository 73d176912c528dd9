"""Training: from labelled graphs and a config to a model file."""
