"""PropertyObjective: direct predictions, scalars of structures and targets with heads.

All scalars are one term, the loss over all their known values: regression, or classes. It knows nothing of
the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from atomloom.config.root import Config
from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.global_features import GLOBALS, GlobalFeatures
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models.common.outputs import Outputs
from atomloom.targets import TargetSpec
from atomloom.training.distributed import summed
from atomloom.training.inherited import Inherited
from atomloom.training.objectives.base import BatchLabels, Objective, Tally, Term, TermScores
from atomloom.training.objectives.direct import DirectTerm
from atomloom.training.objectives.losses import loss_sum


class ScalarsTerm(Term):
    """Term of scalars of structures, each an output of the network."""

    def __init__(
        self,
        specs: Sequence[TargetSpec],
        data: LabelledGraphs,
        config: Config,
        train_rows: np.ndarray,
        inherited: Inherited,
    ) -> None:
        self.settings: Training = config.training
        self.names = tuple(spec.reported for spec in specs)
        self.units = tuple("" if self.settings.classes else spec.reported_unit for spec in specs)
        self.real, self.atoms = data.targets, np.diff(data.table.node_ptr)
        fitted = self._fit(config, train_rows)
        # Classes have no scale.
        own = inherited.scaler
        self.scaler = own if isinstance(own, TargetScaler) and not fitted.classes else fitted
        self.targets = self.scaler.standardize(data.targets, self.atoms)
        weights = [config.loss_weight(spec) for spec in specs]
        self.loss_weights = None if set(weights) == {1.0} else weights
        """Weight of each, unless all are 1."""

    def _fit(self, config: Config, train_rows: np.ndarray) -> TargetScaler:
        if self.settings.loss == "cross_entropy":
            return TargetScaler.for_many_classes(self.real, train_rows, self.names[0])
        if self.settings.loss == "bce":
            return TargetScaler.for_classes(self.real, train_rows, self.names)
        extensive = getattr(config.model, "readout", "mean") == "sum"
        return TargetScaler.fit(
            self.real,
            train_rows,
            self.names,
            self.settings.log_targets,
            self.atoms if extensive else None,
        )

    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Empty: scalars have their own field."""
        return {}, {}

    def known(self) -> np.ndarray:
        """[S] counts of known targets."""
        return np.isfinite(self.targets).sum(axis=1).astype(np.float64)

    def sum(self, output: Any, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """Loss over all known targets."""
        assert batch.targets is not None
        prediction = Outputs.of(output).required.reshape(batch.size, self.scaler.outputs)
        prediction = prediction.to(batch.targets.dtype)  # losses are never taken in 16 bits
        return self.loss_of(prediction, batch.targets)

    def loss_of(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Loss of standardised predictions and targets [B, K]."""
        kind, delta = self.settings.loss, self.settings.huber_delta
        if self.loss_weights is None:
            return loss_sum(kind, prediction, targets, delta)
        columns = zip(prediction.unbind(1), targets.unbind(1), strict=True)
        sums = torch.stack([loss_sum(kind, one, wanted, delta) for one, wanted in columns])
        return (sums * sums.new_tensor(self.loss_weights)).sum()

    def validation(self, device: torch.device) -> Tally:
        """Tally that collects predictions."""
        return _CollectedOutputs(self)


class _CollectedOutputs(Tally):
    """Standardised predictions, compared with their targets in float64 when all are there.

    The device is not synchronised before the last batch is under way.
    """

    def __init__(self, term: ScalarsTerm) -> None:
        self._term = term
        self._parts: list[Tensor] = []

    def add(self, output: Any, batch: GraphBatch) -> None:
        main = Outputs.of(output).required
        self._parts.append(main.reshape(batch.size, self._term.scaler.outputs).double())

    def scores(self, rows: np.ndarray, fabric: Fabric) -> TermScores | None:
        term, scaler = self._term, self._term.scaler
        none = np.zeros((0, scaler.outputs))
        own = torch.cat(self._parts).cpu().numpy() if self._parts else none
        outputs = _gathered(own, len(rows), fabric)
        if not len(rows):
            return None
        wanted = term.targets[rows]
        known = np.isfinite(wanted)
        counts = known.sum(axis=0)
        if not counts.any():  # these rows have other known targets
            return TermScores(0.0, (math.nan,) * len(term.names))
        loss = term.loss_of(torch.from_numpy(outputs), torch.from_numpy(wanted))
        restored = scaler.restore(outputs, term.atoms[rows])
        relative: list[tuple[float, float]] = []
        if scaler.class_count:
            classes = np.where(known, wanted, 0.0).astype(np.int64)
            differences = 1.0 - np.take_along_axis(restored, classes, axis=1)
        else:
            differences = np.abs(restored - term.real[rows])
            scaled = np.where(known, np.abs(outputs - wanted), 0.0).sum(axis=0)
            weights = np.array(term.loss_weights or np.ones(len(counts)))
            pairs = (scaled[counts > 0] / counts[counts > 0], weights[counts > 0])
            relative = list(zip(*(array.tolist() for array in pairs), strict=True))
        errors = np.where(known, differences, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            maes = tuple((errors / counts).tolist())
        return TermScores(float(loss) / int(known.sum()), maes, tuple(relative))


def _gathered(outputs: np.ndarray, rows: int, fabric: Fabric) -> np.ndarray:
    """[rows, K] outputs of all processes, each of which has every `world_size`-th row."""
    if fabric.world_size == 1:
        return outputs
    whole = torch.zeros(rows, outputs.shape[1], dtype=torch.float64)
    whole[fabric.global_rank :: fabric.world_size] = torch.from_numpy(outputs)
    return summed(whole.to(fabric.device), fabric).cpu().numpy()


class PropertyObjective(Objective):
    """Objective of scalars of structures, and of targets with their own heads."""

    def __init__(
        self,
        data: LabelledGraphs,
        config: Config,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        inherited: Inherited | None = None,
    ) -> None:
        """Args:
            data: graphs and targets.
            config: the whole config.
            train_rows: rows to train on, which define mean and deviation.
            val_rows: rows to validate on, by all processes together.
            inherited: scales of the model that the training starts from.

        Raises:
            AtomloomError: when a target cannot be learnt.
        """
        inherited = inherited or Inherited()
        scalars = [spec for spec in config.targets if spec.is_column]
        self._scalars = (
            ScalarsTerm(scalars, data, config, train_rows, inherited) if scalars else None
        )
        terms: list[Term] = [self._scalars] if self._scalars else []
        terms += [
            DirectTerm(spec, data, config, train_rows, inherited)
            for spec in config.targets
            if spec.direct
        ]
        super().__init__(config.training, terms, val_rows)
        self.scaler = self._scalars.scaler if self._scalars else None
        self.outputs = self.scaler.outputs if self.scaler else 0
        self._targets = self._scalars.targets if self._scalars else data.targets
        self._given: dict[str, np.ndarray] = {}
        if config.dataset.global_features or config.features:
            self._learn_globals(data, config, train_rows, inherited)

    def _learn_globals(
        self, data: LabelledGraphs, config: Config, train_rows: np.ndarray, inherited: Inherited
    ) -> None:
        where = "dataset.global_features"
        if data.global_features is None:
            raise AtomloomError("the data set has none", where=where)
        rows = np.concatenate([train_rows, self._val_rows])
        self.global_features = inherited.global_features or GlobalFeatures.fit(
            data.global_features,
            train_rows,
            data.global_names or config.dataset.global_features,
        )
        if not np.isfinite(data.global_features[rows]).all():
            raise AtomloomError("unknown for a validation structure", where=where)
        self._given = {GLOBALS: self.global_features.standardize(data.global_features)}

    def labels(self, training: bool) -> BatchLabels:
        """Standardised targets."""
        of_atoms, of_structures = self._extras()
        return BatchLabels(self._targets, of_atoms, {**self._given, **of_structures})

    def _error(self, loss: float, scores: Sequence[TermScores]) -> float:
        """The weighted mean over the targets of MAE in standard deviations; for classes the loss."""
        if self.settings.classes:
            return loss
        errors, weights = np.array([one for score in scores for one in score.relative]).T
        return float(np.average(errors, weights=weights if weights.any() else None))
