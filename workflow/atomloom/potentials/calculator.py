"""AtomloomCalculator: trained potentials as an ASE calculator.

It translates between the names, orders and signs of ASE and atomloom, and keeps neighbours while atoms
move; evaluation is in `committee`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs

from atomloom.errors import AtomloomError
from atomloom.potentials.committee import Committee, Evaluation, Source
from atomloom.potentials.evaluation import calculate_batch, plain_structure
from atomloom.potentials.verlet_list import VerletList
from atomloom.targets import TargetSpec

KEYWORDS = ("device", "dtype", "skin", "atoms", "directory", "label", "restart")
MOST_SKIN = 10
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""xx, yy, zz, yz, xz, xy."""


class AtomloomCalculator(Calculator):
    """ASE calculator for energies, forces, stress and atomic energies by a potential or a committee.
    Further targets of its training are results by their names, such as ASE's `dipole`, `magmoms`, `charges`.

    Results are those of ASE (eV, eV/A, eV/A^3; stress in Voigt order, positive under tension). With
    several potentials they are means, and `results` also has the standard deviations `energy_std`,
    `forces_std` and `stress_std`. Neighbours are kept while atoms move less than half the skin
    relative to the deformation of their cell, so that dynamics and relaxations, also of cells,
    seldom search.

    Args:
        potential: a model file, or several for a committee.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float32` or `float64`; by default that of the file. Choose `float64` where rounding
            matters, as in long dynamics at constant energy and in tight relaxations.
        skin: A, distance beyond the cutoff within which neighbours are searched; 0 to search at
            every step.
        options: those of ASE's calculators, such as `directory` and `label`.

    Raises:
        AtomloomError: when a file is not a potential, potentials do not fit together, or a keyword is
            unknown.
    """

    name = "atomloom"
    implemented_properties = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "energy_std",
        "forces_std",
        "stress_std",
    ]
    discard_results_on_any_change = True

    def __init__(
        self,
        potential: Source | Sequence[Source] | Committee,
        device: str = "auto",
        *,
        dtype: str | None = None,
        skin: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.committee = Committee.open(potential, device, dtype)
        self._direct = self.committee.members[0].card.direct
        self.implemented_properties = [
            *type(self).implemented_properties,
            *(spec.name + ending for spec in self._direct for ending in ("", "_std")),
        ]
        self.skin = float(skin)
        if not 0 <= self.skin <= MOST_SKIN:
            raise AtomloomError(
                f"should be a length from 0 to {MOST_SKIN} A, not {skin}",
                where="AtomloomCalculator: skin",
            )
        self._graphs: VerletList | None = None

    def set(self, **parameters: Any) -> dict[str, Any]:
        """Refuse all parameters: a potential has none to set.

        Raises:
            AtomloomError: for any parameter, also of the constructor, which ASE would silently keep.
        """
        for word in parameters:
            close = difflib.get_close_matches(word, KEYWORDS, n=1)
            raise AtomloomError(
                f"no keyword `{word}`" + (f", did you mean `{close[0]}`?" if close else ""),
                where="AtomloomCalculator",
                todo=f"its constructor knows {', '.join(KEYWORDS)}",
            )
        return {}

    @property
    def searches(self) -> int:
        """Number of neighbour searches for the current atoms."""
        return 0 if self._graphs is None else int(self._graphs.searches.sum())

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all results at once, whatever is requested: forces and stress are one derivative.

        Raises:
            AtomloomError: when the potential was not trained on some element, a coordinate is not
                finite, or the cell has collapsed.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        assert isinstance(atoms, Atoms)
        graphs = self._graphs_of(atoms)
        batch = graphs.batch(atoms.positions, atoms.cell.array[None])
        output = self.committee.ask(batch, forces=True, stress=atoms.cell.rank == 3)
        found = self.committee.read([output], graphs.numbers, graphs.node_ptr)
        self.results = _results(found, 0, atoms.cell.rank == 3, self._direct)

    def calculate_batch(self, structures: Sequence[Any]) -> list[dict[str, Any]]:
        """Compute results of structures of any sizes, in one forward and one backward pass for all.

        The calculator's own results and neighbours are not changed.

        Args:
            structures: of ASE, atomloom, pymatgen or jarvis-tools.

        Returns:
            The content of `results` for each.

        Raises:
            AtomloomError: as `calculate`.
        """
        own = [plain_structure(item) for item in structures]
        crystals = [bool(structure.volume) for structure in own]
        found = calculate_batch(self.committee, own, forces=True, stress=any(crystals))
        return [
            _results(found, place, stress, self._direct) for place, stress in enumerate(crystals)
        ]

    def export_properties(self) -> Properties:
        """Results that ASE knows."""
        return Properties({n: value for n, value in self.results.items() if n in all_outputs})

    def _graphs_of(self, atoms: Atoms) -> VerletList:
        """Graphs of these atoms; those of the last call if only positions or cell differ."""
        graphs = self._graphs
        if graphs is None or not (
            np.array_equal(graphs.numbers, atoms.numbers)
            and np.array_equal(graphs.pbc[0], atoms.pbc)
        ):
            self.committee.require_elements(atoms.numbers)
            graphs = self._graphs = VerletList(
                self.committee.graph,
                np.array([0, len(atoms)]),
                atoms.numbers,
                atoms.pbc,
                self.skin,
                self.committee.dtype,
                self.committee.device,
            )
        return graphs


def _results(
    found: Evaluation, structure: int, stress: bool, direct: Sequence[TargetSpec]
) -> dict[str, Any]:
    """ASE's results of one structure, with stress if its cell has a volume; `direct` are further targets."""
    atoms = found.atoms(structure)
    energy = float(found.energy[structure])
    assert found.forces is not None  # always requested
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "energies": found.atom_energies[atoms],
        "forces": found.forces[atoms],
    }
    if stress:
        assert found.stress is not None
        results["stress"] = found.stress[structure][VOIGT]
    for spec in direct:
        place = atoms if spec.per == "atom" else structure
        results[spec.name] = found.heads[spec.name][place]
        if found.deviation is not None:
            results[f"{spec.name}_std"] = found.deviation.heads[spec.name][place]
    deviation = found.deviation
    if deviation is not None:
        results["energy_std"] = float(deviation.energy[structure])
        assert deviation.forces is not None
        results["forces_std"] = deviation.forces[atoms]
        if stress:
            assert deviation.stress is not None
            results["stress_std"] = deviation.stress[structure][VOIGT]
    return results
