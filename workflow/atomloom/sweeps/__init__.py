"""Sweeps: many runs that differ in some keys of the config, and the best of them."""
