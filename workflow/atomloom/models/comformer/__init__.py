"""ComFormer: the networks, and how equal edges are computed once."""

from atomloom.models.comformer.network import EComFormer, EquivariantLayer, IComFormer

__all__ = ["EComFormer", "EquivariantLayer", "IComFormer"]
