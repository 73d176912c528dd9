"""A small world for the tests of potentials: crystals whose energies are those of a pair potential."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from atomloom.config import GraphSpec
from atomloom.config.model import PaiNNConfig
from atomloom.config.training import Training
from atomloom.data.dataset import LabelledGraphs
from atomloom.graphs.build import build_graphs
from atomloom.models.common.layers import segment_sum
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.targets import spec_of
from atomloom.training import trainer
from tests.unit.training.runs import small_config

CUTOFF = 4.5
OFFSETS = {3: -200.0, 9: -650.0}
"""eV of single atoms, far larger than bonds, as in all-electron calculations."""


class PairModel(nn.Module):
    """Energies of atoms as sums over pairs, of a few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.charge = nn.Embedding(100, 4)
        self.constant = nn.Embedding(100, 1)
        self.decay = nn.Parameter(torch.tensor([0.6, 0.9, 1.2, 1.5]))

    def forward(self, batch):
        """[N]"""
        lengths = batch.edge_vectors().norm(dim=1, keepdim=True)
        smooth = 0.5 * (torch.cos(torch.pi * lengths / CUTOFF) + 1.0)
        both = self.charge(batch.numbers[batch.dst]) * self.charge(batch.numbers[batch.src])
        pairs = (both * torch.exp(-self.decay * lengths) * smooth).sum(dim=1)
        return (
            segment_sum(pairs, batch.dst, len(batch.numbers)) + self.constant(batch.numbers)[:, 0]
        )


def pair_data(structures: int = 36, seed: int = 0) -> LabelledGraphs:
    """Crystals of two elements with exact energies, forces and stresses of a pair potential."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(structures):
        count = int(rng.integers(2, 6))
        cell = np.eye(3) * rng.uniform(3.6, 4.6) + rng.normal(0, 0.2, (3, 3))
        grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]])
        places = (grid[:count] + rng.normal(0, 0.04, (count, 3))) @ cell
        numbers = rng.choice(list(OFFSETS), size=count)
        made.append(Structure(numbers, places, cell, np.ones(3, dtype=bool)))
    spec = GraphSpec(neighbors="radius", cutoff=CUTOFF)
    table = build_graphs(StructureTable.from_structures(made), spec)
    energies = np.zeros((structures, 1))
    forces, stress = np.zeros((len(table.numbers), 3)), np.zeros((structures, 3, 3))
    for row in range(structures):
        graph = table[row]
        first = table.node_ptr[row]
        charge = {3: 2.0, 9: -1.2}
        q = np.array([charge[z] for z in graph.numbers])
        r, d = graph.vectors, graph.distances
        f = 0.5 * (np.cos(np.pi * d / CUTOFF) + 1.0)
        slope = -0.5 * np.pi / CUTOFF * np.sin(np.pi * d / CUTOFF)
        both = q[graph.src] * q[graph.dst]
        decay = np.exp(-0.9 * d)
        energies[row] = (both * decay * f).sum() + sum(OFFSETS[int(z)] for z in graph.numbers)
        along = (both * decay * (slope - 0.9 * f) / d)[:, None] * r  # dE/dr of each directed pair
        np.add.at(forces, first + graph.dst.astype(int), along)
        np.add.at(forces, first + graph.src.astype(int), -along)
        stress[row] = np.einsum("ei,ej->ij", r, along) / abs(np.linalg.det(graph.cell))
    rows = rng.permutation(structures)
    val = structures // 6
    split = {"train": rows[val:], "val": rows[:val], "test": rows[:0]}
    arrays = {"forces": forces, "stress": stress}
    return LabelledGraphs(table, energies, split, arrays, [spec_of(name, name) for name in arrays])


def pair_config(targets=("energy", "forces", "stress"), potential: dict | None = None, **training):
    """A config of a potential; `use_pair_model` lets the loop train `PairModel` in its place."""
    options = {"precision": "64", "weight_decay": 0.0, "potential": potential or {}}
    config = small_config(targets=len(targets))
    settings = Training(**config.training.model_dump() | options | training)
    dataset = config.dataset.model_copy(update={"target": list(targets)})
    changes = {"model": PaiNNConfig(cutoff=CUTOFF), "dataset": dataset, "training": settings}
    return config.model_copy(update=changes)


def use_pair_model(monkeypatch) -> None:
    """Let the loop train `PairModel`."""
    monkeypatch.setattr(trainer, "build_model", lambda config, outputs: PairModel())
