"""The Chebyshev (aenet) potential: the network, and the compiled passes of its descriptor on a CPU."""

from atomloom.models.chebyshev.network import Chebyshev

__all__ = ["Chebyshev"]
