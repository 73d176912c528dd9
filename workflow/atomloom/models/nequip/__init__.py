"""NequIP: the network, its tables, and its compiled passes on a CPU."""

from atomloom.models.nequip.network import NequIP

__all__ = ["NequIP"]
