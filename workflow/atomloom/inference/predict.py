"""Predictions of a trained model, from its file alone, for any graphs of its graph spec.

It knows nothing of how the model was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config.graph import GraphSpec
from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import Loader
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.data.placement import Placement, open_loader
from atomloom.errors import AtomloomError, again
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.inference.devices import choose_device
from atomloom.inference.global_features import GLOBALS
from atomloom.inference.model_file import ModelCard, read_model, working_dtype
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.common.layers import segment_sum
from atomloom.models.registry import build_model, require_elements
from atomloom.store.files import expand_home
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained model, ready to predict."""

    model: nn.Module
    """In evaluation mode, on the CPU until used elsewhere."""
    card: ModelCard
    """What it is: config, graph spec, targets, unit."""
    dtype: torch.dtype
    """Precision of its weights."""

    def predict(
        self,
        structures: Sequence[Any],
        bounds: Batching | None = None,
        device: str = "auto",
        globals: Mapping[str, Any] | np.ndarray | None = None,
    ) -> np.ndarray:
        """[len(structures), K] float64 predictions in real units; of a potential, energies [.., 1]; of
        classes probabilities, of class 1 of each target or, where one has C classes, [.., C].

        Args:
            structures: ours, or of pymatgen, ASE or jarvis-tools.
            bounds: most structures, atoms, edges and triplets of a batch.
            device: `auto`, `cpu` or `cuda`.
            globals: where the model was trained with global features: by name, a number or one for
                each structure; or an array of one column each.

        Raises:
            AtomloomError: when a structure is nothing of the kind or cannot have the model's graph.
        """
        own = [to_structure(item) for item in structures]
        for place, structure in enumerate(own):
            if reason := unfit(self.card.graph, structure):
                raise AtomloomError(f"structure {place} {reason}", where="structures")
        table = build_graphs(StructureTable.from_structures(own), self.card.graph)
        if unseen := self.card.unseen(table.numbers):
            warnings.warn(
                f"the model has not seen {', '.join(unseen)} in training: what it predicts of "
                "structures with these elements is a guess",
                stacklevel=2,
            )
        return predict_table(self, table, bounds=bounds, device=device, globals=globals)


def unfit(spec: GraphSpec, structure: Structure) -> str:
    """Why a structure can have no graph of this kind; empty where it may."""
    if (spec.lattice or spec.lattice_edges) and not structure.pbc.all():
        return (
            f"is periodic in {int(structure.pbc.sum())} directions; the model takes crystals alone, "
            "periodic in three"
        )
    return ""


def load_model(path: str | Path, trust: str | Sequence[str] = ()) -> LoadedModel:
    """Build the model that a file describes and fill in its weights.

    Args:
        path: of the file.
        trust: modules or packages that the file may name for its network; their code is run.

    Raises:
        AtomloomError: when the file is missing, damaged, of no model known here, or of one that is not trusted.
    """
    tensors, card = read_model(Path(expand_home(path)), trust)
    dtype = working_dtype(tensors)
    with torch.random.fork_rng(devices=[]):
        given = (len(card.given.names),) if card.given else ()
        try:
            model = build_model(card.model, card.outputs, *given)
        except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
            raise AtomloomError(
                f"describes a model that cannot be built: {error}", where=path
            ) from None
    _require_tensors(Path(path), tensors, model.state_dict())
    model.to(dtype)
    model.load_state_dict(tensors)
    return LoadedModel(model.eval().requires_grad_(False), card, dtype)


def _require_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise AtomloomError where a file has other tensors than the model that it describes."""
    wrong = [f"no {name}" for name in wanted if name not in found]
    wrong += [f"{name}, which it does not have" for name in found if name not in wanted]
    for name in found.keys() & wanted.keys():
        ours, its = wanted[name], found[name]
        if its.shape != ours.shape or its.is_floating_point() != ours.is_floating_point():
            wrong.append(f"{name} as {its.dtype} {list(its.shape)}, not {list(ours.shape)}")
    if wrong:
        shown = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
        raise AtomloomError(
            f"does not hold the tensors of its model: {shown}", where=path, todo=again("train")
        )


def predict_table(
    loaded: LoadedModel,
    table: GraphTable | OnDiskGraphs,
    rows: np.ndarray | None = None,
    bounds: Batching | None = None,
    device: str = "auto",
    globals: Mapping[str, Any] | np.ndarray | None = None,
    choice: Placement | None = None,
) -> np.ndarray:
    """[len(rows), K] float64 predictions as of `LoadedModel.predict`, in the order of `rows` (forces
    and stress of potentials: `atomloom.potentials`).

    Args:
        loaded: the model.
        table: graphs built by the model's own graph spec (`loaded.card.graph`).
        rows: which of them; all unless given.
        bounds: most structures, atoms, edges and triplets of a batch.
        device: `auto`, `cpu` or `cuda`.
        globals: global features of the table's structures.
        choice: how graphs on disk are gone through.
    """
    rows = np.arange(len(table)) if rows is None else np.asarray(rows)
    require_elements(loaded.model, table.numbers)
    device = choose_device(device)
    # Rows may repeat or be in any order: each structure is predicted once.
    unique, place = np.unique(rows, return_inverse=True)
    given = {}
    if loaded.card.given is not None:
        given = {GLOBALS: loaded.card.given.read(globals, len(table), unique)}
    elif globals is not None:
        raise AtomloomError("the model was trained without global features", where="globals")
    options = {"dtype": loaded.dtype, "device": device, "of_structures": given}
    loader = open_loader(table, unique, bounds=bounds, choice=choice, **options)
    model = loaded.model.to(device)
    if isinstance(loaded.card.standardizer, AtomicEnergies):
        return _energies(model, loader, loaded.card.standardizer, table)[unique][place, None]
    outputs = predict_batches(model, loader, loaded.card.outputs)
    atoms = np.diff(table.node_ptr)[unique]
    return loaded.card.standardizer.restore(outputs, atoms)[place]


def _energies(
    model: nn.Module,
    loader: Loader,
    reference: AtomicEnergies,
    table: GraphTable | OnDiskGraphs,
) -> np.ndarray:
    """[S] eV, energies of those structures of a table that a loader goes through; NaN of others."""
    energies = np.full(len(table), np.nan)
    reference.require_elements(table.numbers)
    with torch.no_grad():
        sums = [
            # Added up in float64, as everywhere where energies of atoms become those of structures.
            (batch.rows, segment_sum(model(batch).double(), batch.node_graph, batch.size))
            for batch in loader
        ]
    for rows, values in sums:
        energies[rows.cpu().numpy()] = values.cpu().numpy() * reference.scale
    return energies + reference.offsets(table)


def predict_batches(
    forward: Callable[[GraphBatch], Tensor], loader: Loader, outputs: int
) -> np.ndarray:
    """[R, outputs] float64, standardised predictions in the order of the loader's rows.

    Nothing waits for the device before the last batch is under way.
    """
    parts = []
    with torch.no_grad():
        for batch in loader:
            prediction = forward(batch)
            parts.append(prediction.reshape(batch.size, outputs).double())
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, outputs))
