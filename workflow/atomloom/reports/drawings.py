"""Drawings of structures as SVG: atoms by element, bonds, and the edges of the periodic cell.

An orthographic view from slightly above, the third lattice vector upwards. It knows arrays of one
structure, nothing of files.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import cache

import numpy as np
from markupsafe import Markup

from atomloom.reports.formats import plural
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure

DRAWN_ATOMS = 250
"""Max number of atoms of a drawn structure, images at the faces of the cell included."""
NAMED_ATOMS = 60
"""Max number of atoms of a structure whose atoms are named under the pointer."""
WIDTH, HEIGHT, MARGIN = 200.0, 170.0, 6.0
BOND = 1.15
"""Max length of a bond in sums of covalent radii."""
SHELL = 1.3
"""Max length of a bond in distances of either atom to its nearest neighbour: large cations are not joined."""
BALL = 0.45
"""Drawn radius of an atom in covalent radii."""
FACE = 0.05
"""Atoms closer to a face of the cell than this (A) are drawn on the opposite face too."""
_TURN, _TILT = np.radians(22.0), np.radians(14.0)


def element_colour(number: int) -> str:
    """Colour of an element, as ASE draws it (Jmol's scheme)."""
    return _appearance()[0][number]


def draw_structure(structure: Structure, marked: Collection[int] = ()) -> Markup | None:
    """Drawing as an `<svg>` element, or None where there are too many atoms to tell apart.

    Args:
        structure: to draw; atoms outside the cell are drawn inside.
        marked: indices of atoms to be marked by a ring.
    """
    if len(structure) > DRAWN_ATOMS:
        return None
    atom, positions = _with_images(structure)
    if len(atom) > DRAWN_ATOMS:
        atom, positions = np.arange(len(structure)), _wrapped(structure)
    corners, edges = _cell_edges(structure)
    view = _view()
    seen, framed = positions @ view.T, corners @ view.T
    numbers = structure.numbers[atom].astype(int)
    colours, radii = _appearance()
    balls = BALL * radii[numbers]
    extent = np.concatenate(
        [seen[:, :2] - balls[:, None], seen[:, :2] + balls[:, None], framed[:, :2]]
    )
    low, high = extent.min(axis=0), extent.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    scale = float(min(38.0, (room / np.maximum(high - low, 1e-9)).min()))

    def place(points: np.ndarray) -> np.ndarray:
        """[P, 2] positions in the drawing, whose second axis points down."""
        middle = (points[:, :2] - (low + high) / 2) * scale
        return middle * [1, -1] + [WIDTH / 2, HEIGHT / 2]

    parts = _edge_lines(place(framed), framed[:, 2], edges)
    xy = place(seen)
    named = len(atom) <= NAMED_ATOMS
    shapes = _bond_shapes(xy, seen, radii[numbers])
    for row, (number, index) in enumerate(zip(numbers.tolist(), atom.tolist(), strict=True)):
        name = f"{SYMBOLS[number]}, atom {index + 1}" if named else ""
        size = max(2.0, scale * float(balls[row]))
        ball = _ball(xy[row, 0], xy[row, 1], size, colours[number], index in marked, name)
        shapes.append((float(seen[row, 2]), ball))
    parts += [shape for _, shape in sorted(shapes, key=lambda item: -item[0])]
    title = plural(len(structure), "atom")
    kind = ' class="named"' if named else ""
    return Markup(
        f'<svg{kind} viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _ball(x: float, y: float, radius: float, colour: str, marked: bool, name: str) -> str:
    kind = ' class="marked"' if marked else ""
    body = f'<circle{kind} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}"'
    return f"{body}><title>{name}</title></circle>" if name else f"{body}/>"


def _bond_shapes(xy: np.ndarray, seen: np.ndarray, radii: np.ndarray) -> list[tuple[float, str]]:
    """(depth, line) of all pairs of drawn atoms that are close enough for a bond."""
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = apart.min(axis=1, initial=np.inf)
    limit = np.minimum(
        BOND * (radii[:, None] + radii[None]), SHELL * np.minimum(nearest[:, None], nearest[None])
    )
    bonded = np.triu(apart < limit, k=1)
    return [
        (
            float(max(seen[one, 2], seen[other, 2])) + 1e-6,
            f'<path d="M{xy[one, 0]:.1f} {xy[one, 1]:.1f}L{xy[other, 0]:.1f} {xy[other, 1]:.1f}"/>',
        )
        for one, other in np.argwhere(bonded)
    ]


def _edge_lines(corners: np.ndarray, depth: np.ndarray, edges: list[tuple[int, int]]) -> list[str]:
    """Edges of the cell; those that meet at the farthest corner are behind, and dashed."""
    hidden = int(np.argmax(depth)) if len(edges) == 12 else -1
    return [
        f'<path class="{"behind" if hidden in (one, other) else "cell"}" '
        f'd="M{corners[one, 0]:.1f} {corners[one, 1]:.1f}L{corners[other, 0]:.1f} {corners[other, 1]:.1f}"/>'
        for one, other in edges
    ]


def _view() -> np.ndarray:
    """[3, 3] rows: to the right, upwards, away from the eye."""
    right = np.array([np.cos(_TURN), np.sin(_TURN), 0.0])
    away = np.array([-np.sin(_TURN) * np.cos(_TILT), np.cos(_TURN) * np.cos(_TILT), -np.sin(_TILT)])
    return np.stack([right, np.cross(right, away), away])


def _basis(structure: Structure) -> np.ndarray:
    """[3, 3] lattice vectors; unit vectors normal to the others where not periodic."""
    rows = structure.cell.copy()
    for axis in np.flatnonzero(~structure.pbc):
        rows[axis] = 0.0
        # The left singular vectors beyond the rank span what the others do not.
        _, sizes, directions = np.linalg.svd(rows)
        rows[axis] = directions[int((sizes > 1e-9).sum())]
    return rows


def _wrapped(structure: Structure) -> np.ndarray:
    """[N, 3] positions in A, inside the cell along its periodic vectors."""
    basis = _basis(structure)
    inside = structure.positions @ np.linalg.inv(basis)
    near = FACE / np.linalg.norm(basis, axis=1)
    inside -= np.where(structure.pbc, np.floor(inside + near), 0.0)
    return inside @ basis


def _with_images(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Indices [P] and positions [P, 3] of atoms, with images of those on faces of the cell."""
    basis = _basis(structure)
    positions = _wrapped(structure)
    inside = positions @ np.linalg.inv(basis)
    on_face = structure.pbc & (np.abs(inside) * np.linalg.norm(basis, axis=1) < FACE)
    atom, found = [np.arange(len(structure))], [positions]
    for shift in itertools.product((0, 1), repeat=3):
        wanted = np.array(shift, dtype=bool)
        if wanted.any() and (rows := np.flatnonzero((on_face | ~wanted).all(axis=1))).size:
            atom.append(rows)
            found.append(positions[rows] + np.array(shift) @ basis)
    return np.concatenate(atom), np.concatenate(found)


def _cell_edges(structure: Structure) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Corners [C, 3] of the cell along its periodic vectors, and pairs of them that are edges."""
    vectors = structure.cell[structure.pbc]
    shifts = list(itertools.product((0, 1), repeat=len(vectors)))
    corners = (
        np.array([np.array(shift) @ vectors for shift in shifts])
        if len(vectors)
        else np.zeros((0, 3))
    )
    edges = [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(enumerate(shifts), 2)
        if sum(map(abs, np.subtract(a, b))) == 1
    ]
    return corners, edges


@cache
def _appearance() -> tuple[list[str], np.ndarray]:
    """Colours and covalent radii (A) by atomic number."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.colors import to_hex

    colours = [to_hex(colour) for colour in jmol_colors]
    colours += [colours[-1]] * (len(SYMBOLS) - len(colours))
    radii = np.full(len(SYMBOLS), 1.5)
    radii[: len(covalent_radii)] = covalent_radii[: len(SYMBOLS)]
    return colours, radii
