"""AtomicEnergies: scaler between energies in eV and the numbers that a potential learns.

The energy of a structure is the sum of energies of single atoms by element, a shift per atom,
and the network's sum in units of a scale; forces and stress know only the scale. All of it is in
float64: total energies of hundreds of eV per atom leave no digits for bonds in float32. It knows
nothing of torch.

S structures, A atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomloom.config.training import PotentialTraining
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import Graphs
from atomloom.structures.elements import SYMBOLS, atomic_number

ELEMENTS = 119


@dataclass(frozen=True, eq=False)
class AtomicEnergies:
    """Energy scaler, E = sum over atoms of (element_energies[Z] + shift) + scale * network."""

    element_energies: np.ndarray
    """[119] float64, eV, by atomic number; NaN for elements not in the training set."""
    shift: float
    """Shift in eV per atom."""
    scale: float
    """eV."""

    @classmethod
    def fit(
        cls,
        settings: PotentialTraining,
        table: Graphs,
        energies: np.ndarray,
        rows: np.ndarray,
        forces: np.ndarray | None = None,
        isolated: Mapping[str, float] | None = None,
    ) -> AtomicEnergies:
        """Fit reference energies, shift and scale to the training structures.

        Args:
            settings: of the fit.
            table: all graphs.
            energies: [S] eV, NaN where unknown.
            rows: rows of the training set.
            forces: [A, 3] eV/A, NaN where unknown; None where they are not learnt.
            isolated: eV, energies of isolated atoms by element, where these are the references.

        Raises:
            AtomloomError: when an element has no reference energy, or there is nothing to scale by.
        """
        rows = rows[np.isfinite(energies[rows])]
        if not len(rows):
            raise AtomloomError("no training structure has an energy", where="dataset.target")
        counts = _composition(table, rows)
        elements = _elements(settings, counts, energies[rows], isolated or {})
        atoms = counts.sum(axis=1)
        rest = (energies[rows] - counts @ np.nan_to_num(elements)) / atoms
        kind = settings.energy_scale
        if kind == "auto":
            kind = "energy" if forces is None else "forces"
        shift = float(rest.min() + rest.max()) / 2 if kind == "range" else float(rest.mean())
        if kind == "forces":
            scale = _force_scale(table, forces, rows)
        elif kind == "range":
            scale = float(rest.max() - rest.min()) / 2
        else:
            scale = float(rest.std()) if kind == "energy" else float(kind)
        if not scale > 1e-12 * max(1.0, abs(shift)):
            scale = 1.0  # all equal within rounding: no scale to divide by
        return cls(elements, shift, scale)

    def refit(
        self,
        settings: PotentialTraining,
        table: Graphs,
        energies: np.ndarray,
        rows: np.ndarray,
        predicted: np.ndarray,
        isolated: Mapping[str, float] | None = None,
    ) -> AtomicEnergies:
        """Fit reference energies and shift for the network that this scaler is of, with its scale.

        With `reference_energies: fit`, the energies of elements change by what fits the errors of the
        predictions best, and no more than that where compositions do not tell elements apart.

        Args:
            settings: of the fit.
            table: all graphs.
            energies: [S] eV, NaN where unknown.
            rows: rows of the training set.
            predicted: [S] eV, part of the energy that is from the network; NaN outside the training set.
            isolated: eV, energies of isolated atoms by element, where these are the references.

        Raises:
            AtomloomError: as `fit`.
        """
        own = np.zeros(ELEMENTS)
        if settings.reference_energies == "fit":
            own = np.nan_to_num(self.element_energies) + self.shift
        rest = energies - predicted - np.add.reduceat(own[table.numbers], table.node_ptr[:-1])
        fixed = settings.model_copy(update={"energy_scale": self.scale})
        found = AtomicEnergies.fit(fixed, table, rest, rows, None, isolated)
        return AtomicEnergies(found.element_energies + own, found.shift, self.scale)

    def reduced(self, table: Graphs, energies: np.ndarray) -> np.ndarray:
        """[S] sums that the network's atomic energies must reach for energies [S] in eV."""
        return (energies - self.offsets(table)) / self.scale

    def offsets(self, table: Graphs) -> np.ndarray:
        """[S] eV, part of the energy that is not from the network; NaN with unknown elements."""
        return np.add.reduceat(self.atom_offsets(table.numbers), table.node_ptr[:-1])

    def atom_offsets(self, numbers: np.ndarray) -> np.ndarray:
        """[A] eV, part of the atomic energies that is not from the network."""
        return self.element_energies[numbers] + self.shift

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError if an element was in no training structure."""
        unknown = [int(z) for z in np.unique(numbers) if np.isnan(self.element_energies[z])]
        if unknown:
            raise AtomloomError(
                f"the potential was not trained on {', '.join(SYMBOLS[z] for z in unknown)}",
                where="structures",
                todo="train it on structures with these elements",
            )

    def numbers(self) -> list[Any]:
        """Numbers that must be finite."""
        return [
            self.element_energies[~np.isnan(self.element_energies)],
            self.shift,
            self.scale,
        ]

    def divisors(self) -> list[Any]:
        """Numbers that must be above zero."""
        return [self.scale]

    def to_dict(self) -> dict[str, Any]:
        """Content for a model file."""
        known = {SYMBOLS[z]: e for z, e in enumerate(self.element_energies.tolist()) if e == e}
        return {"element_energies": known, "shift": self.shift, "scale": self.scale}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AtomicEnergies:
        """Inverse of `to_dict`."""
        return cls(_by_number(content["element_energies"]), content["shift"], content["scale"])


def _composition(table: Graphs, rows: np.ndarray) -> np.ndarray:
    """[R, 119] float64, number of atoms of each element in some structures."""
    counts = np.zeros((len(rows), ELEMENTS))
    for place, row in enumerate(rows):
        atoms = table.numbers[table.node_ptr[row] : table.node_ptr[row + 1]]
        counts[place] = np.bincount(atoms, minlength=ELEMENTS)
    return counts


def _elements(
    settings: PotentialTraining,
    counts: np.ndarray,
    energies: np.ndarray,
    isolated: Mapping[str, float],
) -> np.ndarray:
    present = np.flatnonzero(counts.any(axis=0))
    elements = np.full(ELEMENTS, np.nan)
    if settings.reference_energies == "none":
        elements[present] = 0.0
    elif settings.reference_energies == "isolated_atoms" and not isolated:
        raise AtomloomError(
            "the data set has no energies of isolated atoms",
            where="training.potential.reference_energies",
        )
    elif isinstance(settings.reference_energies, str):
        elements[present] = _by_number(isolated)[present]
        fitted = present[np.isnan(elements[present])]
        rest, columns = energies, counts[:, fitted]
        if isolated:  # references without binding, which the shift holds: fitted alongside them
            rest = energies - counts @ np.nan_to_num(elements)
            columns = np.column_stack([columns, counts.sum(axis=1)])
        # The min-norm solution where compositions do not separate elements.
        elements[fitted] = np.linalg.lstsq(columns, rest, rcond=None)[0][: len(fitted)]
    else:
        elements = _by_number(settings.reference_energies)
        missing = [SYMBOLS[int(z)] for z in present if np.isnan(elements[z])]
        if missing:
            raise AtomloomError(
                f"has no energy of {', '.join(missing)}",
                where="training.potential.reference_energies",
                todo="give one for every element of the training structures, or say `fit`",
            )
    return elements


def _force_scale(table: Graphs, forces: np.ndarray | None, rows: np.ndarray) -> float:
    if forces is None:
        raise AtomloomError(
            "`forces` needs forces among the targets", where="training.potential.energy_scale"
        )
    chosen = np.zeros(len(table), dtype=bool)
    chosen[rows] = True
    known = forces[np.repeat(chosen, np.diff(table.node_ptr))]
    known = known[np.isfinite(known)]
    if not len(known):
        raise AtomloomError("no training structure has forces", where="dataset.target")
    return float(np.sqrt(np.mean(known**2)))


def _by_number(energies: Mapping[str, float]) -> np.ndarray:
    elements = np.full(ELEMENTS, np.nan)
    for name, energy in energies.items():
        elements[atomic_number(name)] = energy
    return elements
