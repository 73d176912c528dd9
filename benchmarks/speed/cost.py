"""Cost of converting and building as a function of size: CPU time and bytes.

    python -m benchmarks.speed.cost

Random crystals of 15 A^3 per atom in extxyz files go through plan, convert and graphs (the stages' own
functions, in one process, shards on disk; seconds are those of the processor). First 100 to 100,000
structures of 12 atoms, then 1 to 1,000 atoms per cell; k-nearest graphs (8 A, k = 12) and radius graphs (5
A). Writes benchmarks/results/cost.json and the figure benchmarks/results/cost.svg.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import chdir
from pathlib import Path

from atomloom.config import GraphSpec, parse_config
from atomloom.pipeline.paths import Layout
from atomloom.stages.convert import convert_chunk
from atomloom.stages.graphs import build_chunk
from atomloom.stages.plan import make_plan
from atomloom.store.shards import read_attributes
from benchmarks.common.results import (
    ROOT,
    Parser,
    machine,
    result_path,
    rounded,
    write_result,
)
from benchmarks.common.structures import extxyz_frame, random_crystals

FIGURE = result_path("cost").with_suffix(".svg")
COUNTS = (100, 1000, 10_000, 100_000)
ATOMS = 12
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
ATOMS_IN_ALL = 100_000
MOST, LEAST = 5000, 100
GRAPHS = {
    "knn": {"neighbors": "knn", "cutoff": 8.0, "max_neighbors": 12},
    "radius": {"neighbors": "radius", "cutoff": 5.0},
}


def main() -> None:
    """Measure, print, write table and figure."""
    options = Parser(__doc__).parse_args()
    measure(200, ATOMS)  # compiles and imports what the others would pay for
    by_count = [measure(count, ATOMS) for count in COUNTS]
    by_atoms = [measure(min(MOST, max(LEAST, ATOMS_IN_ALL // n)), n) for n in SIZES]
    print(f"{'structures':>10} {'atoms':>6} {'plan':>8} {'convert':>8} {'knn':>8} {'radius':>8}"
          f" {'structure':>10} {'knn':>8} {'radius':>8}")  # fmt: skip
    print(f"{'':>10} {'each':>6} {'us per structure':>35} {'bytes each':>28}")
    for row in (*by_count, *by_atoms):
        us = [
            1e6 * row["seconds"][k] / row["structures"]
            for k in ("plan", "convert", "knn", "radius")
        ]
        sizes = [row["bytes"][k] / row["structures"] for k in ("structures", "knn", "radius")]
        print(f"{row['structures']:>10,} {row['atoms']:>6,} " + " ".join(f"{x:>8,.1f}" for x in us)
              + f" {sizes[0]:>10,.0f} {sizes[1]:>8,.0f} {sizes[2]:>8,.0f}")  # fmt: skip
    content = {"by_structures": by_count, "by_atoms": by_atoms}
    if options.write:
        write_result("cost", rounded(content | {"machine": machine(seconds="of the processor")}))
        draw(by_count, by_atoms)
    few, many = by_count[1], by_count[-1]
    rates = [row["structures"] / sum(row["seconds"].values()) for row in (few, many)]
    print(
        f"{many['structures']:,} structures of {ATOMS} atoms cost {rates[0] / rates[1]:.2f} times as much "
        f"each as {few['structures']:,}; the figure is {FIGURE.relative_to(ROOT)}"
    )


def measure(count: int, atoms: int) -> dict:
    """CPU seconds and bytes of each stage."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("data").mkdir()
        for number, first in enumerate(range(0, count, 10_000)):
            crystals = random_crystals(min(10_000, count - first), atoms, seed=first)
            Path("data", f"{number:02d}.extxyz").write_text("".join(map(extxyz_frame, crystals)))
        layouts = {name: layout_of(graph) for name, graph in GRAPHS.items()}
        layout = layouts["knn"]
        seconds = {}
        start = time.process_time()
        plan = make_plan(layout, _silent)
        seconds["plan"] = time.process_time() - start
        start = time.process_time()
        for key in plan.chunk_keys:
            convert_chunk(layout, plan, key, _silent)
        seconds["convert"] = time.process_time() - start
        sizes = {"structures": sum(layout.structures(k).stat().st_size for k in plan.chunk_keys)}
        edges = {}
        for name, each in layouts.items():
            start = time.process_time()
            for key in plan.chunk_keys:
                build_chunk(each, key, _silent)
            seconds[name] = time.process_time() - start
            paths = [each.graphs(key) for key in plan.chunk_keys]
            sizes[name] = sum(path.stat().st_size for path in paths)
            edges[name] = sum(read_attributes(path)["counts"]["edges"] for path in paths)
    return {
        "structures": count,
        "atoms": atoms,
        "chunks": len(plan.chunk_keys),
        "seconds": seconds,
        "bytes": sizes,
        "edges": edges,
    }


def layout_of(graph: dict) -> Layout:
    """Places of a data set with default chunks."""
    dataset = {"name": "cost", "source": "data", "target": "energy", "checks": {"min_distance": 0}}
    config = parse_config({"dataset": dataset})
    return Layout(
        config.model_copy(update={"graph": GraphSpec(**graph)})
    )  # whatever the model needs


def draw(by_count: list[dict], by_atoms: list[dict]) -> None:
    """Time of each stage and bytes of each kind of shard, against size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "atomloom"
    from matplotlib import pyplot

    names = {"plan": "plan", "convert": "convert", "knn": "graphs, k = 12", "radius": "graphs, 5 Å"}
    colors = {"plan": "C0", "convert": "C1", "structures": "C1", "knn": "C2", "radius": "C3"}
    kinds = {"structures": "structures", "knn": "graphs, k = 12", "radius": "graphs, 5 Å"}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name, label in names.items():
        x = [row["structures"] for row in by_count]
        y = [row["seconds"][name] for row in by_count]
        left.loglog(x, y, "o-", label=label, ms=4, color=colors[name])
        x = [row["atoms"] for row in by_atoms]
        y = [1e3 * row["seconds"][name] / row["structures"] for row in by_atoms]
        middle.loglog(x, y, "o-", label=label, ms=4, color=colors[name])
    for name, label in kinds.items():
        x = [row["atoms"] for row in by_atoms]
        y = [row["bytes"][name] / row["structures"] for row in by_atoms]
        right.loglog(x, y, "o-", label=label, ms=4, color=colors[name])
    left.set(xlabel=f"structures of {ATOMS} atoms", ylabel="CPU seconds")
    middle.set(xlabel="atoms per cell", ylabel="CPU milliseconds per structure")
    right.set(xlabel="atoms per cell", ylabel="bytes per structure on disk")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, metadata={"Date": None})


def _silent(message: str) -> None:
    """Say nothing."""


if __name__ == "__main__":
    main()
