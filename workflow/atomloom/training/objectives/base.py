"""What a training minimises: the loop asks an objective and knows neither targets nor losses.

An objective turns labelled data into what batches carry, a network's output into sums of its loss
terms, and validation into scores. There are two: numbers a structure (`PropertyObjective`), and
energies, forces and stress (`atomloom.training.objectives.potential`). Sums, not means: what a step divides by
are counts over the whole step, so that small batches, accumulated or shared among processes, have
the gradient of the one large batch. It knows nothing of the loop.

Legend: S structures, B structures of a batch, K targets, L terms of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from atomloom.config.root import Config
from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import Loader
from atomloom.errors import AtomloomError
from atomloom.inference.global_features import GLOBALS, GlobalFeatures
from atomloom.inference.predict import predict_batches
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.training.objectives.losses import loss_sum

Log = Callable[[str], None]


@dataclass(frozen=True)
class Scores:
    """Validation of one epoch; nan and () without validation rows."""

    loss: float
    """Mean loss over known standardised targets."""
    error: float
    """What is minimised: the mean over the targets of MAE / standard deviation; for classes and
    potentials the loss."""
    maes: tuple[float, ...]
    """Of each target in real units; for classes, of one less the true class's probability."""


@dataclass(frozen=True, eq=False)
class Carried:
    """What batches carry of the labels, in the network's units; see `Loader`."""

    targets: np.ndarray
    of_atoms: Mapping[str, np.ndarray] = field(default_factory=dict)
    of_structures: Mapping[str, np.ndarray] = field(default_factory=dict)
    with_edges: Callable[[int], np.ndarray] | None = None
    chances: Callable[[int], np.ndarray] | None = None


class Objective(Protocol):
    """What the loop asks."""

    names: tuple[str, ...]
    """What errors are reported of: one column of the history each."""
    units: tuple[str, ...]
    """Their units."""
    outputs: int
    """Numbers that the network is built to predict."""
    scale: TargetScaler | AtomicEnergies
    """From the network's units to real ones; goes into the model file."""
    given: GlobalFeatures | None
    """What the network is told of a structure besides its graph; goes there too."""

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Set what a new network must know of the training data, before the first step."""

    def carried(self, training: bool) -> Carried:
        """What batches shall carry, in training or in validation; called after `prepare`."""

    def step_network(self, model: nn.Module) -> nn.Module:
        """The module a training step calls with a batch, around (or being) the model."""

    def counts(self, loader: Loader, epoch: int) -> np.ndarray:
        """[batches, L] float64, how many numbers each term of each batch is a sum over, all ranks'
        parts together."""

    def begin(self, epoch: int, device: torch.device) -> None:
        """An epoch starts, or is gone on with."""

    def sums(self, output: Any, batch: GraphBatch) -> Tensor:
        """[L] sums of the loss terms over a batch."""

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt of the data in training, to be saved with a run's state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""

    def loss(self, sums: Tensor, shares: Tensor) -> Tensor:
        """What is differentiated: a scalar of sums [L] and one over their counts [L]."""

    def validate(
        self, forward: Callable[[GraphBatch], Tensor], loader: Loader, fabric: Fabric
    ) -> Scores:
        """Errors over the validation rows, of which each process's loader has its share."""


class PropertyObjective:
    """Numbers a structure: regression or classes. One term, the loss over all known targets."""

    def __init__(
        self, data: LabelledGraphs, config: Config, train_rows: np.ndarray, val_rows: np.ndarray
    ) -> None:
        """Args:
            data: graphs and targets.
            config: the whole config.
            train_rows: rows that are trained on; mean and deviation are theirs.
            val_rows: rows that are validated on, by all processes together.

        Raises:
            AtomloomError: when a target cannot be learnt.
        """
        self.settings: Training = config.training
        self.names = tuple(config.dataset.target)
        self.units = tuple(
            "" if self.settings.classes else config.dataset.unit_of(name) for name in self.names
        )
        self._real, self._val_rows = data.targets, val_rows
        self._atoms = np.diff(data.table.node_ptr)
        extensive = getattr(config.model, "readout", "mean") == "sum"
        if self.settings.loss == "cross_entropy":
            self.scale = TargetScaler.for_many_classes(data.targets, train_rows, self.names[0])
        elif self.settings.loss == "bce":
            self.scale = TargetScaler.for_classes(data.targets, train_rows, self.names)
        else:
            self.scale = TargetScaler.fit(
                data.targets,
                train_rows,
                self.names,
                self.settings.log_targets,
                self._atoms if extensive else None,
            )
        self.outputs = self.scale.outputs
        self._targets = self.scale.standardize(data.targets, self._atoms)
        self.given, self._given = None, {}
        if config.dataset.global_features:
            if data.globals is None:
                raise AtomloomError("the data set has none", where="dataset.global_features")
            rows = np.concatenate([train_rows, val_rows])
            self.given = GlobalFeatures.fit(
                data.globals, train_rows, config.dataset.global_features
            )
            if not np.isfinite(data.globals[rows]).all():
                raise AtomloomError(
                    "unknown for a validation structure", where="dataset.global_features"
                )
            self._given = {GLOBALS: self.given.standardize(data.globals)}

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Nothing: means and deviations are all."""

    def carried(self, training: bool) -> Carried:
        """Standardised targets."""
        return Carried(self._targets, of_structures=self._given)

    def step_network(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def counts(self, loader: Loader, epoch: int) -> np.ndarray:
        """[batches, 1] known targets."""
        return loader.known(epoch).astype(np.float64)[:, None]

    def begin(self, epoch: int, device: torch.device) -> None:
        """All epochs are alike."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def sums(self, output: Tensor, batch: GraphBatch) -> Tensor:
        """[1] the loss."""
        prediction = output.reshape(batch.size, self.outputs)
        prediction = prediction.to(batch.targets.dtype)  # losses are never taken in 16 bits
        return loss_sum(
            self.settings.loss, prediction, batch.targets, self.settings.huber_delta
        ).reshape(1)

    def loss(self, sums: Tensor, shares: Tensor) -> Tensor:
        """The mean."""
        return (sums * shares).sum()

    def validate(
        self, forward: Callable[[GraphBatch], Tensor], loader: Loader, fabric: Fabric
    ) -> Scores:
        """Compare standardised outputs with their targets."""
        rows = self._val_rows
        outputs = _gathered(predict_batches(forward, loader, self.outputs), len(rows), fabric)
        if not len(rows):
            return Scores(math.nan, math.nan, ())
        wanted = self._targets[rows]
        known = np.isfinite(wanted)
        loss = loss_sum(
            self.settings.loss,
            torch.from_numpy(outputs),
            torch.from_numpy(wanted),
            self.settings.huber_delta,
        )
        loss = float(loss) / int(known.sum())
        counts = known.sum(axis=0)
        restored = self.scale.restore(outputs, self._atoms[rows])
        if self.scale.class_count:
            classes = np.where(known, wanted, 0.0).astype(np.int64)
            differences = 1.0 - np.take_along_axis(restored, classes, axis=1)
            error = 0.0
        else:
            differences = np.abs(restored - self._real[rows])
            scaled = np.where(known, np.abs(outputs - wanted), 0.0).sum(axis=0)
            error = float((scaled[counts > 0] / counts[counts > 0]).mean())
        errors = np.where(known, differences, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            maes = tuple((errors / counts).tolist())
        return Scores(loss=loss, error=loss if self.scale.classes else error, maes=maes)


def step_shares(counts: np.ndarray, accumulate: int, ranks: int) -> np.ndarray:
    """[batches, L] what each batch's sums are multiplied by: one over the counts of its whole step.

    Processes' gradients are averaged, not added: hence their number.
    """
    starts = np.arange(0, len(counts), accumulate)
    totals = np.add.reduceat(counts, starts, axis=0) if len(counts) else counts
    per_batch = np.repeat(totals, np.diff([*starts, len(counts)]), axis=0)
    return ranks / np.maximum(per_batch, 1.0)


def _gathered(outputs: np.ndarray, rows: int, fabric: Fabric) -> np.ndarray:
    """[rows, K] outputs of all processes, of which each has a row in `world_size`, in turn."""
    if fabric.world_size == 1:
        return outputs
    whole = torch.zeros(rows, outputs.shape[1], dtype=torch.float64)
    whole[fabric.global_rank :: fabric.world_size] = torch.from_numpy(outputs)
    return fabric.all_reduce(whole.to(fabric.device), reduce_op="sum").cpu().numpy()
