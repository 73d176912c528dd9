"""Loading of batches alongside PyG's DataLoader and plain collation, and what a training step costs around
the model.

    python -m benchmarks.speed.loader [--only slicing|balance|stall|overhead] [--peer PYTHON]

slicing: 20,000 crystals of 12 atoms with their 12 nearest neighbours, in random order, from memory and
out of core (a budget of a third of the graphs; shards of 1,000 crystals, which the system has in its
file cache); by the clock, and on one core, which is by the processor time of all threads. The peer is
torch_geometric's DataLoader over a list of `Data` with 0 and 2 workers, run by PYTHON, an interpreter
that has it; plain collation keeps each graph as ready tensors and concatenates them. Both are spared
computing edge vectors. balance: spread of the cost of
batches bounded by edges against batches of a fixed number of structures, and of the parts of several
ranks. stall: share of a training step of iComFormer in which the model waits for data. overhead: a step
of a network with two weights in the training loop, alongside the same forward, backward and optimiser
calls alone. Writes benchmarks/results/loader.json.
"""

from __future__ import annotations

import csv
import itertools
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config import Batching, GraphSpec, parse_config
from atomloom.data.batch import GraphBatch
from atomloom.data.batching import BatchPlan, share
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import GraphLoader, Loader
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.data.placement import choose_loader, open_loader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore, write_graphs
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.training import trainer
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, machine, read_result, write_result
from benchmarks.common.timing import Seconds, clock, in_turns, processor

STRUCTURES = 20_000
SHARD = 1_000
ROUNDS = 5
SPEC = GraphSpec(max_neighbors=12, lattice=True, lattice_edges=True)


# --- data -----------------------------------------------------------------------------------------


def crystals(count: int, atoms: int = 12) -> GraphTable:
    """Graphs (k = 12, with lattice) of random crystals at 15 A^3 per atom, atoms kept apart."""
    rng = np.random.default_rng(0)
    structures = []
    side = (15.0 * atoms) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) / 3
    for _ in range(count):
        cell = side * (np.eye(3) + rng.normal(scale=0.05, size=(3, 3)))
        places = grid[rng.permutation(27)[:atoms]] + rng.normal(scale=0.02, size=(atoms, 3))
        numbers = rng.choice([3, 8, 14, 22, 38, 56], size=atoms)
        structures.append(Structure(numbers, places @ cell, cell, np.ones(3, dtype=bool)))
    return build_graphs(StructureTable.from_structures(structures), SPEC)


def sharded(table: GraphTable, folder: Path) -> OnDiskGraphs:
    """Graphs of a table, on disk."""
    for number, first in enumerate(range(0, len(table), SHARD)):
        part = table.take(np.arange(first, min(first + SHARD, len(table))))
        write_graphs(folder / f"{number:04d}.zarr.zip", part, SPEC)
    return OnDiskGraphs(GraphStore(folder))


def uneven(count: int) -> GraphTable:
    """Made-up graphs of 1 to 200 atoms, median 20, as data sets of crystals have them."""
    rng = np.random.default_rng(0)
    atoms = np.clip(rng.lognormal(np.log(20), 0.8, size=count), 1, 200).astype(np.int64)
    node_ptr = np.concatenate([[0], np.cumsum(atoms)])
    owner = np.repeat(np.arange(count), 12 * atoms)
    return GraphTable(
        hash=np.zeros((count, 32), dtype=np.uint8),
        node_ptr=node_ptr,
        edge_ptr=12 * node_ptr,
        numbers=np.full(node_ptr[-1], 14, dtype=np.uint8),
        positions=rng.normal(size=(node_ptr[-1], 3)),
        cell=np.tile(5.0 * np.eye(3), (count, 1, 1)),
        pbc=np.ones((count, 3), dtype=bool),
        src=(rng.random(len(owner)) * atoms[owner]).astype(np.uint16),
        dst=(np.repeat(np.arange(node_ptr[-1]), 12) - node_ptr[owner]).astype(np.uint16),
        shift=np.zeros((len(owner), 3), dtype=np.int8),
    )


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


class PyG:
    """torch_geometric's DataLoader in an interpreter of its own, epoch by epoch."""

    def __init__(self, python: str, table: GraphTable, targets: np.ndarray, folder: Path) -> None:
        owner = np.repeat(np.arange(len(table)), np.diff(table.edge_ptr))
        first = table.node_ptr[owner]
        src, dst = table.src + first, table.dst + first
        cells = np.einsum("ei,eij->ej", table.shift.astype(np.float64), table.cell[owner])
        np.savez(
            folder / "arrays.npz",
            node_ptr=table.node_ptr,
            edge_ptr=table.edge_ptr,
            numbers=table.numbers.astype(np.int64),
            positions=table.positions.astype(np.float32),
            cell=table.cell.astype(np.float32),
            lattice=table.lattice.astype(np.float32),
            edge_index=np.stack([table.src, table.dst]).astype(np.int64),
            vectors=(table.positions[src] + cells - table.positions[dst]).astype(np.float32),
            shift=table.shift.astype(np.float32),
            multiplicity=((table.listed & 1) + (table.listed >> 1)).astype(np.float32),
            targets=targets.astype(np.float32),
        )
        self.peer = Peer(python, "pyg_loader.py", folder / "arrays.npz")

    def epoch(self, workers: int, size: int, check: bool = False) -> tuple[Seconds, float]:
        """Time of one epoch, and the sum of all edges' lengths in it, if that is to be checked."""
        answer = self.peer.ask(f"{workers} {size} {int(check)}")
        return Seconds(answer["clock"], answer["processor"]), answer["edge_length"]


# --- parts ----------------------------------------------------------------------------------------


def slicing(python: str | None) -> dict:
    """Structures per second in random order: from memory, out of core, and by the peers."""
    table = crystals(STRUCTURES)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    rows = np.arange(len(table))
    print(
        f"\n{len(table):,} crystals, {len(table.src) / len(table):.0f} edges each; structures per second"
    )
    collated = Collated(table, targets)
    result: dict = {"structures": len(table), "edges_per_structure": len(table.src) / len(table)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = sharded(table, folder)
        peer = None if python is None else PyG(python, table, targets, folder)
        for size in (64, 256):
            bounds = Batching(structures=size)
            choice = choose_loader(graphs, bounds, budget=int(graphs.weights.sum()) // 3)
            options = {"shuffle": True, "prefetch": 0}
            memory = GraphLoader(table, rows, targets, bounds, **options)
            disk = open_loader(graphs, rows, targets, bounds, choice=choice, **options)
            alike = GraphLoader(table, rows, targets, bounds, windows=disk.windows, **options)
            total = _edge_length(memory.batches(0))
            error = max(
                _difference(one, other)
                for one, other in zip(disk.batches(0), alike.batches(0), strict=True)
            )

            def plain(epoch: int, loader: Loader = memory) -> None:
                plan = loader.plan(epoch)
                for position in range(len(plan)):
                    collated.batch(plan[position])

            ways: dict[str, Callable[[], object]] = {
                "in_memory": _through(memory),
                "out_of_core": _through(disk),
                "plain_collation": _epoch_by_epoch(plain),
            }
            for workers in () if peer is None else (0, 2):
                check = peer.epoch(workers, size, check=True)[1]  # it also starts the workers
                result["pyg_edge_length_error"] = abs(check / total - 1)
                ways[f"pyg_{workers}_workers"] = lambda w=workers, n=size: peer.epoch(w, n)[0]
            speeds = {
                name: {
                    "clock": len(table) / clock(times),
                    "processor": len(table) / processor(times),
                }
                for name, times in in_turns(ways, ROUNDS, warm_up=0).items()
            }
            # What worker processes use is not in the processor time of theirs.
            ratios = {
                f"{ours}_to_{name}": speeds[ours][kind] / speeds[name][kind]
                for ours in ("in_memory", "out_of_core")
                for name in speeds
                for kind in ["clock" if name == "pyg_2_workers" else "processor"]
                if name not in ("in_memory", ours)
            }
            ratios["out_of_core_to_in_memory_by_clock"] = (
                speeds["out_of_core"]["clock"] / speeds["in_memory"]["clock"]
            )
            ratios["out_of_core_to_in_memory"] = (
                speeds["out_of_core"]["processor"] / speeds["in_memory"]["processor"]
            )
            held = _peak(disk)
            print(f"batches of {size}")
            print(f"  {'':16s} {'by the clock':>12s} {'on one core':>12s} {'in memory is':>13s}")
            for name, speed in speeds.items():
                workers = name == "pyg_2_workers"
                core = "-" if workers else f"{speed['processor']:,.0f}"
                ratio = ratios.get(f"in_memory_to_{name}", 1.0)
                print(f"  {name:16s} {speed['clock']:12,.0f} {core:>12s} {ratio:11.2f} x")
            print(
                f"  {choice.text}; {len(disk.plan(0).ends)} windows, "
                f"at most {held / 1e6:.1f} MB of arrays at a time; largest difference from the "
                f"batches of the same order in memory {error:.1g}"
            )
            result[f"batches_of_{size}"] = {
                "speed": speeds,
                "ratio": ratios,
                "out_of_core": {
                    "graphs_bytes": choice.graphs,
                    "budget_bytes": choice.budget,
                    "window_bytes": choice.window,
                    "windows": len(disk.plan(0).ends),
                    "peak_bytes": held,
                    "error": error,
                },
            }
        if peer is not None:
            result |= peer.peer.versions
            error = result["pyg_edge_length_error"]
            print(f"sum of all edge lengths: ours and PyG's differ by {error:.0e} of it")
            peer.peer.close()
    return result


def balance(_: str | None) -> dict:
    """Spread of the cost of batches, by bounds and by count, and of the parts of ranks."""
    table = uneven(8_192)
    edges = np.diff(table.edge_ptr)
    rows = np.arange(len(table))
    bounds = {
        "fixed count": Batching(structures=64),
        "bounded by edges": Batching(structures=1_024, edges=int(64 * edges.mean())),
    }
    print("\nspread over the batches of an epoch: standard deviation / mean, and worst / mean")
    result: dict = {"structures": len(table), "mean_edges": float(edges.mean())}
    loaders = {
        name: GraphLoader(table, rows, bounds=own, shuffle=True, prefetch=0)
        for name, own in bounds.items()
    }
    step = SimpleStep()
    seconds = _step_seconds(loaders, step)
    for name, loader in loaders.items():
        plan = loader.plan(0)
        # The last batch is what is left over.
        figures = {
            "batches": len(plan),
            "edges": _spread(plan.sums(edges)[:-1]),
            "step_time": _spread(seconds[name][:-1]),
        }
        print(
            f"{name:18s} {len(plan)} batches   edges {figures['edges'][0]:.3f}, "
            f"{figures['edges'][1]:.2f}   time of a step {figures['step_time'][0]:.3f}, "
            f"{figures['step_time'][1]:.2f}"
        )
        result[name.replace(" ", "_")] = figures
    print("slowest rank / mean, of batches of 64: mean over batches and worst batch")
    plan = loaders["fixed count"].plan(0)
    for ranks in (2, 4, 8):
        ours, even = _imbalance(plan, edges, ranks)
        print(
            f"{ranks} ranks   as shared {ours[0]:.3f}, {ours[1]:.2f}   "
            f"by count {even[0]:.3f}, {even[1]:.2f}"
        )
        result[f"{ranks}_ranks"] = {"as_shared": ours, "by_count": even}
    return result


def stall(_: str | None) -> dict:
    """Share of training in which iComFormer waits for its data."""
    table = crystals(1_000)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    data = LabelledGraphs(table, targets, {"train": np.arange(900), "val": np.arange(900, 1000)})
    print("\nshare of an epoch spent waiting for data (iComFormer, 64 crystals per batch)")
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


def overhead(_: str | None) -> dict:
    """Microseconds per step that the loop adds to forward, backward and optimiser."""
    table = crystals(4_096)
    targets = np.random.default_rng(1).normal(size=(len(table), 1))
    rows = np.arange(len(table))
    data = LabelledGraphs(table, targets, {"train": rows})
    config = _config(width=4, epochs=8, structures=8)
    steps = len(table) // 8
    build, trainer.build_model = trainer.build_model, lambda _, outputs: TwoWeights(outputs)
    try:
        whole = min(row["seconds"] for row in _history(data, config)) / steps
    finally:
        trainer.build_model = build
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
    print("\na step of a network with two weights, 8 crystals per batch, in us")
    print(
        f"in the loop, with loading {result['loop_us']:.0f}   forward, backward and optimiser alone "
        f"{result['calls_alone_us']:.0f}   the loop adds {result['overhead_us']:.0f}"
    )
    return result


PARTS: dict[str, Callable[[str | None], dict]] = {
    "slicing": slicing,
    "balance": balance,
    "stall": stall,
    "overhead": overhead,
}


# --- help -----------------------------------------------------------------------------------------


def _epoch_by_epoch(work: Callable[[int], None]) -> Callable[[], None]:
    """Work on epoch 0, 1, ..., one per call."""
    epochs = itertools.count()
    return lambda: work(next(epochs))


def _through(loader: Loader) -> Callable[[], None]:
    def go(epoch: int) -> None:
        for _ in loader.batches(epoch):
            pass

    return _epoch_by_epoch(go)


def _edge_length(batches: Iterator[GraphBatch]) -> float:
    return sum(float(batch.vectors.norm(dim=1).double().sum()) for batch in batches)


def _difference(one: GraphBatch, other: GraphBatch) -> float:
    """The largest difference of any number of two batches."""
    pairs = [
        (getattr(one, item.name), getattr(other, item.name))
        for item in fields(GraphBatch)
        if isinstance(getattr(other, item.name), Tensor)
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _peak(loader: Loader) -> int:
    """Most bytes of arrays at a time in an epoch."""
    tracemalloc.start()
    try:
        _through(loader)()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class SimpleStep:
    """A forward and backward pass that does a little of what a graph network does, edge by edge."""

    def __init__(self, width: int = 64) -> None:
        torch.manual_seed(0)
        self.enter, self.message = nn.Linear(3, width), nn.Linear(2 * width, width)

    def __call__(self, batch: GraphBatch) -> None:
        nodes = self.enter(batch.positions)
        message = self.message(torch.cat((nodes[batch.src], nodes[batch.dst]), dim=1))
        summed = torch.zeros_like(nodes).index_add(0, batch.dst, nn.functional.silu(message))
        summed.square().mean().backward()


def _step_seconds(loaders: dict[str, Loader], step: SimpleStep) -> dict[str, np.ndarray]:
    """[batches] min seconds of the processor for a step with each batch of epoch 0, in turns."""
    times: dict[str, list[list[float]]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            own = []
            for batch in loader.batches(0):
                begun = time.process_time()
                step(batch)
                own.append(time.process_time() - begun)
            times[name].append(own)
    return {name: np.min(np.array(rounds), axis=0) for name, rounds in times.items()}


def _spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.std() / values.mean()), float(values.max() / values.mean())


def _imbalance(
    plan: BatchPlan, edges: np.ndarray, ranks: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Edges of the heaviest rank over the mean, of the loader's parts and of parts by count."""
    ours, even = [], []
    for batch in range(len(plan)):
        own = edges[plan[batch]]
        mean = own.sum() / ranks
        parts = [own[share(own, rank, ranks)] for rank in range(ranks)]
        ours.append(max(part.sum() for part in parts) / mean)
        even.append(max(part.sum() for part in np.array_split(own, ranks)) / mean)
    return (
        (float(np.mean(ours)), float(max(ours))),
        (float(np.mean(even)), float(max(even))),
    )


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
        trainer.train(data, config, folder, lambda line: None)
        with open(Path(folder) / "history.csv") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def main() -> None:
    parser = Parser(__doc__, parts=list(PARTS), peer="torch_geometric")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read_result("loader")
    results["machine"] = machine("torch", threads=1)
    for part in [options.only] if options.only else PARTS:
        results[part] = PARTS[part](options.peer)
    if options.write:
        write_result("loader", results)
    if "slicing" in results:
        row = results["slicing"]["batches_of_64"]
        speed, ratio = row["speed"], row["ratio"]
        compared = [f"{ratio['in_memory_to_plain_collation']:.1f} times plain collation"]
        if "in_memory_to_pyg_0_workers" in ratio:
            compared.append(f"{ratio['in_memory_to_pyg_0_workers']:.1f} times PyG's DataLoader")
        print(
            f"\nloader: {speed['in_memory']['processor']:,.0f} crystals per second on one core from "
            f"memory, {speed['out_of_core']['processor']:,.0f} out of core; {', '.join(compared)}"
        )


if __name__ == "__main__":
    main()
