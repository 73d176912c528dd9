"""atomloom: atomic structures into neighbour graphs, graphs into models."""

__version__ = "0.1.0"
