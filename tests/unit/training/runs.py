"""Small training runs for the tests of the loop: random graphs, a target that can be learnt."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atomloom.config import parse_config
from atomloom.data.dataset import LabelledGraphs
from tests.unit.data.tables import random_table

TIMES = "seconds"


def small_data(structures: int = 48, targets: int = 1, seed: int = 0) -> LabelledGraphs:
    """Random graphs whose targets are means over their elements and edges, in odd units."""
    table = random_table(structures, seed)
    rng = np.random.default_rng(seed)
    values = np.array(
        [
            [
                np.sqrt(graph.numbers).mean(),
                np.exp(-graph.distances / 5).sum() / len(graph.numbers),
                len(graph.src) / len(graph.numbers),
            ]
            for graph in (table[i] for i in range(structures))
        ]
    )
    labels = 40.0 + 7.0 * values @ rng.normal(size=(3, targets))
    rows = rng.permutation(structures)
    val, test = structures // 6, structures // 6
    return LabelledGraphs(
        table,
        labels,
        {"train": rows[val + test :], "val": rows[:val], "test": rows[val : val + test]},
    )


def small_config(
    *, targets: int = 1, model: dict | None = None, dataset: dict | None = None, **training
):
    """A config with a network of a few thousand weights and a few steps an epoch."""
    names = [f"target{i}" for i in range(targets)]
    return parse_config(
        {
            "dataset": {"name": "test", "source": ["none"], "target": names, "unit": "eV"}
            | (dataset or {}),
            "model": model or {"name": "icomformer", "width": 8, "layers": 2},
            "training": {"epochs": 3, "batch": {"structures": 8}, "threads": 1, "device": "cpu"}
            | training,
        }
    )


class SumModel(nn.Module):
    """No batch norm, no dropout: the prediction for a structure depends on nothing beside it."""

    def __init__(self, outputs: int, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.edge = nn.Linear(1, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)

    def features(self, batch):
        """[N, width] before the nonlinearity."""
        lengths = batch.edge_vectors().norm(dim=1, keepdim=True)
        nodes = self.embedding(batch.numbers)
        nodes = nodes.index_add(0, batch.dst, torch.tanh(self.edge(lengths / 5.0)).to(nodes.dtype))
        return self.hidden(nodes)

    def forward(self, batch):
        hidden = torch.tanh(self.features(batch))
        sums = hidden.new_zeros(batch.size, hidden.shape[1])
        sums = sums.index_add(0, batch.node_graph, hidden)
        return self.out(sums / batch.node_ptr.diff().unsqueeze(1))


class WatchedModel(SumModel):
    """Remembers the types of its edge vectors and of its features."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.seen = []

    def features(self, batch):
        hidden = super().features(batch)
        self.seen.append((batch.vectors.dtype, hidden.dtype))
        return hidden


def use_sum_model(monkeypatch, model_class=SumModel) -> list[nn.Module]:
    """Let training build a `SumModel`; returns the list of those built."""
    built = []

    def build(config, outputs):
        built.append(model_class(outputs))
        return built[-1]

    monkeypatch.setattr("atomloom.training.trainer.build_model", build)
    monkeypatch.setattr("atomloom.inference.predict.build_model", build)
    return built


def history(run: Path) -> list[dict[str, float]]:
    """Rows of history.csv without the times."""
    with open(run / "history.csv") as file:
        return [
            {name: float(value) for name, value in row.items() if not name.endswith(TIMES)}
            for row in csv.DictReader(file)
        ]
