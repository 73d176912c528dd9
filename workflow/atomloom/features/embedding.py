"""Source `embedding`: mean over the atoms of what a trained network knows of them after its last layer.

These are the scalar features from which the network's own output is made, in its units. It may be a potential,
published or trained, or a model of properties.

Legend: N atoms of a batch, D features of an atom.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from atomloom.config.features import Feature
from atomloom.config.foundation import teacher_file
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.features.base import Described
from atomloom.graphs.build import build_graphs
from atomloom.inference.devices import choose_device
from atomloom.inference.predict import load_model, unfit
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.registry import require_elements, require_sizes
from atomloom.structures.table import StructureTable

TOGETHER = 256
"""Number of structures whose graphs are in memory at a time."""
OPTIONS = ("device", "trust")


class Embedding:
    """Mean features of the atoms of a structure, by a network."""

    costly = True

    def __init__(self, feature: Feature) -> None:
        """Args:
            feature: of the config.

        Raises:
            AtomloomError: when the model cannot be read, or has no features that are of the structure alone.
        """
        if unknown := sorted(set(feature.options) - set(OPTIONS)):
            raise AtomloomError(
                f"embedding: no option `{unknown[0]}`", todo=f"known are {', '.join(OPTIONS)}"
            )
        path = teacher_file(feature.teacher)
        assert path is not None
        loaded = load_model(path, feature.options.get("trust", ()))
        heads = getattr(loaded.model, "heads", None)
        if not isinstance(heads, Heads) or loaded.card.global_features is not None:
            why = (
                f"{loaded.card.model.name} has no layer of learnt features"
                if loaded.card.global_features is None
                else "its features are those of a structure and of further numbers"
            )
            raise AtomloomError(f"cannot embed structures: {why}", where=path)
        self._card, self._dtype = loaded.card, loaded.dtype
        self._device = choose_device(feature.options.get("device", "auto"))
        self._model, self._seen = loaded.model.to(self._device), _Seen(heads.width)
        loaded.model.heads = self._seen
        self.columns = tuple(f"f{number:04d}" for number in range(heads.width))

    def describe(self, table: StructureTable) -> Iterator[Described]:
        """Iterate over the mean features of structures, in order."""
        for first in range(0, len(table), TOGETHER):
            part = table.take(np.arange(first, min(first + TOGETHER, len(table))))
            reasons = [unfit(self._card.graph, part[row]) for row in range(len(part))]
            try:
                if not any(reasons):
                    yield from self._embedded(part)
                    continue
            except AtomloomError:
                pass  # at least one is refused: find it by asking for each by itself
            for row, reason in enumerate(reasons):
                try:
                    if reason:
                        raise AtomloomError(reason)
                    yield from self._embedded(part.take(np.array([row])))
                except AtomloomError as error:
                    yield Described(failure=error.what)

    def _embedded(self, table: StructureTable) -> list[Described]:
        """Mean features of structures, all of which the network knows.

        Raises:
            AtomloomError: when it does not know one.
        """
        begun = time.perf_counter()
        require_elements(self._model, table.numbers)
        require_sizes(self._model, np.diff(table.node_ptr))
        if isinstance(self._card.scaler, AtomicEnergies):
            self._card.scaler.require_elements(table.numbers)
        graphs = build_graphs(table, self._card.graph)
        loader = GraphLoader(graphs, np.arange(len(graphs)), dtype=self._dtype, device=self._device)
        found = []
        with torch.no_grad():
            for batch in loader:
                self._model(batch)
                found.append(self._seen.means(batch))
        values = torch.cat(found).cpu().numpy()
        each = (time.perf_counter() - begun) / len(values)
        known = np.isfinite(values).all(axis=1)
        return [
            Described(row, each) if good else Described(None, each, "features are not finite")
            for row, good in zip(values, known, strict=True)
        ]


class _Seen(Heads):
    """Heads that keep the features which they are given, and predict nothing."""

    def __init__(self, width: int) -> None:
        super().__init__((), width)
        self._features: AtomFeatures | None = None

    def with_main(self, main: Tensor | None, features: AtomFeatures, batch: GraphBatch) -> Tensor:
        """Output of the network, or nothing if it has only heads."""
        self._features = features
        return features.scalars if main is None else main

    def means(self, batch: GraphBatch) -> Tensor:
        """[B, D] float64 means over the atoms of each structure."""
        assert self._features is not None
        values = self._features.scalars.double()
        if self._features.unfold is not None:
            values = values[self._features.unfold]
        sums = values.new_zeros((batch.size, values.shape[1]))
        counts = values.new_zeros(batch.size)
        sums.index_add_(0, batch.node_graph.long(), values)
        counts.index_add_(0, batch.node_graph.long(), torch.ones_like(values[:, 0]))
        return sums / counts[:, None]
