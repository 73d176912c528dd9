"""Structures of some records of a data set, by id: for the report, which draws a few."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import RunPaths
from atomloom.stages.convert import read_chunk
from atomloom.store.parquet import read_table
from atomloom.structures.structure import Structure


@dataclass(frozen=True)
class StructureLookup:
    """Look-up of structures of the data set of a run."""

    paths: RunPaths

    def __call__(self, ids: Collection[str]) -> dict[str, Structure]:
        """Structures by id.

        An id is left out if the store no longer has its structure, or if several records share it.

        Raises:
            AtomloomError: when the table of the data set is missing or damaged.
        """
        columns = ["id", "hash", "chunk", "row"]
        frame = read_table(self.paths.split / "dataset.parquet", columns, todo=again("split"))
        frame = frame[frame["id"].isin(list(ids))]
        frame = frame[~frame["id"].duplicated(keep=False)]
        found: dict[str, Structure] = {}
        for chunk, rows in frame.groupby("chunk"):
            path = self.paths.layout.structures(self.paths.plan.chunks[int(chunk)].key)
            try:
                table = read_chunk(path).table
            except AtomloomError:
                continue  # shards may be removed once a run is finished; its report stays possible
            for id, wanted, row in zip(rows["id"], rows["hash"], rows["row"], strict=True):
                if row < len(table) and np.array_equal(
                    table.hash[row], np.frombuffer(wanted, dtype=np.uint8)
                ):
                    found[str(id)] = table[int(row)]
        return found
