"""Schedules of the learning rate, as functions of the fraction of training done.

A schedule has no state and keeps its last value beyond its end, so it cannot rise again, and a
resumed run cannot differ; only the plateau rule has a state (`Plateau`). It knows nothing of
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from atomloom.config.training import Training

START = 1 / 25  # of the peak rate, where one-cycle and the warm-up of cosine start
END = 1 / 25e4  # of the peak rate, where one-cycle ends
MOMENTUM = (0.95, 0.85)  # one-cycle, at the lowest and at the peak rate


@dataclass
class Plateau:
    """Factor of the rate, reduced by `factor` when the validation error stops falling."""

    factor: float
    patience: int
    scale: float = 1.0
    best: float = math.inf
    epochs_without_improvement: int = 0

    def see(self, error: float) -> None:
        """Record the validation error of an epoch."""
        if error < self.best:
            self.best, self.epochs_without_improvement = error, 0
            return
        self.epochs_without_improvement += 1
        if self.epochs_without_improvement > self.patience:
            self.scale, self.epochs_without_improvement = self.scale * self.factor, 0

    def state_dict(self) -> dict[str, float]:
        """State to be saved."""
        return {"scale": self.scale, "best": self.best, "waited": self.epochs_without_improvement}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Load a `state_dict`."""
        self.scale, self.best = float(state["scale"]), float(state["best"])
        self.epochs_without_improvement = int(state["waited"])


@dataclass
class Schedule:
    """Learning rate and momentum of each optimiser step."""

    settings: Training
    plateau: Plateau = field(init=False)

    def __post_init__(self) -> None:
        self.plateau = Plateau(self.settings.plateau_factor, self.settings.plateau_patience)

    def lr(self, done: float) -> float:
        """Learning rate when the share `done` of all steps is done; constant from 1 on."""
        peak, kind, rise = (
            self.settings.learning_rate,
            self.settings.scheduler,
            self.settings.warmup,
        )
        done = min(max(done, 0.0), 1.0)
        if kind == "constant":
            return peak
        if kind == "plateau":
            return peak * self.plateau.scale
        if kind == "multistep":
            epoch = done * self.settings.epochs * (1.0 + 1e-12)  # a whole number at its first step
            passed = sum(epoch >= milestone for milestone in self.settings.milestones)
            return peak * self.settings.plateau_factor**passed
        if done < rise:
            if kind == "onecycle":
                return peak * _cosine(START, 1.0, done / rise)
            return peak * (START + (1.0 - START) * done / rise)
        fallen = (done - rise) / (1.0 - rise)
        return peak * _cosine(1.0, END if kind == "onecycle" else 0.0, fallen)

    def momentum(self, done: float) -> float | None:
        """Momentum when the share `done` of all steps is done; None if it is constant."""
        if self.settings.scheduler != "onecycle" or not self.settings.cycle_momentum:
            return None
        rise, done = self.settings.warmup, min(max(done, 0.0), 1.0)
        slow, fast = MOMENTUM
        if done < rise:
            return _cosine(slow, fast, done / rise)
        return _cosine(fast, slow, (done - rise) / (1.0 - rise))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
