"""Tables of structures: rows from either end, and arrays that are some or are none."""

from __future__ import annotations

import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.structures.structure import Structure
from atomloom.structures.table import FORMS, StructureTable, no_structures


def table(*counts: int) -> StructureTable:
    """Structures of so many atoms, in rows."""
    made = [
        Structure(
            np.arange(1, count + 1),
            np.arange(3.0 * count).reshape(count, 3),
            np.eye(3) * (place + 3.0),
            np.array([True, place % 2 == 0, False]),
        )
        for place, count in enumerate(counts)
    ]
    return StructureTable.from_structures(made)


def arrays_of(made: StructureTable) -> dict[str, np.ndarray]:
    return {name: getattr(made, name) for name in FORMS}


@pytest.mark.parametrize("counts", [(1,), (1, 1), (3, 1, 2), ()])
def test_structures_of_one_atom_and_more_are_structures(counts):
    assert no_structures(arrays_of(table(*counts))) == ""


def test_a_structure_without_atoms_is_none():
    arrays = arrays_of(table(2, 1))
    arrays["node_ptr"] = np.array([0, 0, 3])
    assert "node_ptr" in no_structures(arrays)


@pytest.mark.parametrize(("number", "fits"), [(0, False), (1, True), (118, True), (119, False)])
def test_atomic_numbers_are_those_of_elements(number, fits):
    arrays = arrays_of(table(2, 1))
    arrays["numbers"] = np.array([1, number, 2], dtype=np.uint8)
    assert (no_structures(arrays) == "") == fits


def test_rows_are_counted_from_either_end():
    made = table(3, 1, 2)
    assert [len(made[row]) for row in (0, 1, 2, -1, -2, -3)] == [3, 1, 2, 2, 1, 3]
    assert made[-1].pbc.tolist() == [True, True, False]
    np.testing.assert_array_equal(made[-2].cell, np.eye(3) * 4)
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            made[beyond]


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not a finite number"), (np.inf, "not a"), (1e300, "beyond")]
)
def test_an_atom_that_is_nowhere_is_named(value, reason):
    positions = np.zeros((3, 3))
    positions[1, 2] = value
    with pytest.raises(AtomloomError, match=f"coordinate of atom 1 is {reason}"):
        Structure(np.array([1, 1, 1]), positions, np.zeros((3, 3)), np.zeros(3, dtype=bool))
