"""TrainState: everything a killed run needs to resume, as one object that is saved and loaded.

It holds the position of the run, and the parts with their own states (network, optimiser, scaler of
fp16, plateau rule, objective, moving average): anything else is neither saved nor restored. It knows
nothing of files (`atomloom.training.checkpoint`) or of the loop.

Legend: L terms of the loss.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from atomloom.training.distributed import full_state, load_optimizer, load_weights
from atomloom.training.logging.history import History
from atomloom.training.objectives.base import Objective
from atomloom.training.optim.ema import MovingAverage
from atomloom.training.optim.schedules import Plateau


def state_digest(state: Mapping[str, Any]) -> str:
    """Digest of a saved state without the times in it: equal for runs that are equal to the bit."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, {name: state[name] for name in state if name not in ("format", "key")})
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if not str(key).endswith("seconds"):
                digest.update(f"{key!r}:".encode())
                _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} in order:".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(f"{value!r};".encode())


@dataclass
class Best:
    """Best epoch so far."""

    error: float = math.inf
    """Validation error, see `Scores`."""
    epoch: int = 0
    """Number of the epoch, from 1; 0 before the first."""
    step: int = 0
    """Optimiser steps until its end."""
    maes: tuple[float, ...] = ()
    """Mean absolute error of each target, in real units."""
    weights: Mapping[str, Tensor] | None = None
    """Weights and buffers that were validated."""

    def state_dict(self) -> dict[str, Any]:
        """Fields, for a file."""
        return {**vars(self), "maes": list(self.maes)}


@dataclass(eq=False)
class TrainState:
    """Position of a run, and the parts whose states belong to it."""

    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer
    plateau: Plateau
    objective: Objective
    ema: MovingAverage | None
    history: History
    epoch: int = 0
    """Number of epochs done."""
    batch_idx: int = 0
    """Number of batches done in the current epoch."""
    step: int = 0
    """Number of optimiser steps done."""
    epochs_without_improvement: int = 0
    """Number of epochs since the best one."""
    seconds: float = 0.0
    """Time of training and validation, all calls together."""
    loss_sums: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    """[batches, L] float64 sums of the loss in the current epoch, over this process's parts of the batches."""
    best: Best = field(default_factory=Best)

    def state_dict(self) -> dict[str, Any]:
        """State for a file; to be called by all processes, each of which gets the same."""
        sums = self.loss_sums.clone()  # all_reduce works in place
        return {
            "epoch": self.epoch,
            "position": self.batch_idx,
            "step": self.step,
            "waited": self.epochs_without_improvement,
            "seconds": self.seconds,
            "errors": self.fabric.all_reduce(sums, reduce_op="sum"),
            "model": full_state(self.model.state_dict()),
            "optimizer": full_state(self.optimizer.state_dict()),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "plateau": self.plateau.state_dict(),
            "objective": self.objective.state_dict(),
            "best": self.best.state_dict(),
            "history": self.history.rows,
            "average": self.ema.state_dict() if self.ema else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`; to be called by all processes."""
        self.epoch, self.batch_idx, self.step = state["epoch"], state["position"], state["step"]
        self.epochs_without_improvement = state["waited"]
        self.seconds = state["seconds"]
        # The sums are those of all processes together: the first one continues them.
        first = self.fabric.global_rank == 0
        self.loss_sums = state["errors"] if first else torch.zeros_like(state["errors"])
        load_weights(self.model, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.plateau.load_state_dict(state["plateau"])
        self.objective.load_state_dict(state["objective"])
        self.best = Best(**state["best"])
        self.history.rows = list(state["history"])
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
