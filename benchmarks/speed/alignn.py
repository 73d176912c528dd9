"""Training steps of ALIGNN at its default size, alongside the published program and the plain algebra.

    python -m benchmarks.speed.alignn [--only PART] [--peer PYTHON] [--compile]

One step is forward, backward and optimiser on one batch of real crystals (ATOMLOOM_DATA). Parts: `phonons`,
crystals of matbench_phonons; `sample`, ALIGNN's own example; `rattled`, those of `phonons` with every atom
displaced by 0.02 A, so that no symmetry is left to make use of. Every variant takes its steps in turns with
the others, by the same graphs; alongside its time stands the error of its outputs and of its gradient
against float64. `--peer PYTHON` is an interpreter that has the packages alignn, dgl and torch: it gets
graph, targets and weights as npz files and runs in a process of its own, in float32 (under bf16 autocast
DGL refuses: it has no such sums on a CPU). Writes benchmarks/results/alignn.json.
"""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config import GraphSpec
from atomloom.config.model import ALIGNNConfig
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.line_graph import jarvis_graph, line_graph
from atomloom.models import build_model
from atomloom.models.common.features import cgcnn_features
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, data_path, machine, read_result, write_result
from benchmarks.common.timing import Seconds
from benchmarks.common.training_steps import Variant, compare, show

# --- the batch ------------------------------------------------------------------------------------


def phonons(count: int) -> list[Structure]:
    """Crystals of matbench_phonons, evenly from the whole set."""
    records = enumerate_records([data_path("matbench_phonons/matbench_phonons.json.gz")])
    chosen = islice(records, 0, 1265, 1265 // count)
    return [parse_record(r.format, r.payload or b"", r.id) for r in chosen][:count]


def sample(count: int) -> list[Structure]:
    """Crystals of ALIGNN's example."""
    records = enumerate_records([data_path("alignn_sample/sample_data.tar.gz")])
    found = (r for r in records if r.format == "poscar")
    return [parse_record(r.format, r.payload or b"", r.id) for r in islice(found, count)]


def rattled(count: int) -> list[Structure]:
    """Those of `phonons`, without symmetry."""
    rng = np.random.default_rng(0)
    return [
        replace(s, positions=s.positions + rng.normal(scale=0.02, size=s.positions.shape))
        for s in phonons(count)
    ]


PARTS: dict[str, Callable[[int], list[Structure]]] = {
    "phonons": phonons,
    "sample": sample,
    "rattled": rattled,
}


def published_graph(table: GraphTable) -> SimpleNamespace:
    """The batch as the published model takes it: every copy of an edge, and their line graph."""
    parts: dict[str, list] = {
        name: [] for name in ("src", "dst", "r", "line_src", "line_dst", "cosine", "features")
    }
    atoms = edges = 0
    sizes = []
    for index in range(len(table)):
        graph = jarvis_graph(table[index])
        line = line_graph(graph)
        new = (
            graph.src.astype(np.int64) + atoms,
            graph.dst.astype(np.int64) + atoms,
            -graph.vectors,
            line.src + edges,
            line.dst + edges,
            line.cosine,
            cgcnn_features()[graph.numbers],
        )
        for values, array in zip(parts.values(), new, strict=True):
            values.append(array)
        sizes.append((len(graph.numbers), len(graph.src), len(line.src)))
        atoms, edges = atoms + len(graph.numbers), edges + len(graph.src)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    counts = np.array(sizes, dtype=np.int64).reshape(-1, 3)
    return SimpleNamespace(**joined, atoms=counts[:, 0], edges=counts[:, 1], pairs=counts[:, 2])


# --- the published algebra, plainly ---------------------------------------------------------------


class ReferenceMLP(nn.Module):
    """Linear, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.SiLU())

    def forward(self, x):
        return self.layer(x)


class ReferenceGaussians(nn.Module):
    """exp(-(x - c)^2 / spacing)."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(low, high, bins))
        self.gamma = 1.0 / float(np.diff(self.centers.numpy()).mean())

    def forward(self, x):
        return torch.exp(-self.gamma * (x.unsqueeze(1) - self.centers) ** 2)


class ReferenceConv(nn.Module):
    """Edge-gated graph convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("src_gate", "dst_gate", "edge_gate", "src_update", "dst_update"):
            setattr(self, name, nn.Linear(width, width))
        self.bn_edges, self.bn_nodes = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, ends, x, y):
        src, dst = ends
        m = self.src_gate(x)[src] + self.dst_gate(x)[dst] + self.edge_gate(y)
        gate = torch.sigmoid(m)
        total = torch.zeros_like(x).index_add(0, dst, gate * self.dst_update(x)[src])
        gates = torch.zeros_like(x).index_add(0, dst, gate)
        new = self.src_update(x) + total / (gates + 1e-6)
        silu = nn.functional.silu
        return x + silu(self.bn_nodes(new)), y + silu(self.bn_edges(m))


class ReferenceALIGNN(nn.Module):
    """ALIGNN as its paper writes it, on a graph with all copies of edges."""

    def __init__(self, config: ALIGNNConfig, outputs: int = 1) -> None:
        super().__init__()
        width, between = config.width, config.embedding

        def embedding(low: float, high: float, bins: int) -> nn.Sequential:
            first, second = ReferenceMLP(bins, between), ReferenceMLP(between, width)
            return nn.Sequential(ReferenceGaussians(low, high, bins), first, second)

        self.atom_embedding = ReferenceMLP(92, width)
        self.edge_embedding = embedding(0.0, 8.0, config.edge_bins)
        self.angle_embedding = embedding(-1.0, 1.0, config.angle_bins)
        self.alignn_layers = nn.ModuleList()
        for _ in range(config.alignn_layers):
            convs = {name: ReferenceConv(width) for name in ("node_update", "edge_update")}
            self.alignn_layers.append(nn.ModuleDict(convs))
        self.gcn_layers = nn.ModuleList(ReferenceConv(width) for _ in range(config.gcn_layers))
        self.fc = nn.Linear(width, outputs)

    def forward(self, graph: SimpleNamespace) -> Tensor:
        dtype = self.fc.weight.dtype

        def real(values):
            return torch.as_tensor(values, dtype=dtype)

        ends = torch.as_tensor(graph.src), torch.as_tensor(graph.dst)
        line_ends = torch.as_tensor(graph.line_src), torch.as_tensor(graph.line_dst)
        x = self.atom_embedding(real(graph.features))
        y = self.edge_embedding(real(graph.r).norm(dim=1))
        z = self.angle_embedding(real(graph.cosine))
        for layer in self.alignn_layers:
            x, y = layer["node_update"](ends, x, y)
            y, z = layer["edge_update"](line_ends, y, z)
        for layer in self.gcn_layers:
            x, y = layer(ends, x, y)
        atoms = torch.as_tensor(graph.atoms)
        owner = torch.repeat_interleave(atoms)
        pooled = x.new_zeros(len(atoms), x.shape[1]).index_add(0, owner, x)
        return self.fc(pooled / atoms.unsqueeze(1))


# --- the peer -------------------------------------------------------------------------------------


@dataclass
class Published:
    """The published program in a process of its own."""

    name: str
    peer: Peer
    folder: Path

    def check(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and gradients."""
        self.peer.ask("check")
        with np.load(self.folder / "answer.npz") as answer:
            found = {name: torch.tensor(answer[name]).double() for name in answer.files}
        return found.pop("output"), found

    def step(self) -> Seconds:
        """One optimiser step."""
        return Seconds(*self.peer.ask("step"))


# --- parts ----------------------------------------------------------------------------------------


def run(part: str, options: Namespace) -> dict:
    """One part of the table."""
    structures = PARTS[part](options.structures)
    table = build_graphs(StructureTable.from_structures(structures), GraphSpec())
    rows = np.arange(len(table))
    single, double = (
        GraphLoader(table, rows, dtype=dtype).slice(rows)
        for dtype in (torch.float32, torch.float64)
    )
    copies = published_graph(table)
    shape = {
        "structures": len(table),
        "atoms": len(copies.features),
        "edges": len(copies.src),
        "pairs": len(copies.line_src),
    }
    torch.manual_seed(0)
    target = torch.randn(len(table))
    torch.manual_seed(1)
    weights = build_model(ALIGNNConfig(), 1).state_dict()

    def ours(name: str, backend: str = "auto", **how) -> Variant:
        model = build_model(ALIGNNConfig(backend=backend), 1)
        model.load_state_dict(weights)
        return Variant(name, model, single, target, **how)

    exact = build_model(ALIGNNConfig(backend="torch"), 1)
    exact.load_state_dict(weights)
    truth = Variant("float64", exact.double(), double, target.double())
    plain = ReferenceALIGNN(ALIGNNConfig())
    plain.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as name:
        variants: list[Variant | Published] = []
        peer = None
        if options.peer:
            folder = Path(name)
            np.savez(folder / "graph.npz", **vars(copies), target=target.numpy())
            np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in weights.items()})
            peer = Peer(options.peer, "alignn_dgl.py", folder, options.threads)
            variants.append(Published("published, fp32", peer, folder))
        variants += [
            Variant("plain published algebra, fp32", plain, copies, target),
            ours("atomloom torch, fp32", "torch"),
            ours("atomloom dgl, fp32", "dgl"),
            ours("atomloom, fp32"),
            ours("atomloom, bf16-mixed", bf16=True),
        ]
        if options.compile:
            variants.append(ours("atomloom, fp32, compiled", compiled=True))
            variants.append(ours("atomloom, bf16-mixed, compiled", bf16=True, compiled=True))
        found = compare(variants, truth, options.rounds)
        if peer is not None:
            peer.close()
    show(f"{part}: " + ", ".join(f"{key} {value}" for key, value in shape.items()), found)
    return {"batch": shape, "rows": found, "peer": peer.versions if peer is not None else None}


def main() -> None:
    parser = Parser(__doc__, parts=list(PARTS), peer="alignn, dgl and torch")
    parser.add_argument("--structures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="compiled variants, too (minutes)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = read_result("alignn")
    for part in [options.only] if options.only else PARTS:
        results[part] = run(part, options) | {"machine": machine("torch", threads=options.threads)}
    if options.write:
        write_result("alignn", results)
    speeds = [
        f"{name} {max(row['speedup'] for row in part['rows']):.1f}x"
        for name, part in results.items()
    ]
    print("\nfastest variant against the first row:", ", ".join(speeds))


if __name__ == "__main__":
    main()
