"""DirectTerm: a target with its own head, one value per atom or per structure.

It knows nothing of particular kinds of targets: only whether values are per atom or per structure, and
their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomloom.config.root import Config
from atomloom.data.batch import GraphBatch, label_name
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.scalers.direct_scaler import DirectScaler
from atomloom.models.common.outputs import Head
from atomloom.targets import TargetSpec
from atomloom.training.inherited import Inherited
from atomloom.training.objectives.base import SummedErrors, Tally, Term, absolute_sum, loss_kind
from atomloom.training.objectives.losses import loss_sum


class DirectTerm(Term):
    """Loss of one target."""

    def __init__(
        self,
        spec: TargetSpec,
        data: LabelledGraphs,
        config: Config,
        train_rows: np.ndarray,
        inherited: Inherited,
    ) -> None:
        values = data.arrays.get(spec.name)
        if values is None:
            raise AtomloomError(f"the data set has no {spec.name}", where="dataset.target")
        self.spec, self.settings = spec, config.training
        self.names, self.units = (spec.reported,), (spec.reported_unit,)
        self.weight = config.loss_weight(spec)
        table = data.table
        training = np.zeros(len(table), dtype=bool)
        training[train_rows] = True
        if spec.per == "atom":
            training = np.repeat(training, np.diff(table.node_ptr))
        fitted = DirectScaler.fit(spec, values, training, table.numbers)
        self.scaler = inherited.head_scalers.get(spec.name, fitted)
        self.head = (Head(spec.name, spec.per, spec.shape), self.scaler)
        pbc = getattr(table, "pbc", None)  # not available for graphs on disk
        if spec.doubt_if_periodic and pbc is not None and pbc[train_rows].any():
            self.doubt = f"{spec.name}: {spec.doubt_if_periodic}"
        self._node_ptr = table.node_ptr
        scaled = self.scaler.standardize(values, table.numbers)
        self._values = scaled.reshape(len(values), -1)
        self._extra = label_name(spec.name, spec.per)
        self._std = torch.from_numpy(self.scaler.std)

    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Standardised values."""
        own = {self._extra: self._values}
        return (own, {}) if self.spec.per == "atom" else ({}, own)

    def known(self) -> np.ndarray:
        """[S] counts of known numbers."""
        known = np.isfinite(self._values).sum(axis=1)
        if self.spec.per == "atom":
            known = np.add.reduceat(known, self._node_ptr[:-1])
        return known.astype(np.float64)

    def sum(self, output: Any, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """Loss over all known numbers."""
        predicted, wanted = self._compared(output, batch)
        return loss_sum(loss_kind(self.settings), predicted, wanted, self.settings.huber_delta)

    def validation(self, device: torch.device) -> Tally:
        """Absolute errors in real units and in standard deviations."""
        return SummedErrors(self, self._errors, 1.0, device)

    def _compared(self, output: Any, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        wanted = batch.extras[self._extra]
        predicted = output.heads[self.spec.name].reshape(wanted.shape)
        return predicted.to(wanted.dtype), wanted  # losses are never taken in 16 bits

    def _errors(self, output: Any, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        predicted, wanted = self._compared(output, batch)
        std = self._std.to(wanted)
        std = std[batch.numbers].unsqueeze(1) if self.scaler.seen is not None else std
        return absolute_sum(predicted * std, wanted * std), absolute_sum(predicted, wanted)
