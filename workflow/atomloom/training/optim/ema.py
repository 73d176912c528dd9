"""Exponential moving average of a network's weights and floating-point buffers.

The running statistics of batch norms are averaged with the weights they were seen with; counters
are copied. It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atomloom.training.distributed import full_state, load_weights, own_part


class MovingAverage:
    """average <- average + (1 - d) (weights - average), with d = min(decay, (1 + t) / (10 + t)).

    The smaller decay at the start (t is the number of the step) lets the first weights go quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        live = model.state_dict(keep_vars=True)
        self._names = list(live)
        self._live = [own_part(tensor.detach()) for tensor in live.values()]
        self._average = [tensor.clone() for tensor in self._live]
        self._float = [i for i, tensor in enumerate(self._live) if tensor.is_floating_point()]
        self._other = [i for i, tensor in enumerate(self._live) if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the current weights; `step` counts optimiser steps from 1."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(
            [self._average[i] for i in self._float], [self._live[i] for i in self._float], 1 - decay
        )
        for i in self._other:
            self._average[i].copy_(self._live[i])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        kept = [tensor.clone() for tensor in self._live]
        self._copy(self._average, self._live)
        try:
            yield
        finally:
            self._copy(kept, self._live)

    def buffers(self) -> list[Tensor]:
        """Averages of the model's buffers, without copying."""
        buffers = {name for name, _ in self._model.named_buffers()}
        averages = zip(self._names, self._average, strict=True)
        return [average for name, average in averages if name in buffers]

    def state_dict(self) -> dict[str, Tensor]:
        """Full averages by the names of the model's state dict; to be called by all processes."""
        with self.applied():
            averages = full_state(self._model.state_dict())
            return {name: tensor.clone() for name, tensor in averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict`; to be called by all processes."""
        with self.applied():
            load_weights(self._model, state)
            self._copy(self._live, self._average)

    @torch.no_grad()
    def _copy(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
