"""Stage `index`: one table of the location of the graph of each record of the data set.

It completes the graphs of a data set: every chunk is built, and every record is either in the index
or in the quarantine table, with its source, number and reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import RunPaths, without_copies
from atomloom.pipeline.quarantine import Quarantine
from atomloom.stages.convert import read_chunk_records, require_whole
from atomloom.stages.graphs import DONORS, read_chunk_graphs
from atomloom.stages.plan import read_members
from atomloom.store.files import write_sealed, write_spec
from atomloom.store.keys import BUILDER
from atomloom.store.parquet import read_table, write_table


def write_index(paths: RunPaths, log: Callable[[str], None]) -> Path:
    """Write `index.parquet`, `index.json` and `quarantine.csv`; return their folder.

    Columns of `index.parquet`: record (row of the plan), id, hash, shard, row, n_atoms, n_edges,
    n_triplets.

    Raises:
        AtomloomError: when a shard is missing or damaged, or too much is in quarantine.
    """
    layout, plan = paths.layout, paths.plan
    members = read_members(layout, plan)
    quarantine = Quarantine.of(members)
    parts = []
    neighbors = np.zeros(1, dtype=np.int64)
    for chunk in plan.chunks:
        structures = layout.structures(chunk.key)
        converted = read_chunk_records(structures)
        require_whole(chunk, len(converted), structures)
        for place, reason in converted.quarantine:
            quarantine.add(chunk.first + place, reason)
        found = read_chunk_graphs(converted, layout.graphs(chunk.key))
        for row, reason in found.skipped:
            quarantine.add(chunk.first + int(converted.record[row]), reason)
        table = found.table
        edges = np.diff(table.edge_ptr)
        atoms = np.diff(table.node_ptr)
        records = chunk.first + converted.record[found.kept].astype(np.int64)
        parts.append(
            pd.DataFrame(
                {
                    "record": records,
                    "id": members["id"].to_numpy()[records],
                    "hash": [row.tobytes() for row in table.hash],
                    "shard": layout.graphs(chunk.key).name,
                    "row": np.arange(len(records), dtype=np.int32),
                    "n_atoms": atoms.astype(np.int32),
                    "n_edges": edges.astype(np.int64),
                    "n_triplets": np.diff(table.triplet_ptr)
                    if table.triplet_ptr is not None
                    else 0,
                }
            )
        )
        neighbors = _add_counts(
            neighbors, _neighbor_counts(table.dst, table.edge_ptr, table.node_ptr)
        )
    frame = pd.concat(parts, ignore_index=True)
    folder = paths.index
    write_table(folder / "index.parquet", frame)
    quarantine.close(folder, layout.config.dataset.checks.max_fraction)
    shards = [layout.graphs(key) for key in plan.chunk_keys]
    write_spec(folder, paths.index_spec)
    write_sealed(
        folder / "index.json",
        {
            "store": str(without_copies(layout.graph_folder)),
            "graph_key": layout.graph_key,
            "graph": layout.config.graph.key_content(),
            "builder": BUILDER,
            "records": plan.records,
            "structures": len(frame),
            "quarantined": len(quarantine),
            "atoms": int(frame["n_atoms"].sum()),
            "edges": int(frame["n_edges"].sum()),
            "triplets": int(frame["n_triplets"].sum()),
            "bytes": sum(path.stat().st_size for path in shards),
            "shards": [path.name for path in shards],
            "neighbors_histogram": neighbors.tolist(),
        },
    )
    try:
        _remember_donors(layout.graph_folder, frame)
    except AtomloomError as error:  # a shortcut for later builds, optional in a read-only store
        log(f"graphs are not recorded for reuse: {error}")
    log(
        f"{len(frame):,} graphs of {plan.records:,} records, {int(frame['n_edges'].sum()):,} edges, "
        f"{len(quarantine)} in quarantine"
    )
    return folder


def _neighbor_counts(dst: np.ndarray, edge_ptr: np.ndarray, node_ptr: np.ndarray) -> np.ndarray:
    """[K] numbers of atoms with 0, 1, 2, ... edges."""
    atom = dst.astype(np.int64) + np.repeat(node_ptr[:-1], np.diff(edge_ptr))
    return np.bincount(np.bincount(atom, minlength=int(node_ptr[-1])))


def _add_counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(a), len(b)), dtype=np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _remember_donors(folder: Path, frame: pd.DataFrame) -> None:
    """Record graphs by structure hash, for later chunks of this graph spec."""
    donors = frame[["hash", "shard", "row"]].drop_duplicates("hash")
    write_table(folder / DONORS, donors)


def read_indexed_records(paths: RunPaths) -> pd.DataFrame:
    """Read column `record` of the index, the records that have a graph.

    Raises:
        AtomloomError: when the table is missing or damaged.
    """
    return read_table(paths.index / "index.parquet", ["record"], todo=again("index"))
