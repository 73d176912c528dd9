"""Training steps of the property models alongside the plain form of their published algebra.

    python -m benchmarks.speed.property_models [--only comformer] [--published PATH]

The batch: 64 perovskites, 5 atoms each, the 25 nearest neighbours with lattice self-edges; from the
perov5 set where the real data are (ATOMLOOM_DATA), otherwise displaced synthetic cells. Part `rattled`
has every atom displaced by 0.02 A: without symmetry, only edges to lattice images are equal to others.
Finding equal edges is part of our steps, except of compiled ones, for which the loader does it
(`finding_ms`). Every variant takes the same optimiser steps in the same process, in turns; alongside its time stands the
error of its outputs and gradients against float64. `--published PATH` adds the published program
itself, if PATH is a folder from which its package `comformer` imports. Writes
benchmarks/results/property_models.json.
"""

from __future__ import annotations

import csv
import io
import lzma
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config import GraphSpec
from atomloom.config.model import EComFormerConfig, IComFormerConfig
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.common.features import cgcnn_features
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.results import Parser, find_data, machine, read_result, write_result
from benchmarks.common.timing import in_turns, processor
from benchmarks.common.training_steps import Variant, compare, show

# --- the batch ------------------------------------------------------------------------------------


def perovskites(count: int) -> tuple[str, list[Structure]]:
    """Source and structures of `count` five-atom perovskites."""
    path = find_data("perov5/val.csv.xz")
    if path is not None:
        from pymatgen.core import Structure as Crystal

        csv.field_size_limit(1 << 24)
        with lzma.open(path, "rt") as handle:
            rows = list(islice(csv.DictReader(handle), count))
        return "perov5", [to_structure(Crystal.from_str(row["cif"], fmt="cif")) for row in rows]
    rng = np.random.default_rng(0)
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    found = []
    for index in range(count):
        cell = np.eye(3) * rng.uniform(3.7, 4.3)
        found.append(
            Structure(
                numbers=np.array([rng.choice([20, 38, 56]), rng.choice([22, 40, 50]), 8, 8, 8]),
                cell=cell,
                positions=sites @ cell + rng.normal(scale=0.03, size=(5, 3)),
                pbc=np.ones(3, dtype=bool),
                id=str(index),
            )
        )
    return "synthetic", found


def rattled(structures: list[Structure]) -> list[Structure]:
    """The structures with every atom displaced."""
    rng = np.random.default_rng(0)
    return [
        replace(s, positions=s.positions + rng.normal(scale=0.02, size=s.positions.shape))
        for s in structures
    ]


def batches(structures: list[Structure], neighbours: int) -> tuple[GraphBatch, GraphBatch]:
    """One batch of all structures with ComFormer's graph, in float32 and in float64."""
    spec = GraphSpec(max_neighbors=neighbours, lattice=True, lattice_edges=True)
    table = build_graphs(StructureTable.from_structures(structures), spec)
    rows = np.arange(len(table))
    single, double = (
        GraphLoader(table, rows, dtype=dtype).slice(rows)
        for dtype in (torch.float32, torch.float64)
    )
    return single, double


def with_passes(batch: GraphBatch, model: nn.Module) -> tuple[GraphBatch, float]:
    """The batch as a loader delivers it for a compiled model, and the milliseconds that this takes."""
    (work,) = model.passes("cpu", True)
    times = in_turns({"finding": lambda: work(batch)}, rounds=5)["finding"]
    return replace(batch, extras={**batch.extras, **work(batch)}), 1e3 * processor(times)


# --- the published algebra, plainly ---------------------------------------------------------------


def with_copies(batch: GraphBatch) -> SimpleNamespace:
    """The batch as the published models take it: an edge of multiplicity 2 stands twice."""
    keep = torch.repeat_interleave(batch.multiplicity.long())
    dst = batch.dst[keep]
    table = torch.tensor(cgcnn_features(), dtype=batch.positions.dtype)
    return SimpleNamespace(
        x=table[batch.numbers],
        edge_index=torch.stack((batch.src[keep], dst)),
        edge_attr=-batch.edge_vectors()[keep],
        edge_nei=batch.lattice[batch.node_graph[dst]],
        batch=batch.node_graph,
    )


class ReferenceAttention(nn.Module):
    """Keys, messages and gate, on concatenated inputs."""

    def __init__(self, width: int, edge_bias: bool) -> None:
        super().__init__()

        def update() -> nn.Sequential:
            return nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, width))

        self.lin_key, self.lin_query = nn.Linear(width, width), nn.Linear(width, width)
        self.lin_value = nn.Linear(width, width)
        self.lin_edge = nn.Linear(width, width, bias=edge_bias)
        self.lin_concate = nn.Linear(width, width)
        self.lin_msg_update, self.key_update = update(), update()
        self.bn, self.bn_att = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def message(self, query, keys, values, third):
        width = query.shape[-1]
        alpha = query * self.key_update(torch.cat((*keys, third), dim=-1)) / math.sqrt(width)
        gate = torch.sigmoid(self.bn_att(alpha.reshape(-1, width)).view(alpha.shape))
        return self.lin_msg_update(torch.cat((*values, third), dim=-1)) * gate


class ReferenceNodeLayer(ReferenceAttention):
    """The node layer, edge by edge."""

    def __init__(self, width: int) -> None:
        super().__init__(width, edge_bias=True)

    def forward(self, nodes, edge_index, edges):
        src, dst = edge_index
        query, key, value = self.lin_query(nodes), self.lin_key(nodes), self.lin_value(nodes)
        message = self.message(
            query.index_select(0, dst),
            (key.index_select(0, dst), key.index_select(0, src)),
            (value.index_select(0, dst), value.index_select(0, src)),
            self.lin_edge(edges),
        )
        summed = torch.zeros_like(nodes).index_add(0, dst, message.to(nodes.dtype))
        return nn.functional.softplus(nodes + self.bn(self.lin_concate(summed)))


class ReferenceEdgeLayer(ReferenceAttention):
    """The edge layer, edge by edge."""

    def __init__(self, width: int) -> None:
        super().__init__(width, edge_bias=False)
        for axis in (1, 2, 3):
            setattr(self, f"lin_key_e{axis}", nn.Linear(width, width))
            setattr(self, f"lin_value_e{axis}", nn.Linear(width, width))
        self.lemb = nn.Embedding(3, 32)
        self.lin_edge_len = nn.Linear(width + 32, width)

    def forward(self, edges, lengths, angles):
        own = [
            linear(edges).unsqueeze(1).repeat(1, 3, 1)
            for linear in (self.lin_query, self.lin_key, self.lin_value)
        ]
        lattice = [
            torch.stack(
                [getattr(self, f"lin_{kind}_e{k + 1}")(lengths[:, k]) for k in range(3)], dim=1
            )
            for kind in ("key", "value")
        ]
        message = self.message(
            own[0], (own[1], lattice[0]), (own[2], lattice[1]), self.lin_edge(angles)
        )
        return nn.functional.softplus(edges + self.bn(self.lin_concate(message).sum(dim=1)))


class ReferenceGaussians(nn.Module):
    """exp(-gamma (x - c)^2)."""

    def __init__(self, low: float, high: float, centers: int) -> None:
        super().__init__()
        self.gamma = (centers - 1) / (high - low)
        self.register_buffer("centers", torch.linspace(low, high, centers))

    def forward(self, x):
        return torch.exp(-self.gamma * (x.unsqueeze(-1) - self.centers) ** 2)


class ReferenceIComFormer(nn.Module):
    """iComFormer as its paper writes it: copies of edges, products of concatenated inputs."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()

        def embedding(low: float, high: float) -> nn.Sequential:
            gaussians = ReferenceGaussians(low, high, width)
            return nn.Sequential(gaussians, nn.Linear(width, width), nn.Softplus())

        self.atom_embedding = nn.Linear(92, width)
        self.rbf, self.rbf_angle = embedding(-4.0, 0.0), embedding(-1.0, 1.0)
        self.att_layers = nn.ModuleList(ReferenceNodeLayer(width) for _ in range(4))
        self.edge_update_layer = ReferenceEdgeLayer(width)
        self.fc = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.fc_out = nn.Linear(width, outputs)

    def forward(self, data: SimpleNamespace) -> Tensor:
        nodes = self.atom_embedding(data.x)
        length = data.edge_attr.norm(dim=1)
        lattice_length = data.edge_nei.norm(dim=-1)
        cosine = (data.edge_nei * data.edge_attr.unsqueeze(1)).sum(-1)
        cosine = (cosine / (lattice_length * length.unsqueeze(1))).clamp(-1, 1)
        edges, lattice = self.rbf(-0.75 / length), self.rbf(-0.75 / lattice_length)
        angles = self.rbf_angle(cosine)
        nodes = self.att_layers[0](nodes, data.edge_index, edges)
        edges = self.edge_update_layer(edges, lattice, angles)
        for layer in self.att_layers[1:]:
            nodes = layer(nodes, data.edge_index, edges)
        counts = torch.bincount(data.batch)
        pooled = nodes.new_zeros(len(counts), nodes.shape[1]).index_add(0, data.batch, nodes)
        return self.fc_out(self.fc(pooled / counts.unsqueeze(1)))


# --- measuring ------------------------------------------------------------------------------------


def published_class(path: Path | None, name: str) -> Callable[[], nn.Module] | None:
    """The published model of that name, built with its defaults; None without a path."""
    if path is None:
        return None
    sys.path.insert(0, str(path))
    with _quiet():
        module = __import__("comformer.models.comformer", fromlist=[name])
    return getattr(module, name)


class _quiet:
    """Keeps what the published code prints off the table."""

    def __enter__(self):
        self.stdout, sys.stdout = sys.stdout, io.StringIO()

    def __exit__(self, *_):
        sys.stdout = self.stdout


class Published(nn.Module):
    """The published model behind our way of calling: it wants (data, line data, lattice)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: SimpleNamespace) -> Tensor:
        return self.model((data, None, None))

    def named_parameters(self, *args, **kwargs):
        return self.model.named_parameters(*args, **kwargs)


def comformer(options: Namespace) -> dict[str, object]:
    """iComFormer and eComFormer on the crystals as they are."""
    return _compared(options, *perovskites(options.structures))


def without_symmetry(options: Namespace) -> dict[str, object]:
    """iComFormer and eComFormer on displaced crystals."""
    source, structures = perovskites(options.structures)
    return _compared(options, f"{source}, rattled", rattled(structures))


def _compared(options: Namespace, source: str, structures: list[Structure]) -> dict[str, object]:
    batch, exact_batch = batches(structures, options.neighbours)
    copies = with_copies(batch)
    shape = {
        "source": source,
        "structures": batch.size,
        "atoms": len(batch.numbers),
        "edges": len(batch.src),
        "edges_with_copies": copies.edge_index.shape[1],
    }
    print("batch:", ", ".join(f"{key} {value}" for key, value in shape.items()))
    torch.manual_seed(0)
    target = torch.randn(batch.size)
    result: dict[str, object] = {"batch": shape, "width": options.width}
    for name, config, reference in (
        ("iComFormer", IComFormerConfig, ReferenceIComFormer),
        ("eComFormer", EComFormerConfig, None),
    ):
        if options.model not in (None, name.lower()):
            continue
        torch.manual_seed(1)
        model = build_model(config(width=options.width), 1)
        weights = model.state_dict()
        exact = build_model(config(width=options.width), 1).double()
        exact.load_state_dict(weights)
        prepared, result[f"finding_ms_{name}"] = with_passes(batch, model)
        original = published_class(options.published, name.replace("ComF", "Comf"))

        def ours(
            label: str, config=config, weights=weights, prepared=prepared, **how: bool
        ) -> Variant:
            copy = build_model(config(width=options.width), 1)
            copy.load_state_dict(weights)
            data = prepared if how.get("compiled") else batch
            return Variant(label, copy, data, target, **how)

        def variants(reference=reference, original=original, weights=weights, ours=ours):
            if original is not None:
                with _quiet():
                    peer = original()
                peer.load_state_dict(weights)
                yield Variant("published, fp32", Published(peer), copies, target)
                yield Variant("published, bf16-mixed", Published(peer), copies, target, bf16=True)
            if reference is not None:
                plain = reference(options.width)
                plain.load_state_dict(weights)
                yield Variant("plain published algebra, fp32", plain, copies, target)
            yield ours("atomloom, fp32")
            yield ours("atomloom, bf16-mixed", bf16=True)
            if options.compile:
                yield ours("atomloom, fp32, compiled", compiled=True)
                yield ours("atomloom, bf16-mixed, compiled", bf16=True, compiled=True)

        truth = Variant("float64", exact, exact_batch, target.double())
        rows = compare(variants(), truth, options.rounds)
        show(f"{name}, width {options.width}", rows)
        result[name] = rows
    return result


PARTS: dict[str, Callable[[Namespace], dict[str, object]]] = {
    "comformer": comformer,
    "rattled": without_symmetry,
}


def main() -> None:
    parser = Parser(__doc__, parts=list(PARTS))
    parser.add_argument("--model", help="one model of the part, in lower case")
    parser.add_argument("--published", type=Path, help="folder to import the published code from")
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--neighbours", type=int, default=25)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = read_result("property_models")
    for part in [options.only] if options.only else sorted(PARTS):
        results[part] = PARTS[part](options)
        results[part]["machine"] = machine("torch", threads=options.threads)
    if options.write:
        write_result("property_models", results)
    fastest = [
        f"{name} {max(row['speedup'] for row in rows):.1f}x"
        for part in results.values()
        for name, rows in part.items()
        if isinstance(rows, list)
    ]
    print("\nfastest variant against the first row:", ", ".join(fastest))


if __name__ == "__main__":
    main()
