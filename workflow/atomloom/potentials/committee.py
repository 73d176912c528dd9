"""Committee: one trained potential, or several, whose spread estimates the uncertainty.

All members see the same graph, built once. Their outputs for a batch stay on the device until they
are read. It knows nothing of the origin of structures, nor of ASE.

Legend: S structures, A atoms of all of them, M members.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atomloom.config.graph import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.inference.devices import choose_device
from atomloom.inference.predict import LoadedModel, load_model
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.derivatives import PotentialOutput, evaluate_potential
from atomloom.models.registry import require_elements

Source = str | Path | LoadedModel
"""Potential: its file, or the result of `load_model`."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Deviation:
    """Spread of a committee: standard deviations over its members, with M - 1."""

    energy: np.ndarray
    """[S] eV."""
    forces: np.ndarray | None
    """[A, 3] eV/A; None unless requested."""
    stress: np.ndarray | None
    """[S, 3, 3] eV/A^3; None unless requested."""
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Deviations of further targets by name, [S, ...] or [A, ...]."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of a potential for some structures; for a committee, the mean over its members."""

    node_ptr: np.ndarray
    """[S+1] int64, first atom of each structure."""
    energy: np.ndarray
    """[S] float64, eV."""
    atom_energies: np.ndarray
    """[A] float64, eV; their sums are the energies."""
    forces: np.ndarray | None = None
    """[A, 3] float64, eV/A; None unless requested."""
    stress: np.ndarray | None = None
    """[S, 3, 3] float64, eV/A^3, dE/dstrain / volume; zeros where the cell has no volume."""
    deviation: Deviation | None = None
    """Spread of the members; None with one member."""
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further targets by name, such as a dipole, [S, ...] or [A, ...] float64."""

    def __len__(self) -> int:
        return len(self.energy)

    def atoms(self, structure: int) -> slice:
        """Slice of the atoms of a structure."""
        return slice(int(self.node_ptr[structure]), int(self.node_ptr[structure + 1]))


@dataclass(frozen=True, eq=False)
class Committee:
    """Potentials on one device, ready for evaluation."""

    members: tuple[LoadedModel, ...]
    device: str
    dtype: torch.dtype
    """Precision of weights, edge vectors and forces; atomic energies are summed in float64."""

    @classmethod
    def open(
        cls,
        potentials: Source | Sequence[Source] | Committee,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
    ) -> Committee:
        """Load potentials.

        Args:
            potentials: a model file or a loaded model, or several of them; or a committee.
            device: `auto`, `cpu` or `cuda`; `auto` leaves a committee where it is.
            dtype: `float32` or `float64`; by default that of the first file.

        Raises:
            AtomloomError: when one cannot be read or is not a potential on radius graphs, or when their
                graphs differ.
        """
        if isinstance(potentials, Committee):
            place = potentials.device if device == "auto" else choose_device(device)
            wanted = potentials.dtype if dtype is None else read_dtype(dtype)
            if (place, wanted) == (potentials.device, potentials.dtype):
                return potentials
            return cls(tuple(_placed(m, place, wanted) for m in potentials.members), place, wanted)
        if isinstance(potentials, str | Path | LoadedModel):
            potentials = [potentials]
        sources = list(potentials)
        if not sources:
            raise AtomloomError("a committee needs at least one potential")
        loaded = [s if isinstance(s, LoadedModel) else load_model(s) for s in sources]
        for model in loaded:
            atomic_energies_of(model)
            _require_plain_graph(model.card.graph)
            if model.card.graph != loaded[0].card.graph:
                raise AtomloomError(
                    "the members of a committee need different graphs",
                    todo="use potentials that were trained with the same `graph` section",
                )
            if set(model.card.direct) != set(loaded[0].card.direct):
                raise AtomloomError(
                    "the members of a committee predict different targets besides the energy",
                    todo="use potentials that were trained on the same `dataset.target`",
                )
        device = choose_device(device)
        wanted = loaded[0].dtype if dtype is None else read_dtype(dtype)
        return cls(tuple(_placed(model, device, wanted) for model in loaded), device, wanted)

    @property
    def graph(self) -> GraphSpec:
        """Spec of the graphs that its members need."""
        return self.members[0].card.graph

    @property
    def cutoff(self) -> float:
        """Cutoff of the graphs, A."""
        return float(self.graph.cutoff)

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError if a member was not trained on an element."""
        present = np.unique(numbers)
        for member in self.members:
            atomic_energies_of(member).require_elements(present)
            require_elements(member.model, present)

    def ask(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False
    ) -> tuple[PotentialOutput, ...]:
        """Outputs of the members for a batch, each in its own unit, on the device."""
        with torch.no_grad():
            return tuple(
                evaluate_potential(member.model, batch, forces=forces, stress=stress)
                for member in self.members
            )

    def read(
        self,
        outputs: Sequence[tuple[PotentialOutput, ...]],
        numbers: np.ndarray,
        node_ptr: np.ndarray,
    ) -> Evaluation:
        """Convert outputs for consecutive batches to results in real units.

        Args:
            outputs: results of `ask` for each batch, at least one.
            numbers: [A] atomic numbers of all their atoms.
            node_ptr: [S+1] first atom of each of their structures.
        """
        of_members = [
            self._real(member, [output[place] for output in outputs], numbers, node_ptr)
            for place, member in enumerate(self.members)
        ]
        if len(of_members) == 1:
            return of_members[0]
        energy = np.stack([own.energy for own in of_members])
        atom_energies = np.stack([own.atom_energies for own in of_members])
        forces = _stack([own.forces for own in of_members])
        stress = _stack([own.stress for own in of_members])
        heads = {
            name: np.stack([own.heads[name] for own in of_members]) for name in of_members[0].heads
        }
        return Evaluation(
            node_ptr,
            energy.mean(axis=0),
            atom_energies.mean(axis=0),
            None if forces is None else forces.mean(axis=0),
            None if stress is None else stress.mean(axis=0),
            Deviation(
                energy.std(axis=0, ddof=1),
                None if forces is None else forces.std(axis=0, ddof=1),
                None if stress is None else stress.std(axis=0, ddof=1),
                {name: values.std(axis=0, ddof=1) for name, values in heads.items()},
            ),
            {name: values.mean(axis=0) for name, values in heads.items()},
        )

    @staticmethod
    def _real(
        member: LoadedModel,
        outputs: Sequence[PotentialOutput],
        numbers: np.ndarray,
        node_ptr: np.ndarray,
    ) -> Evaluation:
        atomic_energies = atomic_energies_of(member)

        def joined(parts: list[Tensor]) -> np.ndarray:
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            return _doubles(whole) * atomic_energies.scale

        def if_asked(parts: list[Tensor | None]) -> np.ndarray | None:
            known = [part for part in parts if part is not None]
            return joined(known) if known else None

        atom_energies = joined([output.atom_energies for output in outputs])
        atom_energies = atom_energies + atomic_energies.atom_offsets(numbers)
        return Evaluation(
            node_ptr=node_ptr,
            energy=np.add.reduceat(atom_energies, node_ptr[:-1]),
            atom_energies=atom_energies,
            forces=if_asked([output.forces for output in outputs]),
            stress=if_asked([output.stress for output in outputs]),
            heads={
                name: scaler.restore(
                    _doubles(torch.cat([output.heads[name] for output in outputs])), numbers
                )
                for name, scaler in member.card.head_scalers.items()
            },
        )


def atomic_energies_of(loaded: LoadedModel) -> AtomicEnergies:
    """Energy scaler of a loaded potential.

    Raises:
        AtomloomError: when the model is not a potential.
    """
    if not isinstance(loaded.card.scaler, AtomicEnergies):
        raise AtomloomError(
            f"{loaded.card.model.name} predicts {', '.join(loaded.card.targets)} and has no forces",
            todo="use a model trained as a potential, or `predict`",
        )
    return loaded.card.scaler


def _require_plain_graph(spec: GraphSpec) -> None:
    """Refuse graphs on which energies are not a smooth function of the given positions."""
    if spec.neighbors != "radius" or spec.primitive:
        kind = "primitive cells" if spec.primitive else "the nearest neighbours"
        raise AtomloomError(
            f"the potential was trained on graphs of {kind}: it has no smooth forces",
            where="graph",
            todo="train it with `neighbors: radius` and without `primitive`",
        )


def read_dtype(wanted: str | torch.dtype) -> torch.dtype:
    """Torch type of `float32` or `float64`; AtomloomError for anything else."""
    found = DTYPES.get(str(wanted).removeprefix("torch."))
    if found is None:
        raise AtomloomError(
            f"{wanted} is not a precision", where="dtype", todo="use float32 or float64"
        )
    return found


def _placed(loaded: LoadedModel, device: str, dtype: torch.dtype) -> LoadedModel:
    """Copy of the model on a device in a precision; the given one is not changed."""
    model = loaded.model
    if loaded.dtype != dtype:
        model = copy.deepcopy(model).to(dtype)
    return LoadedModel(model.to(device), loaded.card, dtype, loaded.trust)


def _doubles(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _stack(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.stack(known) if known else None
