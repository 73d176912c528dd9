"""Neighbour graphs: search, building, storage."""
