"""Use of a trained model: its file, its scalers, devices, predictions and their errors."""
