"""PaiNN: the network, and its compiled passes on a CPU."""

from atomloom.models.painn.network import PaiNN

__all__ = ["PaiNN"]
