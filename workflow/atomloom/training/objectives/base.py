"""What a training minimises: the loop asks an objective and knows neither targets nor losses.

An objective turns labelled data into what batches carry, a network's output into sums of its loss
terms, and validation into scores. It is a list of terms, one per target (all scalars share one). Sums, not
means: what a step divides by are counts over the whole step, so that small batches, accumulated or shared
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
from atomloom.training.objectives.losses import loss_sum

Log = Callable[[str], None]
Forward = Callable[[GraphBatch], Any]


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
class BatchLabels:
    """What batches carry of the labels, in the network's units; see `Loader`."""

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
    """Of each of its targets in real units."""
    relative: tuple[tuple[float, float], ...] = ()
    """Of each of its targets that is known, MAE in standard deviations and the target's weight."""


class Term(ABC):
    """A term of the loss: one target, or all scalars."""

    names: tuple[str, ...]
    """What errors are reported of."""
    units: tuple[str, ...]
    """Their units."""
    weight: float = 1.0
    """Of its mean in the loss."""
    head: tuple[Head, DirectScaler] | None = None
    """The head that it needs of the network, with the scaler of its numbers."""
    doubt: str = ""
    """What to say in the log, if anything, of values that may mean nothing."""
    drawn = False
    """Whether it counts only for the structures drawn by `training.potential.force_fraction`."""

    @abstractmethod
    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """What batches carry for it beyond the scalars, of atoms [A, D] and of structures [S, D]."""

    @abstractmethod
    def known(self) -> np.ndarray:
        """[S] float64, how many known numbers each structure has."""

    @abstractmethod
    def sum(self, output: Any, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """The sum of the loss over a batch, a scalar.

        Args:
            output: what the network gives, as the objective calls it.
            batch: with labels.
            used: [S] bool, the structures that count for a term that is `drawn`; all unless given.
        """

    @abstractmethod
    def validation(self, device: torch.device) -> Tally:
        """Counts up its errors over the validation rows."""


class Tally(ABC):
    """Errors of one term, counted up batch by batch."""

    @abstractmethod
    def add(self, output: Any, batch: GraphBatch) -> None:
        """Take a batch into account."""

    @abstractmethod
    def scores(self, rows: np.ndarray, fabric: Fabric) -> TermScores | None:
        """Those of all processes' batches together; None without rows. `rows` are all validation rows."""


class Objective(ABC):
    """What the loop asks."""

    outputs: int
    """Numbers that the network is built to predict."""
    scaler: TargetScaler | AtomicEnergies | None
    """From the network's units to real ones; goes into the model file."""
    global_features: GlobalFeatures | None = None
    """What the network is told of a structure besides its graph; goes there too."""

    def __init__(self, settings: Training, terms: Sequence[Term], val_rows: np.ndarray) -> None:
        self.settings, self.terms = settings, tuple(terms)
        heads = [term.head for term in self.terms if term.head is not None]
        self.heads = tuple(head for head, _ in heads)
        """Heads that the network needs."""
        self.head_scalers = {head.name: scaler for head, scaler in heads}
        """Scalers of the targets with a head of their own, by name."""
        self._val_rows = val_rows
        self._weights = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """What errors are reported of: one column of the history each."""
        return tuple(name for term in self.terms for name in term.names)

    @property
    def units(self) -> tuple[str, ...]:
        """Their units."""
        return tuple(unit for term in self.terms for unit in term.units)

    @property
    def model_options(self) -> dict[str, Any]:
        """What the network is built with, besides its config and `outputs`."""
        options: dict[str, Any] = {}
        if self.global_features is not None:
            options["global_features"] = len(self.global_features.names)
        return options | {"heads": self.heads} if self.heads else options

    def card(
        self, config: Config, facts: Mapping[str, Any], elements: tuple[str, ...]
    ) -> ModelCard:
        """What a model file says of the network.

        Args:
            config: the whole config.
            facts: where the weights come from.
            elements: those of the training structures.
        """
        return ModelCard.of(
            config, self.scaler, facts, self.global_features, elements, self.head_scalers
        )

    # --- before the first step ---

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Set what a new network must know of the training data, before the first step."""
        for doubt in (doubt for term in self.terms if (doubt := term.doubt)):
            log(f"warning: {doubt}")

    @abstractmethod
    def labels(self, training: bool) -> BatchLabels:
        """What batches shall carry, in training or in validation; called after `prepare`."""

    def step_network(self, model: nn.Module) -> nn.Module:
        """The module a training step calls with a batch, around (or being) the model."""
        return model

    def _extras(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        of_atoms, of_structures = {}, {}
        for term in self.terms:
            atoms, structures = term.extras()
            of_atoms.update(atoms)
            of_structures.update(structures)
        return of_atoms, of_structures

    # --- the step ---

    def counts(self, loader: Loader, epoch: int) -> np.ndarray:
        """[batches, L] float64, how many numbers each term of each batch is a sum over, all ranks'
        parts together."""
        plan = loader.plan(epoch)
        columns = [plan.sums(term.known()) * self._share(term, epoch) for term in self.terms]
        return np.stack(columns, axis=1)

    def _share(self, term: Term, epoch: int) -> float:
        """The share of known numbers that count."""
        return 1.0

    def begin(self, epoch: int, device: torch.device) -> None:
        """An epoch starts, or is gone on with."""
        self._weights = self._weights.to(device)

    def sums(self, output: Any, batch: GraphBatch) -> Tensor:
        """[L] sums of the loss terms over a batch."""
        return torch.stack([term.sum(output, batch) for term in self.terms])

    def loss(self, sums: Tensor, shares: Tensor) -> Tensor:
        """What is differentiated: a scalar of sums [L] and one over their counts [L]. The weighted sum of
        the terms' means, or of their roots."""
        means = sums * shares
        if self.settings.loss == "rmse":
            means = torch.sqrt(means + torch.finfo(means.dtype).eps)
        return (means * self._weights.to(means)).sum()

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt of the data in training, to be saved with a run's state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  most have nothing
        """Go on from a `state_dict`."""

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
        """What the terms want of a batch, without derivatives by weights."""
        with torch.no_grad():
            return forward(batch)

    @abstractmethod
    def _error(self, loss: float, scores: Sequence[TermScores]) -> float:
        """What is minimised."""


class SummedErrors(Tally):
    """Sums of the loss and of absolute errors, which `errors` gives for a batch.

    Args:
        term: whose loss.
        errors: sums of absolute errors of a batch, in units of `scale` and in standard deviations.
        scale: what makes real units of the first.
        device: where sums are kept.
    """

    def __init__(
        self,
        term: Term,
        errors: Callable[[Any, GraphBatch], tuple[Tensor, ...]],
        scale: float,
        device: torch.device,
    ) -> None:
        self._term, self._errors, self._scale = term, errors, scale
        self._total = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, output: Any, batch: GraphBatch) -> None:
        self._total[0] += self._term.sum(output, batch).double()
        for place, error in enumerate(self._errors(output, batch), start=1):
            self._total[place] += error.double()

    def scores(self, rows: np.ndarray, fabric: Fabric) -> TermScores | None:
        total = fabric.all_reduce(self._total, reduce_op="sum").cpu().numpy()
        if not len(rows):
            return None
        count = self._term.known()[rows].sum()
        if not count:
            return TermScores(0.0, (math.nan,))
        mae = total[1] * self._scale / count
        relative = (float(total[2] / count), self._term.weight)
        return TermScores(float(total[0] / count), (float(mae),), (relative,))


def loss_kind(settings: Training) -> str:
    """The loss whose sums are taken: of root mean squares, squares."""
    return "mse" if settings.loss == "rmse" else settings.loss


def absolute_sum(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Sum of absolute errors over known targets."""
    return loss_sum("mae", predicted, wanted)


def step_shares(counts: np.ndarray, accumulate: int, ranks: int) -> np.ndarray:
    """[batches, L] what each batch's sums are multiplied by: one over the counts of its whole step.

    Processes' gradients are averaged, not added: hence their number.
    """
    starts = np.arange(0, len(counts), accumulate)
    totals = np.add.reduceat(counts, starts, axis=0) if len(counts) else counts
    per_batch = np.repeat(totals, np.diff([*starts, len(counts)]), axis=0)
    return ranks / np.maximum(per_batch, 1.0)
