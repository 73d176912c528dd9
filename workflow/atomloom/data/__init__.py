"""Data sets for training: splits, duplicates, batches, loaders."""
