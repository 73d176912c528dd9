"""Objectives of training: the loop asks an objective and knows neither targets nor losses.

An objective turns labelled data into the labels of batches, a network's output into sums of its loss
terms, and validation into scores. It is a list of terms, one per target (all scalars share one). Sums, not
means: a step divides by counts over the whole step, so that small batches, accumulated or shared
among processes, have the gradient of the one large batch. It knows nothing of the loop.

Legend: S structures, A atoms, B structures and N atoms of a batch, K targets, L terms of the loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from atomloom.config.root import Config
from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import Loader
from atomloom.inference.global_features import GlobalFeatures
from atomloom.inference.model_file import ModelCard
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.scalers.direct_scaler import DirectScaler
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models.common.outputs import Head
from atomloom.training.distributed import summed
from atomloom.training.objectives.losses import loss_sum

Log = Callable[[str], None]
Forward = Callable[[GraphBatch], Any]


@dataclass(frozen=True)
class Scores:
    """Validation of one epoch; nan and () without validation rows."""

    loss: float
    """Mean loss over known standardised targets."""
    error: float
    """Minimised error: the mean over the targets of MAE / standard deviation; for classes and
    potentials the loss."""
    maes: tuple[float, ...]
    """MAE of each target in real units; for classes, of one minus the true class's probability."""


@dataclass(frozen=True, eq=False)
class BatchLabels:
    """Labels that batches carry, in the network's units; see `Loader`."""

    targets: np.ndarray
    of_atoms: Mapping[str, np.ndarray] = field(default_factory=dict)
    of_structures: Mapping[str, np.ndarray] = field(default_factory=dict)
    with_edges: Callable[[int], np.ndarray] | None = None
    sampling_weights: Callable[[int], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class TermScores:
    """Validation of one term."""

    mean: float
    """Mean of the loss over known targets."""
    maes: tuple[float, ...]
    """MAE of each of its targets in real units."""
    relative: tuple[tuple[float, float], ...] = ()
    """MAE in standard deviations and weight of each of its known targets."""


class Term(ABC):
    """Term of the loss: one target, or all scalars."""

    names: tuple[str, ...]
    """Names under which errors are reported."""
    units: tuple[str, ...]
    """Units of these errors."""
    weight: float = 1.0
    """Weight of its mean in the loss."""
    head: tuple[Head, DirectScaler] | None = None
    """Head that it needs in the network, with the scaler of its numbers."""
    doubt: str = ""
    """Warning for the log on values that may be meaningless; empty without."""
    drawn = False
    """Whether it counts only for the structures drawn by `training.potential.force_fraction`."""

    @abstractmethod
    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Values that batches carry for it besides the scalars, of atoms [A, D] and of structures [S, D]."""

    @abstractmethod
    def known(self) -> np.ndarray:
        """[S] float64, number of known numbers of each structure."""

    @abstractmethod
    def sum(self, output: Any, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """Sum of the loss over a batch, a scalar.

        Args:
            output: of the network, as called by the objective.
            batch: with labels.
            used: [S] bool, the structures that count for a term that is `drawn`; by default all.
        """

    @abstractmethod
    def validation(self, device: torch.device) -> Tally:
        """Tally of its errors over the validation rows."""


class Tally(ABC):
    """Errors of one term, accumulated batch by batch."""

    @abstractmethod
    def add(self, output: Any, batch: GraphBatch) -> None:
        """Add a batch."""

    @abstractmethod
    def scores(self, rows: np.ndarray, fabric: Fabric) -> TermScores | None:
        """Scores of all processes' batches together; None without rows. `rows` are all validation rows."""


class Objective(ABC):
    """Interface of an objective to the loop."""

    outputs: int
    """Number of outputs of the network."""
    scaler: TargetScaler | AtomicEnergies | None
    """Scaler from the network's units to real ones, stored in the model file."""
    global_features: GlobalFeatures | None = None
    """Inputs of the network besides the graph, stored there too."""

    def __init__(self, settings: Training, terms: Sequence[Term], val_rows: np.ndarray) -> None:
        self.settings, self.terms = settings, tuple(terms)
        heads = [term.head for term in self.terms if term.head is not None]
        self.heads = tuple(head for head, _ in heads)
        """Heads that the network needs."""
        self.head_scalers = {head.name: scaler for head, scaler in heads}
        """Scalers of the targets with their own heads, by name."""
        self._val_rows = val_rows
        self._weights = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which errors are reported, one column of the history each."""
        return tuple(name for term in self.terms for name in term.names)

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the errors."""
        return tuple(unit for term in self.terms for unit in term.units)

    @property
    def model_options(self) -> dict[str, Any]:
        """Arguments of the network besides its config and `outputs`."""
        options: dict[str, Any] = {}
        if self.global_features is not None:
            options["global_features"] = len(self.global_features.names)
        return options | {"heads": self.heads} if self.heads else options

    def card(
        self, config: Config, facts: Mapping[str, Any], elements: tuple[str, ...]
    ) -> ModelCard:
        """Card of the network for a model file.

        Args:
            config: the whole config.
            facts: origin of the weights.
            elements: those of the training structures.
        """
        return ModelCard.of(
            config, self.scaler, facts, self.global_features, elements, self.head_scalers
        )

    # --- before the first step ---

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Set the parts of a new network that depend on the training data, before the first step."""
        for doubt in (doubt for term in self.terms if (doubt := term.doubt)):
            log(f"warning: {doubt}")

    @abstractmethod
    def labels(self, training: bool) -> BatchLabels:
        """Labels for batches, in training or in validation; called after `prepare`."""

    def step_network(self, model: nn.Module) -> nn.Module:
        """Module that a training step calls with a batch: the model, or a wrapper of it."""
        return model

    def _extras(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        of_atoms: dict[str, np.ndarray] = {}
        of_structures: dict[str, np.ndarray] = {}
        for term in self.terms:
            atoms, structures = term.extras()
            of_atoms.update(atoms)
            of_structures.update(structures)
        return of_atoms, of_structures

    # --- the step ---

    def counts(self, loader: Loader, epoch: int) -> np.ndarray:
        """[batches, L] float64 counts of numbers in the sum of each term of each batch, all ranks' parts
        together."""
        plan = loader.plan(epoch)
        columns = [plan.sums(term.known()) * self._share(term, epoch) for term in self.terms]
        return np.stack(columns, axis=1)

    def _share(self, term: Term, epoch: int) -> float:
        """Share of the known numbers that count."""
        return 1.0

    def begin(self, epoch: int, device: torch.device) -> None:
        """Start or resume an epoch."""
        self._weights = self._weights.to(device)

    def sums(self, output: Any, batch: GraphBatch) -> Tensor:
        """[L] sums of the loss terms over a batch."""
        return torch.stack([term.sum(output, batch) for term in self.terms])

    def loss(self, sums: Tensor, shares: Tensor) -> Tensor:
        """Scalar loss, from sums [L] and one over their counts [L]: the weighted sum of the terms' means, or
        of their roots."""
        means = sums * shares
        if self.settings.loss == "rmse":
            means = torch.sqrt(means + torch.finfo(means.dtype).eps)
        return (means * self._weights.to(means)).sum()

    def state_dict(self) -> dict[str, Any]:
        """State that depends on the data seen in training, saved with that of the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  most have nothing
        """Load a `state_dict`."""

    # --- validation ---

    def validate(self, forward: Forward, loader: Loader, fabric: Fabric) -> Scores:
        """Errors over the validation rows, of which each process's loader has its share."""
        tallies = [term.validation(fabric.device) for term in self.terms]
        for batch in loader:
            output = self.evaluate(forward, batch)
            with torch.no_grad():
                for tally in tallies:
                    tally.add(output, batch)
        found = [tally.scores(self._val_rows, fabric) for tally in tallies]
        scores = [one for one in found if one is not None]
        if not scores:
            return Scores(math.nan, math.nan, ())
        means = np.array([one.mean for one in scores])
        if self.settings.loss == "rmse":
            means = np.sqrt(means)
        loss = float(means @ self._weights.cpu().numpy())
        maes = tuple(mae for one in scores for mae in one.maes)
        return Scores(loss, self._error(loss, scores), maes)

    def evaluate(self, forward: Forward, batch: GraphBatch) -> Any:
        """Output of the network that the terms need for a batch, without derivatives by weights."""
        with torch.no_grad():
            return forward(batch)

    @abstractmethod
    def _error(self, loss: float, scores: Sequence[TermScores]) -> float:
        """Minimised error."""


class SummedErrors(Tally):
    """Sums of the loss and of absolute errors, which `errors` gives for a batch.

    Args:
        term: of the loss.
        errors: sums of absolute errors of a batch, in units of `scale` and in standard deviations.
        scale: factor to real units of the first.
        device: of the sums.
        counted: [S], number of errors of each structure, if not of all its known numbers.
    """

    def __init__(
        self,
        term: Term,
        errors: Callable[[Any, GraphBatch], tuple[Tensor, ...]],
        scale: float,
        device: torch.device,
        counted: np.ndarray | None = None,
    ) -> None:
        self._term, self._errors, self._scale, self._counted = term, errors, scale, counted
        self._total = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, output: Any, batch: GraphBatch) -> None:
        self._total[0] += self._term.sum(output, batch).double()
        for place, error in enumerate(self._errors(output, batch), start=1):
            self._total[place] += error.double()

    def scores(self, rows: np.ndarray, fabric: Fabric) -> TermScores | None:
        total = summed(self._total, fabric).cpu().numpy()
        if not len(rows):
            return None
        count = self._term.known()[rows].sum()
        if not count:
            return TermScores(0.0, (math.nan,))
        counted = count if self._counted is None else self._counted[rows].sum()
        mae = total[1] * self._scale / counted
        relative = (float(total[2] / count), self._term.weight)
        return TermScores(float(total[0] / count), (float(mae),), (relative,))


def loss_kind(settings: Training) -> str:
    """Loss whose sums are taken; for root mean squares, that of squares."""
    return "mse" if settings.loss == "rmse" else settings.loss


def absolute_sum(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Sum of absolute errors over known targets."""
    return loss_sum("mae", predicted, wanted)


def step_shares(counts: np.ndarray, accumulate: int, ranks: int) -> np.ndarray:
    """[batches, L] factors of each batch's sums: one over the counts of its whole step.

    Gradients of processes are averaged, not added: hence the factor by their number.
    """
    starts = np.arange(0, len(counts), accumulate)
    totals = np.add.reduceat(counts, starts, axis=0) if len(counts) else counts
    per_batch = np.repeat(totals, np.diff([*starts, len(counts)]), axis=0)
    return ranks / np.maximum(per_batch, 1.0)
