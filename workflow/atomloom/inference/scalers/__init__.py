"""Scalers: from targets in real units to the numbers a network learns, and back."""
