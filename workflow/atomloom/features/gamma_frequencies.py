"""Source `gamma_frequencies`: vibrational frequencies at the Gamma point, by finite displacements of atoms.

Of each cell as given (a small one repeated, so that its spectrum has modes of the zone boundary, too), atoms
that symmetry cannot map onto each other are displaced, in as few directions as symmetry allows, forwards and
backwards; a calculator gives the forces. The other second derivatives follow by symmetry (as in
Parlinski, Li and Kawazoe, Phys. Rev. Lett. 78, 4063 (1997)). Three translations are projected out of the
mass-weighted Hessian; an imaginary frequency counts as negative. Displaced images of many structures are
evaluated at once.

Legend: N atoms of a cell, M rows of equations for one atom, O symmetry operations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from atomloom.config.features import Feature
from atomloom.errors import AtomloomError
from atomloom.features.base import Described
from atomloom.potentials.evaluation import structure_table
from atomloom.potentials.teachers import Label, Teach, open_teacher
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

STATISTICS = {
    "max": "highest frequency in cm^-1",
    "min": "lowest frequency",
    "mean": "mean frequency",
    "std": "standard deviation of the frequencies",
    "q10": "frequency below which a tenth of the modes are",
    "q25": "the same for a quarter",
    "q50": "the same for half",
    "q75": "the same for three quarters",
    "q90": "the same for nine tenths",
}
"""Numbers of the spectrum, with their meanings; the three translations are not in it."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
SYMMETRY_TOLERANCE = 1e-4
"""Distance in A within which a symmetry operation maps atoms onto atoms."""
IMAGES = 256
"""Number of displaced images from which no further structure joins an evaluation."""


class GammaFrequencies:
    """Statistics of the frequencies of a structure, by a calculator."""

    columns = tuple(STATISTICS)
    costly = True

    def __init__(self, feature: Feature) -> None:
        """Args:
            feature: of the config.

        Raises:
            AtomloomError: as `potentials.teachers.open_teacher`.
        """
        self._feature = feature
        self._teach = open_teacher(feature.teacher, stress=False)

    def describe(self, table: StructureTable) -> Iterator[Described]:
        """Iterate over the statistics of structures, in order."""
        waiting: list[_Vibrations | Described] = []
        images = 0
        for row in range(len(table)):
            begun = time.perf_counter()
            try:
                one = _Vibrations.of(table[row], self._feature)
            except AtomloomError as error:
                waiting.append(Described(seconds=time.perf_counter() - begun, failure=str(error)))
            else:
                waiting.append(one)
                images += len(one.images)
            if images >= IMAGES or len(waiting) >= IMAGES:
                yield from _described(self._teach, waiting)
                waiting, images = [], 0
        yield from _described(self._teach, waiting)


def frequencies(teach: Teach, structure: Structure, feature: Feature) -> np.ndarray:
    """[3 N - 3] frequencies of one structure in cm^-1, in ascending order; imaginary ones are negative.

    Raises:
        AtomloomError: when a calculation fails, or there are none.
    """
    one = _Vibrations.of(structure, feature)
    return one.frequencies(list(teach(structure_table(one.images))))


def _described(teach: Teach, waiting: Sequence[_Vibrations | Described]) -> Iterator[Described]:
    """Evaluate the images of some structures together."""
    cells = [one for one in waiting if isinstance(one, _Vibrations)]
    found: list[Sequence[Label] | AtomloomError]
    try:
        labels = list(_labels(teach, [image for one in cells for image in one.images]))
        ends = np.cumsum([len(one.images) for one in cells])
        found = [labels[end - len(one.images) : end] for one, end in zip(cells, ends, strict=True)]
    except AtomloomError:
        # One of them is refused: find it by asking for each by itself.
        found = [_alone(teach, one) for one in cells]
    answers = iter(found)
    for one in waiting:
        yield one if isinstance(one, Described) else _statistics(one, next(answers))


def _labels(teach: Teach, images: Sequence[Structure]) -> Iterator[Label]:
    return teach(structure_table(images)) if images else iter(())


def _alone(teach: Teach, one: _Vibrations) -> Sequence[Label] | AtomloomError:
    try:
        return list(_labels(teach, one.images))
    except AtomloomError as error:
        return error


def _statistics(one: _Vibrations, labels: Sequence[Label] | AtomloomError) -> Described:
    """Numbers of the spectrum."""
    begun = time.perf_counter()
    if isinstance(labels, AtomloomError):
        return Described(seconds=one.seconds, failure=str(labels))
    seconds = one.seconds + sum(label.seconds for label in labels)
    try:
        found = one.frequencies(labels)
    except AtomloomError as error:
        return Described(seconds=seconds, failure=str(error))
    values = [found.max(), found.min(), found.mean(), found.std(), *np.quantile(found, QUANTILES)]
    return Described(np.array(values), seconds + time.perf_counter() - begun)


@dataclass(frozen=True, eq=False)
class _Vibrations:
    """Displaced images of one cell, and what is needed to make frequencies of their forces."""

    cell: Structure
    symmetry: _Symmetry
    displaced: Sequence[tuple[int, np.ndarray]]
    """Atom and displacement [3] in A of each image."""
    images: Sequence[Structure]
    seconds: float
    """Time that it took to make the images."""

    @classmethod
    def of(cls, structure: Structure, feature: Feature) -> _Vibrations:
        """Prepare the images of a structure.

        Raises:
            AtomloomError: when it has no vibrations.
        """
        begun = time.perf_counter()
        cell = structure
        if len(structure) <= feature.supercell_max_atoms:
            cell = repeated(structure, feature.supercell)
        if len(cell) == 1:
            raise AtomloomError("a single atom has no vibrations")
        symmetry = _Symmetry.of(cell)
        displaced = [
            (atom, feature.displacement * direction)
            for atom in symmetry.representatives
            for direction in symmetry.directions(atom)
        ]
        images = [_displaced(cell, atom, vector) for atom, vector in displaced]
        return cls(cell, symmetry, displaced, images, time.perf_counter() - begun)

    def frequencies(self, labels: Sequence[Label]) -> np.ndarray:
        """[3 N - 3] frequencies in cm^-1 by the labels of the images, in ascending order.

        Raises:
            AtomloomError: when one of them is a failure.
        """
        failure = next((label.failure for label in labels if label.failure), "")
        if failure:
            raise AtomloomError(failure)
        forces = [label.forces for label in labels if label.forces is not None]
        hessian = self.symmetry.hessian(self.displaced, forces)
        if not np.isfinite(hessian).all():
            raise AtomloomError("forces are not finite")
        return frequencies_of(hessian, self.cell.numbers)


def frequencies_of(hessian: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """[3 N - 3] frequencies in cm^-1, in ascending order, without the translations of all atoms.

    Args:
        hessian: [N, 3, N, 3] second derivatives of the energy in eV/A^2.
        numbers: [N] atomic numbers.
    """
    from ase import units
    from ase.data import atomic_masses

    count = 3 * len(numbers)
    matrix = hessian.reshape(count, count)
    roots = np.repeat(np.sqrt(atomic_masses[numbers]), 3)
    weighted = (matrix + matrix.T) / 2 / np.outer(roots, roots)
    translations = roots[:, None] * np.tile(np.eye(3), (len(numbers), 1))
    # Columns of an orthogonal matrix beyond the first three: everything but the translations.
    others = np.linalg.qr(translations, mode="complete")[0][:, 3:]
    squares = np.linalg.eigvalsh(others.T @ weighted @ others)
    per_second = np.sqrt(units._e / units._amu) * 1e10
    unit = per_second / (2 * np.pi * units._c * 100)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * unit


def repeated(structure: Structure, times: tuple[int, int, int]) -> Structure:
    """Structure repeated along its periodic vectors."""
    counts = np.where(structure.pbc, times, 1)
    steps = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1).reshape(-1, 3)
    shifts = steps @ structure.cell
    return Structure(
        numbers=np.tile(structure.numbers, len(shifts)),
        positions=(shifts[:, None] + structure.positions).reshape(-1, 3),
        cell=structure.cell * counts[:, None],
        pbc=structure.pbc,
    )


def _displaced(cell: Structure, atom: int, vector: np.ndarray) -> Structure:
    positions = cell.positions.copy()
    positions[atom] += vector
    return Structure(cell.numbers, positions, cell.cell, cell.pbc)


# --- symmetry ---


@dataclass(frozen=True, eq=False)
class _Symmetry:
    """Symmetry operations of a cell; where it is not periodic in three directions, identity alone."""

    rotations: np.ndarray
    """[O, 3, 3], by which Cartesian vectors (columns) are rotated."""
    images: np.ndarray
    """[O, N], atom onto which an operation maps each atom."""

    @classmethod
    def of(cls, cell: Structure) -> _Symmetry:
        """Find the operations of a cell."""
        alone = cls(np.eye(3)[None], np.arange(len(cell))[None])
        if not cell.pbc.all():
            return alone
        import spglib

        fractional = np.linalg.solve(cell.cell.T, cell.positions.T).T
        try:
            found = spglib.get_symmetry(
                (cell.cell.tolist(), fractional.tolist(), cell.numbers.tolist()),
                symprec=SYMMETRY_TOLERANCE,
            )
        except spglib.SpglibError:  # without symmetry it takes longer
            return alone
        if found is None:
            return alone
        kept, images = [], []
        for turn, shift in zip(found["rotations"], found["translations"], strict=True):
            image = _image_of(cell, fractional @ turn.T + shift, fractional)
            if image is None:
                return alone
            kept.append(cell.cell.T @ turn @ np.linalg.inv(cell.cell.T))
            images.append(image)
        whole = cls(np.array(kept), np.array(images))
        # Operations within a tolerance may be no group: then derivatives of some atom would follow from no other's.
        reached = np.unique(whole.images[:, whole.representatives])
        identity = (whole.images == alone.images).all(axis=1).any()
        return whole if identity and len(reached) == len(cell) else alone

    @property
    def representatives(self) -> list[int]:
        """One of each set of atoms that operations map onto each other."""
        return np.unique(self.images.min(axis=0)).tolist()

    def directions(self, atom: int) -> list[np.ndarray]:
        """Unit vectors along which an atom is displaced: with those that follow by symmetry they span space, and
        each has its opposite."""
        turns = self.rotations[self.images[:, atom] == atom]
        chosen: list[np.ndarray] = []
        spanned = np.zeros((0, 3))
        while (rank := _rank(spanned)) < 3:
            gains = [_rank(np.concatenate([spanned, turns @ one])) - rank for one in _CANDIDATES]
            best = _CANDIDATES[int(np.argmax(gains))]
            spanned = np.concatenate([spanned, turns @ best])
            chosen.append(best)
            if np.abs(turns @ best + best).max(axis=1).min() > 1e-6:
                chosen.append(-best)
        return chosen

    def hessian(
        self, displaced: Sequence[tuple[int, np.ndarray]], forces: Sequence[np.ndarray]
    ) -> np.ndarray:
        """[N, 3, N, 3] second derivatives of the energy in eV/A^2 by the forces [N, 3] of displaced images."""
        count = self.images.shape[1]
        hessian = np.zeros((count, 3, count, 3))
        for atom in self.representatives:
            rows, answers = [], []
            for (moved, vector), force in zip(displaced, forces, strict=True):
                if moved != atom:
                    continue
                for place in np.flatnonzero(self.images[:, atom] == atom):
                    turned = np.empty_like(force)
                    turned[self.images[place]] = force @ self.rotations[place].T
                    rows.append(self.rotations[place] @ vector)
                    answers.append(turned.ravel())
            # [3, N, 3]; what forces do not change with displacement drops out, as each has its opposite.
            own = -(np.linalg.pinv(np.array(rows)) @ np.array(answers)).reshape(3, count, 3)
            done = set()
            for turn, image in zip(self.rotations, self.images, strict=True):
                if image[atom] not in done:
                    done.add(image[atom])
                    hessian[image[atom]][:, image] = np.einsum("ab,bnc,dc->and", turn, own, turn)
        return hessian


_CANDIDATES = [
    np.array(vector) / np.linalg.norm(vector)
    for vector in [
        *([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]),
        *([1, -1, 0], [1, 0, -1], [0, 1, -1], [1, 1, 1], [1, 2, 3]),
    ]
]
"""Directions that are tried, simple ones first."""


def _rank(vectors: np.ndarray) -> int:
    """Number of independent directions; those that are nearly dependent do not count."""
    return int(np.linalg.matrix_rank(vectors, tol=0.1)) if len(vectors) else 0


def _image_of(cell: Structure, moved: np.ndarray, fractional: np.ndarray) -> np.ndarray | None:
    """[N] atoms at the places of moved ones; None if an operation does not map atoms onto atoms."""
    apart = moved[:, None] - fractional[None]
    apart -= np.rint(apart)
    distances = np.linalg.norm(apart @ cell.cell, axis=2)
    image = distances.argmin(axis=1)
    near = distances[np.arange(len(image)), image] < 10 * SYMMETRY_TOLERANCE
    same = np.array_equal(cell.numbers[image], cell.numbers)
    return image if near.all() and same and len(np.unique(image)) == len(image) else None
