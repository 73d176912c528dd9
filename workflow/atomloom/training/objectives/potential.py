"""PotentialObjective: energies, forces and stress, the objective of interatomic potentials.

The terms of the loss are errors of energies, of force components, and of the virial an atom (stress
times volume / atoms), each in units of the energy scale, weighed by `training.potential`. Where
descriptors do not change in training, they are computed once for structures whose forces are not
used. It knows nothing of the loop and of particular potentials.

Legend: S structures, A atoms, B structures and N atoms of a batch, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from atomloom.config.root import Config
from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import Loader
from atomloom.data.memory import free_memory
from atomloom.errors import AtomloomError
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.derivatives import PotentialOutput, evaluate_potential
from atomloom.training.objectives.base import Carried, Log, Scores
from atomloom.training.objectives.losses import loss_sum

SELECTION_STREAM = 0x666F7263  # keeps the draws of structures for forces apart from other draws
REPORTED = {
    "energy": ("energy_per_atom", "eV/atom"),
    "forces": ("forces", "eV/A"),
    "stress": ("stress", "eV/A^3"),
}
"""Target -> name and unit of the errors that are reported of it."""
LEAST_CHANCE = 0.1
"""Of the mean error, that counts for a structure without any."""
CACHE_SHARE = 0.25
"""Of the free memory, that `auto` gives to cached features."""


class PotentialNetwork(nn.Module):
    """A potential with its derivatives, as a training step calls it."""

    def __init__(self, model: nn.Module, forces: bool, stress: bool) -> None:
        super().__init__()
        self.model = model
        self.forces, self.stress = forces, stress

    def forward(self, batch: GraphBatch) -> PotentialOutput:
        """Energies, and derivatives that can be differentiated again."""
        # A batch of structures whose edges are not wanted has nothing to differentiate by.
        derivatives = batch.src.shape[0] > 0
        return evaluate_potential(
            self.model,
            batch,
            forces=self.forces and derivatives,
            stress=self.stress and derivatives,
            create_graph=True,
        )


class PotentialObjective:
    """Energies, and forces and stress where `dataset.target` names them."""

    def __init__(
        self, data: LabelledGraphs, config: Config, train_rows: np.ndarray, val_rows: np.ndarray
    ) -> None:
        """As `PropertyObjective`; `data.targets` are energies [S, 1] in eV."""
        self.settings = config.training
        options = config.training.potential
        self.options = options
        self.terms = tuple(config.dataset.target)
        self.names = tuple(REPORTED[name][0] for name in self.terms)
        self.units = tuple(REPORTED[name][1] for name in self.terms)
        self.outputs = 1
        self.given = None
        self._data, self._train_rows, self._val_rows = data, train_rows, val_rows
        table, energies = data.table, data.targets[:, 0]
        forces = data.arrays.get("forces") if "forces" in self.terms else None
        stress = data.arrays.get("stress") if "stress" in self.terms else None
        for name, values in (("forces", forces), ("stress", stress)):
            if name in self.terms and values is None:
                raise AtomloomError(f"the data set has no {name}", where="dataset.target")
        self.scale = AtomicEnergies.fit(options, table, energies, train_rows, forces)
        self.scale.require_elements(table.numbers)
        self._targets = self.scale.reduced(table, energies)[:, None]
        self._forces = None if forces is None else forces / self.scale.scale
        self._stress = None if stress is None else stress.reshape(-1, 9) / self.scale.scale
        weights = {
            "energy": options.energy_weight,
            "forces": options.forces_weight,
            "stress": options.stress_weight,
        }
        self._weights = torch.tensor([weights[name] for name in self.terms], dtype=torch.float64)
        self._atoms = np.diff(table.node_ptr)
        self._derived = [name for name in self.terms if name != "energy"]
        self._partial = bool(self._derived) and options.force_fraction < 1.0
        self._features: np.ndarray | None = None
        self._chosen: Tensor | None = None
        self._seen = torch.full((len(table),), torch.nan, dtype=torch.float64)
        self._drawn_by, self._epoch = torch.ones(len(table), dtype=torch.float64), -1

    # --- before the first step ---

    def prepare(self, model: nn.Module, device: torch.device, log: Log) -> None:
        """Let a model with fixed descriptors see those of the training atoms, and keep them."""
        describe = getattr(model, "fit_features", None)
        if describe is None:
            return
        table = self._data.table
        features = all_features(model, self._data, device)
        atoms = _atoms_of(table.node_ptr, self._train_rows)
        species = torch.from_numpy(table.numbers[atoms].astype(np.int64)).to(device)
        describe(torch.from_numpy(features[atoms]).to(device), species)
        if self._caches(features.nbytes):
            self._features = features
            log(f"features of {len(features):,} atoms are kept ({features.nbytes / 1e6:.0f} MB)")

    def _caches(self, size: int) -> bool:
        wanted = self.options.cache_features
        if self._derived and not self._partial:
            return False  # every step needs every edge
        return size < CACHE_SHARE * free_memory().size if wanted == "auto" else wanted

    def carried(self, training: bool) -> Carried:
        """Energies that the network must reach, forces, stress; cached features."""
        of_atoms, of_structures = {}, {}
        if self._forces is not None:
            of_atoms["forces"] = self._forces
        if self._stress is not None:
            of_structures["stress"] = self._stress
        chances = self._chances if training and self.options.sampling != "uniform" else None
        if self._features is None or (self._derived and not training):
            return Carried(self._targets, of_atoms, of_structures, chances=chances)
        of_atoms["features"] = self._features
        return Carried(self._targets, of_atoms, of_structures, self._with_edges, chances)

    def step_network(self, model: nn.Module) -> nn.Module:
        """The model with its derivatives."""
        return PotentialNetwork(model, "forces" in self.terms, "stress" in self.terms)

    # --- the step ---

    def counts(self, loader: Loader, epoch: int) -> np.ndarray:
        """[batches, L]; where only some structures' forces count, the number to be expected, so that
        the mean over an epoch's draws is that over all forces."""
        plan = loader.plan(epoch)
        columns = []
        for name in self.terms:
            numbers = self._numbers(name)
            share = 1.0
            if self._partial and name != "energy":
                used = self._selection(epoch)[self._train_rows]
                everything = numbers[self._train_rows].sum()
                share = (numbers[self._train_rows] * used).sum() / max(1.0, everything)
            columns.append(plan.sums(numbers) * share)
        return np.stack(columns, axis=1)

    def begin(self, epoch: int, device: torch.device) -> None:
        """Know whose forces count."""
        self._weights = self._weights.to(device)
        if self._partial:
            self._chosen = torch.from_numpy(self._selection(epoch)).to(device)

    def sums(self, output: PotentialOutput, batch: GraphBatch) -> Tensor:
        """[L] sums of the loss terms over a batch."""
        if self.options.sampling == "error":
            self._remember(output, batch)
        return self._sums(output, batch, self._chosen)

    def loss(self, sums: Tensor, shares: Tensor) -> Tensor:
        """The weighted sum of the terms' means, or of their roots."""
        means = sums * shares
        if self.settings.loss == "rmse":
            means = torch.sqrt(means + torch.finfo(means.dtype).eps)
        return (means * self._weights.to(means.dtype)).sum()

    def _sums(self, output: PotentialOutput, batch: GraphBatch, chosen: Tensor | None) -> Tensor:
        dtype = batch.targets.dtype
        kind = "mse" if self.settings.loss == "rmse" else self.settings.loss
        atoms = batch.node_ptr.diff().to(dtype)
        sums = []
        for name in self.terms:
            predicted, wanted = _compared(name, output, batch, atoms, dtype)
            if name == "energy" and self.options.energy_loss == "per_atom":
                predicted, wanted = predicted / atoms, wanted / atoms
            if name != "energy" and chosen is not None:
                of = batch.rows if name == "stress" else batch.rows[batch.node_graph]
                wanted = torch.where(chosen[of].unsqueeze(1), wanted, torch.nan)
            sums.append(loss_sum(kind, predicted, wanted, self.settings.huber_delta))
        return torch.stack(sums)

    # --- how often structures come ---

    def state_dict(self) -> dict[str, Any]:
        """Errors of structures when last seen, and the chances of the epoch under way."""
        if self.options.sampling != "error":
            return {}
        return {"seen": self._seen, "epoch": self._epoch, "drawn_by": self._drawn_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if state:
            self._seen, self._epoch = state["seen"].clone(), state["epoch"]
            self._drawn_by = state["drawn_by"].clone()

    @torch.no_grad()
    def _remember(self, output: PotentialOutput, batch: GraphBatch) -> None:
        """Errors of energies an atom; unknown ones are taken for none."""
        wrong = (output.energy.detach() - batch.targets[:, 0]) / batch.node_ptr.diff()
        self._seen[batch.rows.cpu()] = wrong.abs().nan_to_num(0.0).double().cpu()

    def _chances(self, epoch: int) -> np.ndarray:
        """[S] what structures are drawn in proportion to."""
        if self.options.sampling == "energy":
            each = self._targets[:, 0] * self.scale.scale / self._atoms
            above = each - np.nanmin(each[self._train_rows])
            return np.nan_to_num(
                np.exp(-np.maximum(above, 0.0) / self.options.sampling_temperature)
            )
        if epoch != self._epoch:  # errors go on changing; those at its start count for an epoch
            known = self._seen[torch.isfinite(self._seen)]
            mean = float(known.mean()) if len(known) else 1.0
            self._drawn_by = self._seen.nan_to_num(mean) + LEAST_CHANCE * mean
            self._epoch = epoch
        return self._drawn_by.numpy()

    # --- validation ---

    def validate(
        self, forward: Callable[[GraphBatch], Tensor], loader: Loader, fabric: Fabric
    ) -> Scores:
        """Loss and mean absolute errors: energies an atom, force components, stress components."""
        rows = self._val_rows
        terms = len(self.terms)
        total = torch.zeros(2, terms, dtype=torch.float64, device=fabric.device)
        for batch in loader:
            output = evaluate_potential(
                forward, batch, forces="forces" in self.terms, stress="stress" in self.terms
            )
            with torch.no_grad():
                total[0] += self._sums(output, batch, None).double()
                total[1] += self._absolute(output, batch)
        total = fabric.all_reduce(total, reduce_op="sum").cpu().numpy()
        if not len(rows):
            return Scores(math.nan, math.nan, ())
        counts = np.array([self._numbers(name)[rows].sum() for name in self.terms])
        known = counts > 0
        means = np.divide(total[0], counts, out=np.zeros(terms), where=known)
        if self.settings.loss == "rmse":
            means = np.sqrt(means)
        loss = float(means @ self._weights.cpu().numpy())
        with np.errstate(invalid="ignore", divide="ignore"):
            maes = tuple((total[1] * self.scale.scale / counts).tolist())
        return Scores(loss=loss, error=loss, maes=maes)

    def _absolute(self, output: PotentialOutput, batch: GraphBatch) -> Tensor:
        """[L] sums of absolute errors of energies an atom, forces and stress."""
        dtype = batch.targets.dtype
        atoms = batch.node_ptr.diff().to(dtype)
        sums = []
        for name in self.terms:
            predicted, wanted = _compared(name, output, batch, atoms, dtype)
            if name == "energy":
                predicted, wanted = predicted / atoms, wanted / atoms
            elif name == "stress":
                predicted, wanted = output.stress.reshape(-1, 9).to(dtype), batch.extras["stress"]
            sums.append(loss_sum("mae", predicted, wanted).double())
        return torch.stack(sums)

    # --- which and how many ---

    def _numbers(self, name: str) -> np.ndarray:
        """[S] float64, how many known numbers of a kind each structure has."""
        if name == "energy":
            return np.isfinite(self._targets[:, 0]).astype(np.float64)
        if name == "stress":
            return np.isfinite(self._stress).sum(axis=1).astype(np.float64)
        known = np.isfinite(self._forces).sum(axis=1)
        return np.add.reduceat(known, self._data.table.node_ptr[:-1]).astype(np.float64)

    def _selection(self, epoch: int) -> np.ndarray:
        """[S] bool, the structures whose forces and stress count in an epoch."""
        every = self.options.force_every
        draw = np.random.Generator(
            np.random.PCG64(
                [SELECTION_STREAM, self.settings.seed, 0 if every is None else epoch // every]
            )
        )
        count = max(
            round(self.options.force_fraction * len(self._train_rows)),
            min(self.options.force_least, len(self._train_rows)),
        )
        chosen = np.zeros(len(self._data.table), dtype=bool)
        chosen[draw.permutation(self._train_rows)[:count]] = True
        return chosen

    def _with_edges(self, epoch: int) -> np.ndarray:
        if not self._derived:
            return np.zeros(len(self._data.table), dtype=bool)
        return self._selection(epoch)


def all_features(
    model: nn.Module, data: LabelledGraphs, device: torch.device, structures: int = 256
) -> np.ndarray:
    """[A, F] descriptors of all atoms of a data set, in the precision of the model."""
    dtype = next(model.parameters()).dtype
    rows, bounds = np.arange(len(data.table)), Batching(structures=structures)
    with torch.no_grad():
        batches = data.loader(rows, bounds=bounds, dtype=dtype, device=device)
        return np.concatenate([model.features(batch).cpu().numpy() for batch in batches])


def _compared(
    name: str, output: PotentialOutput, batch: GraphBatch, atoms: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Prediction and target of a term: energies of structures, forces, virials an atom."""
    if name == "energy":
        return output.energy.to(dtype), batch.targets[:, 0]
    if name == "forces":
        wanted = batch.extras["forces"]
        return _or_zeros(output.forces, wanted), wanted
    wanted = batch.extras["stress"]
    volume = torch.linalg.det(batch.cell).abs()
    each = (volume / atoms).unsqueeze(1)
    predicted = None if output.stress is None else output.stress.reshape(-1, 9)
    return _or_zeros(predicted, wanted) * each, wanted * each


def _or_zeros(predicted: Tensor | None, wanted: Tensor) -> Tensor:
    """Derivatives of a batch without edges, which are none."""
    return torch.zeros_like(wanted) if predicted is None else predicted.to(wanted.dtype)


def _atoms_of(node_ptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Atoms of some structures."""
    counts = np.diff(node_ptr)[rows]
    starts = np.repeat(node_ptr[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return starts + np.arange(counts.sum())
