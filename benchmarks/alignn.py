"""Training steps of ALIGNN at its default size, beside the published program and the plain algebra.

    python benchmarks/alignn.py [--only PART] [--peer PYTHON] [--compile]

One step is forward, backward and optimiser on one batch of real crystals (ATOMLOOM_DATA). Parts:
`phonons`, crystals of matbench_phonons; `sample`, ALIGNN's own example; `rattled`, those of
`phonons` with every atom displaced by 0.02 A, so that no symmetry is left to make use of. Every
variant takes its steps in turns with the others, by the same graphs; beside its time stands the
error of its outputs and of its gradient against float64. `--peer PYTHON` is an interpreter that has
the packages alignn, dgl and torch: it gets graph, targets and weights as npz files and runs in a
process of its own, in float32 (under bf16 autocast DGL refuses: it has no such sums on a CPU). Writes benchmarks/results/alignn.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config import GraphSpec
from atomloom.config.model import ALIGNNConfig
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.line_graph import jarvis_graph, line_graph
from atomloom.models import build_model
from atomloom.models.common.features import cgcnn_features
from atomloom.pipeline.run_card import processor
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ATOMLOOM_DATA") or HERE.parents[1] / "shared" / "data")
RESULT = HERE / "results" / "alignn.json"


# --- the batch ------------------------------------------------------------------------------------


def phonons(count: int) -> list[Structure]:
    """Crystals of matbench_phonons, evenly from the whole set."""
    records = enumerate_records([DATA / "matbench_phonons" / "matbench_phonons.json.gz"])
    chosen = islice(records, 0, 1265, 1265 // count)
    return [parse_record(r.format, r.payload or b"", r.id) for r in chosen][:count]


def sample(count: int) -> list[Structure]:
    """Crystals of ALIGNN's example."""
    records = enumerate_records([DATA / "alignn_sample" / "sample_data.tar.gz"])
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


# --- variants -------------------------------------------------------------------------------------


@dataclass
class Variant:
    """One way to take the training step."""

    name: str
    model: nn.Module
    data: GraphBatch | SimpleNamespace
    target: Tensor
    bf16: bool = False
    compiled: bool = False
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.call = torch.compile(self.model) if self.compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0)

    def _backward(self) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            output = self.call(self.data)
        output = output.reshape(-1).to(self.target.dtype)
        (output - self.target).square().mean().backward()
        return output.detach()

    def check(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and gradients."""
        output = self._backward().double()
        named = self.model.named_parameters()
        return output, {name: w.grad.double() for name, w in named if w.grad is not None}

    def step(self) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        self._backward()
        self.optimizer.step()
        return time.perf_counter() - begin


@dataclass
class Peer:
    """The published program in a process of its own."""

    name: str
    process: subprocess.Popen
    folder: Path
    seconds: list[float] = field(default_factory=list)

    def _ask(self, what: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the peer ended; see its message above")
        return answer

    def check(self) -> tuple[Tensor, dict[str, Tensor]]:
        self._ask("check")
        with np.load(self.folder / "answer.npz") as answer:
            found = {name: torch.tensor(answer[name]).double() for name in answer.files}
        return found.pop("output"), found

    def step(self) -> float:
        return float(self._ask("step"))


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def compare(variants: list[Variant | Peer], exact: Variant, rounds: int) -> list[dict]:
    """Errors against `exact`, then times: every variant once a round, in turns."""
    true_output, true_gradient = exact.check()
    rows = []
    for variant in variants:
        output, gradient = variant.check()
        # Weights that take no part have a gradient of zero here and none there.
        names = sorted(true_gradient.keys() & gradient.keys())
        found, true = (
            torch.cat([part[name].flatten() for name in names])
            for part in (gradient, true_gradient)
        )
        rows.append(
            {
                "variant": variant.name,
                "output_error": relative(output, true_output),
                "gradient_error": relative(found, true),
            }
        )
        variant.step()
    for _ in range(rounds):
        for variant in variants:
            variant.seconds.append(variant.step())
    for row, variant in zip(rows, variants, strict=True):
        row["step_ms"] = 1e3 * statistics.median(variant.seconds)
        row["fastest_ms"] = 1e3 * min(variant.seconds)
    for row in rows:
        row["speedup"] = rows[0]["step_ms"] / row["step_ms"]
    return rows


def run(part: str, options: argparse.Namespace) -> dict:
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
    print(f"\n{part}:", ", ".join(f"{key} {value}" for key, value in shape.items()))
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
        variants: list[Variant | Peer] = []
        process = None
        if options.peer:
            folder = Path(name)
            np.savez(folder / "graph.npz", **vars(copies), target=target.numpy())
            np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in weights.items()})
            process = subprocess.Popen(
                [options.peer, "-P", HERE / "alignn_peer.py", folder, str(options.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            variants.append(Peer("published, fp32", process, folder))
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
        if process is not None:
            process.communicate()
    print(f"{'variant':34s} {'ms/step':>9s} {'fastest':>9s} {'speed':>6s} "
          f"{'output error':>13s} {'gradient error':>15s}")  # fmt: skip
    for row in found:
        print(
            f"{row['variant']:34s} {row['step_ms']:9.1f} {row['fastest_ms']:9.1f} "
            f"{row['speedup']:6.2f} {row['output_error']:13.1e} {row['gradient_error']:15.1e}",
            flush=True,
        )
    return {"batch": shape, "rows": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(PARTS), help="one part of the table")
    parser.add_argument("--peer", help="interpreter that has the package alignn")
    parser.add_argument("--structures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="compiled variants, too (minutes)")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for part in [options.only] if options.only else PARTS:
        results[part] = run(part, options) | {
            "threads": options.threads,
            "torch": torch.__version__,
            "processor": processor(),
            "peer": _versions(options.peer) if options.peer else None,
        }
    if options.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
    speeds = [
        f"{name} {max(row['speedup'] for row in part['rows']):.1f}x"
        for name, part in results.items()
    ]
    print("\nfastest variant against the first row:", ", ".join(speeds))


def _versions(python: str) -> dict[str, str]:
    """What the peer is; it runs as its package stands, unchanged."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in ('alignn', 'dgl', 'torch')}))"
    )
    text = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(text)


if __name__ == "__main__":
    main()
