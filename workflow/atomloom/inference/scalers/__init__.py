"""Scalers of targets between real units and the numbers that a network learns."""
