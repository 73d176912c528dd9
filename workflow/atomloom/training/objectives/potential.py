"""PotentialObjective: energies, forces and stress, the objective of interatomic potentials.

The terms of the loss are errors of energies, of force components, and of the virial per atom (stress
times volume / atoms), each in units of the energy scale, weighted by `training.potential`; and those of
further targets with their own heads. If descriptors do not change in training, they are computed once
for structures whose forces are not used. It knows nothing of the loop or of particular potentials.

Legend: S structures, A atoms, B structures and N atoms of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config.root import Config
from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.memory import free_memory
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import ModelCard
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.derivatives import PotentialOutput, evaluate_potential
from atomloom.targets import TargetSpec
from atomloom.training.inherited import Inherited
from atomloom.training.objectives.base import (
    BatchLabels,
    Forward,
    Log,
    Objective,
    SummedErrors,
    Tally,
    Term,
    TermScores,
    absolute_sum,
    loss_kind,
)
from atomloom.training.objectives.direct import DirectTerm
from atomloom.training.objectives.losses import loss_sum

SELECTION_STREAM = 0x666F7263  # separates the draws of structures for forces from other draws
LEAST_CHANCE = 0.1
"""Share of the mean error that is the min sampling weight of a structure."""
CACHE_SHARE = 0.25
"""Share of the free memory for cached features with `auto`."""


class PotentialNetwork(nn.Module):
    """Potential with its derivatives, as called by a training step."""

    def __init__(self, model: nn.Module, forces: bool, stress: bool) -> None:
        super().__init__()
        self.model = model
        self.forces, self.stress = forces, stress

    def forward(self, batch: GraphBatch) -> PotentialOutput:
        """Evaluate energies, and derivatives that can be differentiated again."""
        # A batch of structures without edges has nothing to differentiate by.
        derivatives = batch.src.shape[0] > 0
        return evaluate_potential(
            self.model,
            batch,
            forces=self.forces and derivatives,
            stress=self.stress and derivatives,
            create_graph=True,
        )


class EnergyTerm(Term):
    """Term of the energies of structures."""

    def __init__(
        self, spec: TargetSpec, config: Config, scaler: AtomicEnergies, targets: np.ndarray
    ) -> None:
        self.settings = config.training
        self.per_atom = config.training.potential.energy_loss == "per_atom"
        self.names, self.units = (spec.reported,), (spec.reported_unit,)
        self.weight, self.scaler = config.loss_weight(spec), scaler
        self.targets = targets
        """[S, 1], sums that the network's atomic energies must reach."""

    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Empty: energies are the targets of a batch."""
        return {}, {}

    def known(self) -> np.ndarray:
        """[S] counts, 1 where the energy is known."""
        return np.isfinite(self.targets[:, 0]).astype(np.float64)

    def sum(self, output: PotentialOutput, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """Loss of energies of structures, or per atom."""
        predicted, wanted = _energies(output, batch, self.per_atom)
        return loss_sum(loss_kind(self.settings), predicted, wanted, self.settings.huber_delta)

    def validation(self, device: torch.device) -> Tally:
        """Absolute errors per atom."""

        def errors(output: PotentialOutput, batch: GraphBatch) -> tuple[Tensor]:
            return (absolute_sum(*_energies(output, batch, per_atom=True)),)

        return SummedErrors(self, errors, self.scaler.scale, device)


class DerivedTerm(Term):
    """Term of forces or stress, which follow from the energy."""

    drawn = True

    def __init__(
        self,
        spec: TargetSpec,
        config: Config,
        scaler: AtomicEnergies,
        data: LabelledGraphs,
        values: np.ndarray,
    ) -> None:
        self.spec, self.settings, self.scaler = spec, config.training, scaler
        self.names, self.units = (spec.reported,), (spec.reported_unit,)
        self.weight = config.loss_weight(spec)
        self.values = values.reshape(len(values), -1) / scaler.scale
        """[A or S, numbers of a value], in units of the energy scale."""
        self._node_ptr = data.table.node_ptr

    def extras(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Values of the target."""
        own = {self.spec.name: self.values}
        return (own, {}) if self.spec.per == "atom" else ({}, own)

    def known(self) -> np.ndarray:
        """[S] known numbers."""
        return self._known(slice(None))

    def _known(self, components: list[int] | slice) -> np.ndarray:
        """[S] known numbers among some components."""
        known = np.isfinite(self.values[:, components]).sum(axis=1)
        if self.spec.per == "atom":
            known = np.add.reduceat(known, self._node_ptr[:-1])
        return known.astype(np.float64)

    def sum(self, output: PotentialOutput, batch: GraphBatch, used: Tensor | None = None) -> Tensor:
        """Loss of force components, or of virials per atom."""
        predicted, wanted = self._compared(output, batch)
        if self.spec.per == "structure":
            volume = torch.linalg.det(batch.cell).abs()
            each = (volume / _atoms(batch)).unsqueeze(1)
            predicted, wanted = predicted * each, wanted * each
        if used is not None:
            assert batch.rows is not None
            rows = batch.rows if self.spec.per == "structure" else batch.rows[batch.node_graph]
            wanted = torch.where(used[rows].unsqueeze(1), wanted, torch.nan)
        return loss_sum(loss_kind(self.settings), predicted, wanted, self.settings.huber_delta)

    def validation(self, device: torch.device) -> Tally:
        """Absolute errors of components, each once, as in `metrics.json`: the loss counts both `yz` and `zy`."""
        order = list(self.spec.flat) or slice(None)

        def errors(output: PotentialOutput, batch: GraphBatch) -> tuple[Tensor]:
            predicted, wanted = self._compared(output, batch)
            return (absolute_sum(predicted[:, order], wanted[:, order]),)

        return SummedErrors(self, errors, self.scaler.scale, device, self._known(order))

    def _compared(self, output: PotentialOutput, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Prediction, zeros in a batch without edges, and target."""
        wanted = batch.extras[self.spec.name]
        predicted = getattr(output, self.spec.name)
        if predicted is None:
            return torch.zeros_like(wanted), wanted
        return predicted.reshape(wanted.shape).to(wanted.dtype), wanted


def _atoms(batch: GraphBatch) -> Tensor:
    """[B] numbers of atoms of each structure, in the working precision."""
    assert batch.targets is not None
    return batch.node_ptr.diff().to(batch.targets.dtype)


def _energies(output: PotentialOutput, batch: GraphBatch, per_atom: bool) -> tuple[Tensor, Tensor]:
    """[B] predicted and reference energies."""
    assert batch.targets is not None
    predicted, wanted = output.energy.to(batch.targets.dtype), batch.targets[:, 0]
    if per_atom:
        atoms = _atoms(batch)
        predicted, wanted = predicted / atoms, wanted / atoms
    return predicted, wanted


class PotentialObjective(Objective):
    """Objective of energies, of forces and stress if `dataset.target` names them, and of targets with heads."""

    scaler: AtomicEnergies

    def __init__(
        self,
        data: LabelledGraphs,
        config: Config,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        inherited: Inherited | None = None,
    ) -> None:
        """Arguments are those of `PropertyObjective`; `data.targets` are energies [S, 1] in eV."""
        inherited = inherited or Inherited()
        self.options = config.training.potential
        self.outputs = 1
        self._data, self._train_rows = data, train_rows
        table, energies = data.table, data.targets[:, 0]
        derived = [spec for spec in config.targets if spec.derived]
        values: dict[str, np.ndarray] = {}
        for spec in derived:
            array = data.arrays.get(spec.name)
            if array is None:
                raise AtomloomError(f"the data set has no {spec.name}", where="dataset.target")
            values[spec.name] = array
        own, isolated = inherited.scaler, data.isolated_atoms
        if isinstance(own, AtomicEnergies) and inherited.energies is not None:
            scaler = own.refit(
                self.options, table, energies, train_rows, inherited.energies, isolated
            )
        else:
            forces = values.get("forces")
            scaler = AtomicEnergies.fit(self.options, table, energies, train_rows, forces, isolated)
        # On disk there are also graphs that are in no split, such as those of isolated atoms.
        used = np.concatenate([train_rows, val_rows, *data.rows.values()])
        scaler.require_elements(table.numbers[_atoms_of(table.node_ptr, used)])
        self.scaler = scaler
        self._targets = scaler.reduced(table, energies)[:, None]
        terms: list[Term] = []
        for spec in config.targets:
            if spec.derived:
                terms.append(DerivedTerm(spec, config, scaler, data, values[spec.name]))
            elif spec.of_energy:
                terms.append(EnergyTerm(spec, config, scaler, self._targets))
            else:
                terms.append(DirectTerm(spec, data, config, train_rows, inherited))
        super().__init__(config.training, terms, val_rows)
        self._atoms = np.diff(table.node_ptr)
        self._derived = tuple(spec.name for spec in derived)
        self._partial = bool(derived) and self.options.force_fraction < 1.0
        self._features: np.ndarray | None = None
        self._chosen: Tensor | None = None
        self._seen = torch.full((len(table),), torch.nan, dtype=torch.float64)
        self._drawn_by, self._epoch = torch.ones(len(table), dtype=torch.float64), -1

    # --- before the first step ---

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Fit a model with fixed descriptors to those of the training atoms, and cache them."""
        super().prepare(model, device, log)
        if references := self._references():
            log(
                "references: "
                + "; ".join(f"{how} {', '.join(own)}" for how, own in references.items())
            )
        fit, describe = (getattr(model, name, None) for name in ("fit_features", "features"))
        if fit is None or describe is None:
            return
        table = self._data.table
        features = all_features(describe, self._data, next(model.parameters()).dtype, device)
        atoms = _atoms_of(table.node_ptr, self._train_rows)
        species = torch.from_numpy(table.numbers[atoms].astype(np.int64)).to(device)
        fit(torch.from_numpy(features[atoms]).to(device), species)
        if self._caches(features.nbytes):
            self._features = features
            log(f"features of {len(features):,} atoms are cached ({features.nbytes / 1e6:.0f} MB)")

    def _references(self) -> dict[str, list[str]]:
        """Elements by the origin of their reference energies, where some are of isolated atoms."""
        isolated = self._data.isolated_atoms
        if not isolated:
            return {}
        elements = list(self.scaler.to_dict()["element_energies"])
        parts = {
            "isolated atoms": [symbol for symbol in elements if symbol in isolated],
            "fitted": [symbol for symbol in elements if symbol not in isolated],
        }
        return {how: own for how, own in parts.items() if own}

    def card(
        self, config: Config, facts: Mapping[str, Any], elements: tuple[str, ...]
    ) -> ModelCard:
        """Card that says where reference energies are from, if not from a fit alone."""
        references = self._references()
        own = {"reference_energies": references} if references else {}
        return super().card(config, {**facts, **own}, elements)

    def _caches(self, size: int) -> bool:
        wanted = self.options.cache_features
        if self._derived and not self._partial:
            return False  # every step needs every edge
        return size < CACHE_SHARE * free_memory().size if wanted == "auto" else wanted

    def labels(self, training: bool) -> BatchLabels:
        """Energies that the network must reach, forces, stress and further targets; cached features."""
        of_atoms, of_structures = self._extras()
        sampled = training and self.options.sampling != "uniform"
        weights = self._sampling_weights if sampled else None
        if self._features is None or (self._derived and not training):
            return BatchLabels(self._targets, of_atoms, of_structures, sampling_weights=weights)
        of_atoms["features"] = self._features
        return BatchLabels(self._targets, of_atoms, of_structures, self._with_edges, weights)

    def step_network(self, model: nn.Module) -> nn.Module:
        """Model with its derivatives."""
        return PotentialNetwork(model, "forces" in self._derived, "stress" in self._derived)

    # --- the step ---

    def _share(self, term: Term, epoch: int) -> float:
        """Share of the structures whose forces count, so that the mean over an epoch's draws is that over all
        forces."""
        if not (self._partial and term.drawn):
            return 1.0
        numbers = term.known()[self._train_rows]
        used = self._selection(epoch)[self._train_rows]
        return (numbers * used).sum() / max(1.0, numbers.sum())

    def begin(self, epoch: int, device: torch.device) -> None:
        """Draw the structures whose forces count."""
        super().begin(epoch, device)
        if self._partial:
            self._chosen = torch.from_numpy(self._selection(epoch)).to(device)

    def sums(self, output: PotentialOutput, batch: GraphBatch) -> Tensor:
        """[L] sums of the loss terms over a batch."""
        if self.options.sampling == "error":
            self._remember(output, batch)
        return torch.stack([term.sum(output, batch, self._chosen) for term in self.terms])

    # --- how often structures come ---

    def state_dict(self) -> dict[str, Any]:
        """Errors of structures when last seen, and the sampling weights of the epoch under way."""
        if self.options.sampling != "error":
            return {}
        return {"seen": self._seen, "epoch": self._epoch, "drawn_by": self._drawn_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`."""
        if state:
            self._seen, self._epoch = state["seen"].clone(), state["epoch"]
            self._drawn_by = state["drawn_by"].clone()

    @torch.no_grad()
    def _remember(self, output: PotentialOutput, batch: GraphBatch) -> None:
        """Record errors of energies per atom; unknown ones count as zero."""
        assert batch.targets is not None
        assert batch.rows is not None
        wrong = (output.energy.detach() - batch.targets[:, 0]) / batch.node_ptr.diff()
        self._seen[batch.rows.cpu()] = wrong.abs().nan_to_num(0.0).double().cpu()

    def _sampling_weights(self, epoch: int) -> np.ndarray:
        """[S] weights by which structures are drawn."""
        if self.options.sampling == "energy":
            each = self._targets[:, 0] * self.scaler.scale / self._atoms
            above = each - np.nanmin(each[self._train_rows])
            return np.nan_to_num(
                np.exp(-np.maximum(above, 0.0) / self.options.sampling_temperature)
            )
        if epoch != self._epoch:  # errors keep changing; those at its start count for an epoch
            known = self._seen[torch.isfinite(self._seen)]
            mean = float(known.mean()) if len(known) else 1.0
            self._drawn_by = self._seen.nan_to_num(mean) + LEAST_CHANCE * mean
            self._epoch = epoch
        return self._drawn_by.numpy()

    # --- validation ---

    def evaluate(self, forward: Forward, batch: GraphBatch) -> PotentialOutput:
        """Evaluate energies, and derivatives that cannot be differentiated again."""
        return evaluate_potential(
            forward, batch, forces="forces" in self._derived, stress="stress" in self._derived
        )

    def _error(self, loss: float, scores: Sequence[TermScores]) -> float:
        """Loss, as the minimised error."""
        return loss

    # --- whose forces count ---

    def _selection(self, epoch: int) -> np.ndarray:
        """[S] bool, whether a structure's forces and stress count in an epoch."""
        every = self.options.force_resample_every
        draw = np.random.Generator(
            np.random.PCG64(
                [SELECTION_STREAM, self.settings.seed, 0 if every is None else epoch // every]
            )
        )
        count = max(
            round(self.options.force_fraction * len(self._train_rows)),
            min(self.options.force_min_structures, len(self._train_rows)),
        )
        chosen = np.zeros(len(self._data.table), dtype=bool)
        chosen[draw.permutation(self._train_rows)[:count]] = True
        return chosen

    def _with_edges(self, epoch: int) -> np.ndarray:
        if not self._derived:
            return np.zeros(len(self._data.table), dtype=bool)
        return self._selection(epoch)


def all_features(
    describe: Callable[[GraphBatch], Tensor],
    data: LabelledGraphs,
    dtype: torch.dtype,
    device: torch.device,
    structures: int = 256,
) -> np.ndarray:
    """[A, F] descriptors of all atoms of a data set, computed by `describe` batch by batch."""
    rows, bounds = np.arange(len(data.table)), Batching(structures=structures)
    with torch.no_grad():
        batches = data.loader(rows, bounds=bounds, dtype=dtype, device=device)
        return np.concatenate([describe(batch).cpu().numpy() for batch in batches])


def _atoms_of(node_ptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices of the atoms of some structures."""
    counts = np.diff(node_ptr)[rows]
    starts = np.repeat(node_ptr[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return starts + np.arange(counts.sum())
