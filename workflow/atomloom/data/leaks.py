"""The leak guard: structures that stand in two splits, exactly or nearly, found before training.

Exact duplicates have one content hash. Near duplicates have one reduced composition and, for the
atoms of each element, the same mean distances to their twelve nearest neighbours to a tolerance:
a description that no rotation, translation, permutation or choice of cell changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from atomloom.config import GraphSpec
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import LISTED_BY_DST, GraphTable
from atomloom.structures.table import StructureTable

NEIGHBORS = 12
ELEMENTS = 256
AT_A_TIME = 2000
"""Structures that are described together."""
_RANK = {"train": 0, "val": 1, "test": 2}


class HasTable(Protocol):
    """Anything that holds a table of structures."""

    @property
    def table(self) -> StructureTable: ...


def find_duplicates(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> pd.DataFrame:
    """Pairs of structures in different splits that are the same.

    Args:
        chunks: tables of structures.
        frame: columns record, id, hash, split, formula, chunk and row (place in `chunks`).
        tolerance: largest difference of mean neighbour distances, A; 0 for exact duplicates only.

    Returns:
        Columns record, id, split, other_id, other_split, kind (`exact` or `near`). The first one of
        a pair stands farther from the test (training before validation), so it is the one to take
        out.
    """
    pairs: dict[tuple[int, int], str] = {}
    ranks = frame["split"].map(_RANK).to_numpy()
    repeated = frame[frame["hash"].duplicated(keep=False)]
    for _, same in repeated.groupby("hash", sort=False):
        _note_pairs(pairs, same.index.to_numpy(), ranks, "exact")
    if tolerance > 0:
        for a, b in _near(chunks, frame, tolerance):
            if ranks[a] != ranks[b]:
                _note_pairs(pairs, np.array([a, b]), ranks, "near")
    rows = [
        {
            "record": frame["record"][a],
            "id": frame["id"][a],
            "split": frame["split"][a],
            "other_id": frame["id"][b],
            "other_split": frame["split"][b],
            "kind": kind,
        }
        for (a, b), kind in pairs.items()
    ]
    columns = ["record", "id", "split", "other_id", "other_split", "kind"]
    result = pd.DataFrame(rows, columns=columns)
    return result.astype({"record": np.int64})


def _note_pairs(
    pairs: dict[tuple[int, int], str], members: np.ndarray, ranks: np.ndarray, kind: str
) -> None:
    """Note each pair of members in different splits once, the one farther from the test first."""
    own = ranks[members]
    for low, a in zip(own, members, strict=True):
        nearer = members[own > low]
        if len(nearer):
            pairs.setdefault((int(a), int(nearer[0])), kind)


def _near(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> Iterator[tuple[int, int]]:
    """Pairs of index labels of `frame` that are near duplicates, in whatever splits."""
    splits = frame.groupby("formula")["split"].nunique()
    wanted = frame[frame["formula"].isin(splits.index[splits > 1])]
    spec = GraphSpec(neighbors="knn", max_neighbors=NEIGHBORS, shell_tolerance=0.0)
    values, lengths = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    labels = [np.zeros(0, dtype=np.int64)]
    for chunk, rows in wanted.groupby("chunk"):
        places = rows["row"].to_numpy(np.int64)
        for start in range(0, len(places), AT_A_TIME):
            table = chunks[chunk].table.take(places[start : start + AT_A_TIME])
            described, counts = describe(build_graphs(table, spec))
            values.append(described)
            lengths.append(counts)
        labels.append(rows.index.to_numpy(np.int64))
    whole, length, label = (np.concatenate(parts) for parts in (values, lengths, labels))
    first = np.cumsum(length) - length
    formula = wanted["formula"].loc[label].to_numpy()
    # A description's length depends on elements and neighbours: only equal lengths can be compared.
    places = pd.DataFrame({"formula": formula, "length": length, "first": first, "label": label})
    for (_, count), group in places.groupby(["formula", "length"]):
        if len(group) < 2:
            continue
        points = whole[group["first"].to_numpy()[:, None] + np.arange(count)]
        members = group["label"].to_numpy()
        for a, b in cKDTree(points).query_pairs(tolerance, p=np.inf):
            yield members[a], members[b]


def describe(table: GraphTable) -> tuple[np.ndarray, np.ndarray]:
    """Mean distances (A) to the k nearest neighbours, element by element, of each structure.

    k is twelve, or what the least connected atom of the element has.

    Returns:
        The descriptions one behind the other, float64, and how many numbers each has, [S] int64.
    """
    own = (table.listed & LISTED_BY_DST) > 0
    structure = np.repeat(np.arange(len(table)), np.diff(table.edge_ptr))[own]
    start = table.node_ptr[structure]
    dst, src = table.dst[own].astype(np.int64) + start, table.src[own].astype(np.int64) + start
    offset = np.einsum("ei,eij->ej", table.shift[own].astype(np.float64), table.cell[structure])
    vectors = table.positions[src] + offset - table.positions[dst]
    distance = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    order = np.lexsort((distance, dst))
    degree = np.bincount(dst, minlength=len(table.numbers))
    rank = np.arange(len(dst)) - np.repeat(np.cumsum(degree) - degree, degree)
    nearest = np.zeros((len(table.numbers), NEIGHBORS))
    kept = rank < NEIGHBORS
    nearest[dst[order][kept], rank[kept]] = distance[order][kept]

    # Groups: the atoms of one element in one structure, structures in order, elements ascending.
    of_atom = np.repeat(np.arange(len(table)), np.diff(table.node_ptr))
    group_of, group = np.unique(of_atom * ELEMENTS + table.numbers, return_inverse=True)
    width = np.full(len(group_of), NEIGHBORS)
    np.minimum.at(width, group, degree)
    sums = np.zeros((len(group_of), NEIGHBORS))
    np.add.at(sums, group, nearest)
    means = sums / np.bincount(group)[:, None]
    counts = np.bincount(group_of // ELEMENTS, weights=width, minlength=len(table))
    return means[np.arange(NEIGHBORS) < width[:, None]], counts.astype(np.int64)
