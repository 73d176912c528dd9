"""What a trained model needs to be used: its file, its scalers, devices, predictions and their errors."""
