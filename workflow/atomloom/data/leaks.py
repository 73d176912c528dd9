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
from atomloom.graphs.graph import LISTED_BY_DST, Graph
from atomloom.structures.table import StructureTable

NEIGHBORS = 12
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
    for _, same in frame.groupby("hash", sort=False):
        if same["split"].nunique() > 1:
            _note_pairs(pairs, same.index.to_numpy(), frame, "exact")
    if tolerance > 0:
        for a, b in _near(chunks, frame, tolerance):
            _note_pairs(pairs, np.array([a, b]), frame, "near")
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
    pairs: dict[tuple[int, int], str], members: np.ndarray, frame: pd.DataFrame, kind: str
) -> None:
    """Note each pair of members in different splits once, the one farther from the test first."""
    ranks = frame["split"].map(_RANK).to_numpy()[members]
    for low, a in zip(ranks, members, strict=True):
        nearer = members[ranks > low]
        if len(nearer):
            pairs.setdefault((int(a), int(nearer[0])), kind)


def _near(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> Iterator[tuple[int, int]]:
    """Pairs of index labels of `frame` that are near duplicates, in whatever splits."""
    splits = frame.groupby("formula")["split"].nunique()
    wanted = frame[frame["formula"].isin(splits.index[splits > 1])]
    spec = GraphSpec(neighbors="knn", max_neighbors=NEIGHBORS, shell_tolerance=0.0)
    described: dict[int, np.ndarray] = {}
    for chunk, rows in wanted.groupby("chunk"):
        graphs = build_graphs(chunks[chunk].table.take(rows["row"].to_numpy(np.int64)), spec)
        described |= {index: describe(graphs[i]) for i, index in enumerate(rows.index)}
    # A description's length depends on elements and neighbours: only equal lengths can be compared.
    length = wanted.index.map(lambda index: len(described[index]))
    for _, group in wanted.groupby([wanted["formula"], length]):
        members = group.index.to_numpy()
        tree = cKDTree(np.stack([described[index] for index in members]))
        for a, b in tree.query_pairs(tolerance, p=np.inf):
            yield members[a], members[b]


def describe(graph: Graph) -> np.ndarray:
    """[elements * k] mean distances (A) to the k nearest neighbours, element by element.

    k is twelve, or what the least connected atom of the element has.
    """
    own = (graph.listed & LISTED_BY_DST) > 0
    dst, distances = graph.dst[own], graph.distances[own]
    rows = []
    for element in np.unique(graph.numbers):
        atoms = np.flatnonzero(graph.numbers == element)
        nearest = [np.sort(distances[dst == atom])[:NEIGHBORS] for atom in atoms]
        width = min(len(found) for found in nearest)
        rows.append(np.mean([found[:width] for found in nearest], axis=0))
    return np.concatenate(rows)
