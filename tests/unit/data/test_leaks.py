"""The leak guard finds a structure that stands in two splits, however it is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from atomloom.data.leaks import find_duplicates
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Chunk:
    table: StructureTable


def salt(length: float, turn: float = 0.0, move: float = 0.0) -> Structure:
    """Rocksalt, conventional cell of `length` A, turned about z and moved along x."""
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    fractional = np.concatenate([corners, corners + np.array([0.5, 0, 0])])
    fractional[:, 0] += move
    c, s = np.cos(turn), np.sin(turn)
    cell = length * np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
    return Structure([11] * 4 + [17] * 4, fractional @ cell, cell, [True] * 3)


def primitive(length: float) -> Structure:
    """The same crystal by its primitive cell."""
    cell = length / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Structure([11, 17], [[0, 0, 0], [length / 2, 0, 0]], cell, [True] * 3)


def found(structures: list[Structure], splits: list[str], tolerance: float = TOLERANCE):
    table = StructureTable.from_structures(structures)
    frame = pd.DataFrame(
        {
            "record": np.arange(len(splits)) + 100,
            "id": [f"s{i}" for i in range(len(splits))],
            "hash": [row.tobytes() for row in table.hash],
            "split": splits,
            "formula": "NaCl",
            "chunk": 0,
            "row": np.arange(len(splits)),
        }
    )
    return find_duplicates([Chunk(table)], frame, tolerance)


def test_an_exact_duplicate_is_named_with_the_split_farther_from_the_test_first():
    pairs = found([salt(5.6), salt(6.0), salt(5.6)], ["test", "val", "train"])
    (row,) = pairs.itertuples()
    assert (row.record, row.id, row.split) == (102, "s2", "train")
    assert (row.other_id, row.other_split, row.kind) == ("s0", "test", "exact")


@pytest.mark.parametrize("twin", [salt(5.6, turn=0.4), salt(5.6, move=0.13), primitive(5.6)])
def test_a_turned_moved_or_otherwise_cut_cell_is_a_near_duplicate(twin):
    pairs = found([salt(5.6), twin], ["train", "test"])
    assert pairs["kind"].tolist() == ["near"]
    assert pairs["record"].tolist() == [100]
    assert found([salt(5.6), twin], ["train", "test"], tolerance=0.0).empty


def test_a_strained_cell_or_a_twin_in_the_same_split_is_none():
    assert found([salt(5.6), salt(5.7)], ["train", "test"]).empty
    assert found([salt(5.6), salt(5.6), salt(6.0)], ["train", "train", "test"]).empty
