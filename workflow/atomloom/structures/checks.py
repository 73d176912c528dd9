"""Checks that send a structure to quarantine: overlapping atoms and empty cells.

It knows thresholds and geometry, nothing of files. The search is compiled, and exact also for skewed
cells and for cells shorter than the distance looked for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from atomloom.compiled import njit
from atomloom.config.dataset import Checks
from atomloom.errors import AtomloomError
from atomloom.structures.structure import Structure

TOO_VAST = "A^3 per atom, more than"
"""Words in the reason of a structure with too much volume."""
_THIN = 20
"""Ratio of the distance looked for to the thickness of a cell above which the cell is reduced first."""


def check_structure(structure: Structure, checks: Checks) -> None:
    """Refuse a structure with overlapping atoms or an almost empty cell.

    Args:
        structure: N atoms, in A.
        checks: thresholds, see `atomloom.config.Checks`.

    Raises:
        AtomloomError: when two atoms (or an atom and its own image) are closer than
            `min_distance`, or a cell periodic in three directions has more than
            `max_volume_per_atom` for each atom.
    """
    if structure.pbc.all():
        per_atom = structure.volume / len(structure)
        if not per_atom <= checks.max_volume_per_atom:
            raise AtomloomError(
                f"a volume of {per_atom:.6g} {TOO_VAST} {checks.max_volume_per_atom:g}",
                todo="a molecule in a box? set the option `box: molecule`",
            )
    if checks.min_distance > 0:
        first, second, distance = closest_pair(structure, checks.min_distance)
        if first < 0:
            return
        if first == second:
            raise AtomloomError(f"atom {first} is {distance:.3g} A from its own periodic image")
        raise AtomloomError(f"atoms {first} and {second} are {distance:.3g} A apart")


def closest_pair(structure: Structure, within: float) -> tuple[int, int, float]:
    """Closest pair of atoms, periodic images included, if nearer than `within` (A).

    Returns:
        (i, j, distance) with i <= j, i == j for an atom and its own image; (-1, -1, inf) if no pair
        is that close. Where a cell is so thin that it has too many images to examine, and the
        lattice has a vector shorter than `within`, atom 0 and that image stand for all pairs.
    """
    pbc = structure.pbc
    shortest = _shortest(structure.cell, pbc)
    if shortest < within / _THIN:
        return 0, 0, shortest
    box, fractional, heights = _frame(structure)
    if any(p and within > _THIN * h for h, p in zip(heights, pbc, strict=True)):
        from ase.geometry import minkowski_reduce

        cell = np.ascontiguousarray(minkowski_reduce(structure.cell, pbc)[0])
        shortest = _shortest(cell, pbc)
        if shortest < within:
            return 0, 0, shortest
        box, fractional, heights = _frame(replace(structure, cell=cell))
    if len(structure) > 16:
        spread = fractional.max(axis=0) - fractional.min(axis=0)
        lengths = np.where(pbc, heights, spread * heights)
        axis = int(np.argmax(lengths))
        order = np.argsort(fractional[:, axis])
    else:
        axis = 0
        order = np.argsort(fractional[:, 0])
    reach = [math.floor(within / h + 0.5) if p else 0 for h, p in zip(heights, pbc, strict=True)]
    own = [math.floor(within / h) if p else 0 for h, p in zip(heights, pbc, strict=True)]
    first, second, squared = _closest(
        fractional,
        order,
        axis,
        within / heights[axis],
        box,
        pbc,
        np.array(reach),
        np.array(own),
        within * within,
    )
    return int(first), int(second), math.sqrt(squared) if first >= 0 else math.inf


def _shortest(cell: np.ndarray, pbc: np.ndarray) -> float:
    """Length of the shortest periodic vector of a cell as given; infinite without one."""
    lengths = [math.hypot(*row) for row, p in zip(cell.tolist(), pbc.tolist(), strict=True) if p]
    return min(lengths, default=math.inf)


def _frame(structure: Structure) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Box whose non-periodic directions are normal to the others and 1 A long, [N, 3] coordinates in it
    (wrapped where periodic), and its three heights."""
    box = structure.cell.tolist()
    pbc = structure.pbc.tolist()
    periodic = [axis for axis in range(3) if pbc[axis]]
    if len(periodic) == 2:
        (free,) = {0, 1, 2} - set(periodic)
        box[free] = _unit(_cross(box[periodic[0]], box[periodic[1]]))
    elif len(periodic) == 1:
        given = box[periodic[0]]
        helper = [0.0, 0.0, 0.0]
        helper[min(range(3), key=lambda k: abs(given[k]))] = 1.0
        first, second = (axis for axis in range(3) if axis != periodic[0])
        box[first] = _unit(_cross(given, helper))
        box[second] = _unit(_cross(given, box[first]))
    elif not periodic:
        return np.eye(3), structure.positions, [1.0, 1.0, 1.0]
    normals = [_cross(box[1], box[2]), _cross(box[2], box[0]), _cross(box[0], box[1])]
    volume = sum(x * y for x, y in zip(box[0], normals[0], strict=True))
    heights = [abs(volume) / math.hypot(*normal) for normal in normals]
    fractional = structure.positions @ (np.array(normals).T / volume)
    fractional[:, periodic] -= np.floor(fractional[:, periodic])
    return np.array(box), fractional, heights


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector]


@njit(cache=True)
def _closest(
    fractional: np.ndarray,
    order: np.ndarray,
    axis: int,
    thick: float,
    box: np.ndarray,
    pbc: np.ndarray,
    reach: np.ndarray,
    own: np.ndarray,
    best: float,
) -> tuple[int, int, float]:
    """Closest pair below the squared distance `best`; (-1, -1, best) where there is none.

    `order` sorts the atoms along `axis`, so that a slice of thickness `thick` (a fraction) holds
    all atoms that can be near one. `reach` and `own` are the numbers of images in either direction that
    can come near: of another atom, whose nearest image is at most half a cell away, and of the atom itself.
    """
    count = len(fractional)
    first, second = -1, -1
    for u in range(-own[0], own[0] + 1):
        for v in range(-own[1], own[1] + 1):
            for w in range(-own[2], own[2] + 1):
                if u == 0 and v == 0 and w == 0:
                    continue
                x = u * box[0, 0] + v * box[1, 0] + w * box[2, 0]
                y = u * box[0, 1] + v * box[1, 1] + w * box[2, 1]
                z = u * box[0, 2] + v * box[1, 2] + w * box[2, 2]
                squared = x * x + y * y + z * z
                if squared < best:
                    best, first, second = squared, 0, 0
    sliced = thick < 0.5
    for p in range(count):
        i = order[p]
        steps = count if sliced and pbc[axis] else count - p
        for q in range(1, steps):
            wraps = p + q >= count
            j = order[p + q - count] if wraps else order[p + q]
            ahead = fractional[j, axis] - fractional[i, axis] + (1.0 if wraps else 0.0)
            if ahead > thick and (sliced or not pbc[axis]):
                break
            a = fractional[i, 0] - fractional[j, 0]
            b = fractional[i, 1] - fractional[j, 1]
            c = fractional[i, 2] - fractional[j, 2]
            if pbc[0]:
                a -= math.floor(a + 0.5)
            if pbc[1]:
                b -= math.floor(b + 0.5)
            if pbc[2]:
                c -= math.floor(c + 0.5)
            for u in range(-reach[0], reach[0] + 1):
                for v in range(-reach[1], reach[1] + 1):
                    for w in range(-reach[2], reach[2] + 1):
                        x = (a + u) * box[0, 0] + (b + v) * box[1, 0] + (c + w) * box[2, 0]
                        y = (a + u) * box[0, 1] + (b + v) * box[1, 1] + (c + w) * box[2, 1]
                        z = (a + u) * box[0, 2] + (b + v) * box[1, 2] + (c + w) * box[2, 2]
                        squared = x * x + y * y + z * z
                        if squared < best:
                            best, first, second = squared, min(i, j), max(i, j)
    return first, second, best
