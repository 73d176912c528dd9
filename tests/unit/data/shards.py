"""Graphs on disk, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.config import GraphSpec
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore, write_graphs


def on_disk(
    folder: Path, table: GraphTable, cuts: list[int], *, index: bool = True, seed: int = 0
) -> OnDiskGraphs:
    """The graphs of a table in shards cut before these rows; their order by name is not that of rows."""
    names = np.random.default_rng(seed).permutation(len(cuts) + 1)
    borders = [0, *cuts, len(table)]
    frames = []
    for name, begin, end in zip(names, borders[:-1], borders[1:], strict=True):
        part = compact(table.take(np.arange(begin, end)))
        shard = f"{name:04d}.zarr.zip"
        write_graphs(folder / shard, part, GraphSpec())
        triplets = 0 if part.triplet_ptr is None else np.diff(part.triplet_ptr)
        frames.append(
            pd.DataFrame(
                {
                    "hash": [row.tobytes() for row in part.hash],
                    "shard": shard,
                    "row": np.arange(end - begin, dtype=np.int32),
                    "n_atoms": np.diff(part.node_ptr).astype(np.int32),
                    "n_edges": np.diff(part.edge_ptr),
                    "n_triplets": triplets,
                }
            )
        )
    if index:
        pd.concat(frames, ignore_index=True).to_parquet(folder / "index.parquet")
    return OnDiskGraphs(GraphStore(folder))


def compact(table: GraphTable) -> GraphTable:
    """The same in the smallest integers, as the builder leaves a shard."""
    far = len(table.shift) and np.abs(table.shift).max() > 127
    return replace(table, shift=table.shift.astype(np.int16 if far else np.int8))
