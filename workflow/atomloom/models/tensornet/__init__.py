"""TensorNet: the network, and its compiled passes on a CPU."""

from atomloom.models.tensornet.network import TensorNet, TensorNetProperty

__all__ = ["TensorNet", "TensorNetProperty"]
