"""Initialisation of batch norms from the statistics of their first batch.

By default, running statistics start from mean 0 and variance 1, and forget that by a factor
1 - momentum per step. Where true variances are small (1e-5 in the attention of ComFormer), a network
is evaluated with meaningless statistics for its first 200 steps or so, which is all of a short
training. Training itself does not depend on them. It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def statistics_of_this_batch(model: nn.Module) -> Iterator[None]:
    """Set running statistics to those of the single batch seen inside the block."""
    buffers: list[tuple[float, Tensor]] = []
    for module in model.modules():
        names = ("momentum", "running_mean", "running_var")
        momentum, mean, variance = (getattr(module, name, None) for name in names)
        if momentum and mean is not None and variance is not None:
            buffers += [(momentum, mean), (momentum, variance)]
    with torch.no_grad():
        for _, buffer in buffers:
            buffer.zero_()
    yield
    with torch.no_grad():
        for momentum, buffer in buffers:
            buffer /= momentum  # they have become momentum * (those of the batch)
