"""Loading of batches beside collation graph by graph, and what a training step costs around the model.

    python benchmarks/loader.py [--only slicing|stall|overhead]

slicing: 20,000 crystals of 12 atoms with their 12 nearest neighbours, in memory, in random order. The
peer keeps each graph as ready tensors and concatenates them batch by batch, as the usual collation
does; it is spared computing edge vectors. stall: share of a training step of iComFormer in which the
model waits for data. overhead: a step of a network with two weights in the training loop, beside the
same forward, backward and optimiser calls alone. Writes benchmarks/results/loader.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config import Batching, GraphSpec, parse_config
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.training import loop
from atomloom.training.data import LabelledGraphs

RESULT = Path(__file__).resolve().parent / "results" / "loader.json"
STRUCTURES = 20_000
ROUNDS = 5


# --- data -----------------------------------------------------------------------------------------


def crystals(count: int, atoms: int = 12) -> GraphTable:
    """Graphs (k = 12, with lattice) of random crystals at 15 A^3 an atom, atoms kept apart."""
    rng = np.random.default_rng(0)
    structures = []
    side = (15.0 * atoms) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) / 3
    for _ in range(count):
        cell = side * (np.eye(3) + rng.normal(scale=0.05, size=(3, 3)))
        places = grid[rng.permutation(27)[:atoms]] + rng.normal(scale=0.02, size=(atoms, 3))
        numbers = rng.choice([3, 8, 14, 22, 38, 56], size=atoms)
        structures.append(Structure(numbers, places @ cell, cell, np.ones(3, dtype=bool)))
    spec = GraphSpec(max_neighbors=12, lattice=True, lattice_edges=True)
    return build_graphs(StructureTable.from_structures(structures), spec)


class Collated:
    """The peer: one object a graph, tensors concatenated batch by batch."""

    def __init__(self, table: GraphTable, targets: np.ndarray) -> None:
        self.graphs = []
        for row in range(len(table)):
            graph = table[row]
            self.graphs.append(
                {
                    "numbers": torch.from_numpy(graph.numbers.astype(np.int64)),
                    "positions": torch.from_numpy(graph.positions).float(),
                    "cell": torch.from_numpy(graph.cell[None]).float(),
                    "edges": torch.from_numpy(np.stack([graph.src, graph.dst]).astype(np.int64)),
                    "shift": torch.from_numpy(graph.shift).float(),
                    "vectors": torch.from_numpy(graph.vectors).float(),
                    "multiplicity": torch.from_numpy(graph.multiplicity).float(),
                    "lattice": torch.from_numpy(graph.lattice[None]).float(),
                    "targets": torch.from_numpy(targets[row][None]).float(),
                }
            )

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """One batch."""
        graphs = [self.graphs[row] for row in rows]
        counts = torch.tensor([len(graph["numbers"]) for graph in graphs])
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        joined = {
            key: torch.cat([graph[key] for graph in graphs]) for key in graphs[0] if key != "edges"
        }
        joined["edges"] = torch.cat(
            [graph["edges"] + int(start) for graph, start in zip(graphs, ptr[:-1], strict=True)],
            dim=1,
        )
        joined["node_ptr"] = ptr
        joined["node_graph"] = torch.repeat_interleave(torch.arange(len(graphs)), counts)
        return joined


# --- parts ----------------------------------------------------------------------------------------


def slicing() -> dict:
    """Structures a second, on one core, from memory, in random order."""
    table = crystals(STRUCTURES)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    rows = np.arange(len(table))
    print(
        f"\n{len(table):,} crystals, {len(table.src) / len(table):.0f} edges each; structures a second"
    )
    collated = Collated(table, targets)
    result = {"structures": len(table), "edges_per_structure": len(table.src) / len(table)}
    for size in (64, 256):
        loader = GraphLoader(
            table, rows, targets, Batching(structures=size), shuffle=True, prefetch=0
        )
        loader.slice(rows[:2])  # compile

        def ours(epoch: int, loader: GraphLoader = loader) -> None:
            for _ in loader.batches(epoch):
                pass

        def peer(epoch: int, loader: GraphLoader = loader) -> None:
            plan = loader.plan(epoch)
            for position in range(len(plan)):
                collated.batch(plan[position])

        speeds = {
            name: len(table) / statistics.median(times)
            for name, times in _in_turns({"sliced": ours, "collated": peer}).items()
        }
        ratio = speeds["sliced"] / speeds["collated"]
        print(
            f"batches of {size:3d}: sliced {speeds['sliced']:9,.0f}   graph by graph {speeds['collated']:8,.0f}   {ratio:.1f} x"
        )
        result[f"batches_of_{size}"] = {**speeds, "ratio": ratio}
    return result


def stall() -> dict:
    """Share of training in which iComFormer waits for its data."""
    table = crystals(1_000)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    data = LabelledGraphs(table, targets, {"train": np.arange(900), "val": np.arange(900, 1000)})
    print("\nshare of an epoch spent waiting for data (iComFormer, 64 crystals a batch)")
    result = {}
    for width in (64, 128):
        rows = _history(data, _config(width=width, epochs=3))[1:]
        waiting = sum(row["data_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
        step = sum(row["seconds"] for row in rows) / sum(1 for _ in rows) / 15
        print(
            f"width {width:3d}: {100 * waiting:.2f} %   (a step and its share of validation: {1e3 * step:.0f} ms)"
        )
        result[f"width_{width}"] = {"waiting_share": waiting, "step_seconds": step}
    return result


class TwoWeights(nn.Module):
    """Next to nothing to compute: what remains is the loop."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, outputs)

    def forward(self, batch) -> Tensor:
        return self.linear(batch.positions[batch.node_ptr[:-1], :1])


def overhead() -> dict:
    """Microseconds a step that the loop adds to forward, backward and optimiser."""
    table = crystals(4_096)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    rows = np.arange(len(table))
    data = LabelledGraphs(table, targets, {"train": rows})
    config = _config(width=4, epochs=8, structures=8)
    steps = len(table) // 8
    build, loop.build_model = loop.build_model, lambda _, outputs: TwoWeights(outputs)
    try:
        whole = min(row["seconds"] for row in _history(data, config)) / steps
    finally:
        loop.build_model = build
    model = TwoWeights(1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batches = list(GraphLoader(table, rows, targets, Batching(structures=8)))
    alone = []
    for _ in range(8):
        begun = time.perf_counter()
        for batch in batches:
            nn.functional.mse_loss(model(batch), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        alone.append((time.perf_counter() - begun) / steps)
    result = {"loop_us": 1e6 * whole, "calls_alone_us": 1e6 * min(alone)}
    result["overhead_us"] = result["loop_us"] - result["calls_alone_us"]
    print("\na step of a network with two weights, 8 crystals a batch, in us")
    print(
        f"in the loop, with loading {result['loop_us']:.0f}   forward, backward and optimiser alone "
        f"{result['calls_alone_us']:.0f}   the loop adds {result['overhead_us']:.0f}"
    )
    return result


PARTS: dict[str, Callable[[], dict]] = {"slicing": slicing, "stall": stall, "overhead": overhead}


# --- help -----------------------------------------------------------------------------------------


def _in_turns(functions: dict[str, Callable[[int], None]]) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns, so that both meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(ROUNDS):
        for name, function in functions.items():
            begun = time.perf_counter()
            function(turn)
            times[name].append(time.perf_counter() - begun)
    return times


def _config(*, width: int, epochs: int, structures: int = 64):
    return parse_config(
        {
            "dataset": {"name": "bench", "source": ["none"], "target": ["y"]},
            "model": {"name": "icomformer", "width": width},
            "training": {"epochs": epochs, "batch": {"structures": structures}, "device": "cpu"},
        }
    )


def _history(data: LabelledGraphs, config) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        loop.train(data, config, folder, lambda line: None)
        with open(Path(folder) / "history.csv") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    results["machine"] = {"processor": _processor(), "threads": 1, "torch": torch.__version__}
    for part in [options.only] if options.only else PARTS:
        results[part] = PARTS[part]()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    if "slicing" in results:
        row = results["slicing"]["batches_of_64"]
        print(
            f"\nloader: {row['sliced']:,.0f} crystals a second on one core, "
            f"{row['ratio']:.1f} times collation graph by graph"
        )


if __name__ == "__main__":
    main()
