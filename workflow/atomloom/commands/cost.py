"""`atomloom plan --cost`: the cost of converting and building, measured on a sample of the records.

Nothing is written to the store: the sample is processed by the same code into a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError, again
from atomloom.graphs.build import build_graphs
from atomloom.graphs.store import write_graphs
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import Plan
from atomloom.stages.convert import Member, read_records, write_structures
from atomloom.store.parquet import read_table
from atomloom.structures.table import StructureTable

SAMPLE = 500
JOB_SECONDS = 2.0
"""Seconds for starting one job by the workflow: interpreter, libraries and Snakemake's bookkeeping;
mp36k took 78 s in all for 15 s of work in about 80 jobs (benchmarks/speed/data_plane.py --only mp36k)."""


@dataclass(frozen=True)
class Cost:
    """Figures for a whole data set, extrapolated from a sample."""

    records: int
    missing: int
    """Records in chunks that are not converted or not built yet."""
    jobs: int
    """Chunk jobs still to run."""
    sample: int
    refused: int
    """Records of the sample that would go to quarantine."""
    convert_ms: float
    """Milliseconds per record."""
    graphs_ms: float
    structure_bytes: float
    """Bytes of shard per record."""
    graph_bytes: float
    edges: float
    """Edges per structure."""

    def lines(self, cores: int) -> Iterator[str]:
        """Lines of a table for the user."""
        share = self.refused / self.sample
        size = self.records * (self.structure_bytes + self.graph_bytes)
        work = self.missing * (self.convert_ms + self.graphs_ms) / 1e3
        yield f"records            {self.records:,}, of which {self.missing:,} are to be converted or built"
        yield f"measured on        {self.sample:,} records, {share:.1%} of them refused"
        yield f"convert            {self.convert_ms:.3f} ms per record"
        yield f"graphs             {self.graphs_ms:.3f} ms per record, {self.edges:.0f} edges"
        yield f"store              {size / 1e6:,.1f} MB in total, {size / self.records:,.0f} bytes per record"
        yield f"command line       {work / cores:,.0f} s on {cores} cores"
        yield (
            f"workflow           about {(work + self.jobs * JOB_SECONDS) / cores:,.0f} s on {cores} cores, "
            f"in {self.jobs:,} jobs"
        )


def estimate_cost(layout: Layout, plan: Plan) -> Cost:
    """Measure a sample, evenly spread over the records.

    Raises:
        AtomloomError: when not one record of the sample can be used.
    """
    members = read_table(layout.plan_folder / "members.parquet", Member._fields, todo=again("plan"))
    rows = np.unique(np.linspace(0, len(members) - 1, SAMPLE).astype(int))
    sample = [Member(*row) for row in members.iloc[rows].itertuples(index=False)]
    read_records(layout, sample[:1])  # the first record of a format imports its library
    started = time.perf_counter()
    read = read_records(layout, sample)
    if not read.structures:
        raise AtomloomError(
            f"none of {len(rows)} sampled records can be used (first: {read.quarantine[0][1]})",
            where=", ".join(layout.config.dataset.source),
        )
    table = StructureTable.from_structures(read.structures)
    spec = layout.config.graph
    with tempfile.TemporaryDirectory() as folder:
        converted, built = Path(folder, "s.zarr.zip"), Path(folder, "g.zarr.zip")
        write_structures(converted, read, layout.reader_spec)
        converting = time.perf_counter() - started
        build_graphs(table.take(np.arange(1)), spec)  # loads the compiled kernel
        started = time.perf_counter()
        graphs = build_graphs(table, spec)
        write_graphs(built, graphs, spec)
        building = time.perf_counter() - started
        sizes = converted.stat().st_size, built.stat().st_size
    unconverted = {key for key in plan.chunk_keys if not layout.structures(key).exists()}
    unbuilt = {key for key in plan.chunk_keys if not layout.graphs(key).exists()}
    count = len(table)
    return Cost(
        records=plan.records,
        missing=sum(chunk.count for chunk in plan.chunks if chunk.key in unconverted | unbuilt),
        jobs=len(unconverted) + len(unbuilt),
        sample=len(rows),
        refused=len(rows) - count,
        convert_ms=converting / len(rows) * 1e3,
        graphs_ms=building / count * 1e3,
        structure_bytes=sizes[0] / count,
        graph_bytes=sizes[1] / count,
        edges=len(graphs.src) / count,
    )
