"""Predictions of a trained model, from its file alone, for any graphs of its graph spec.

It knows nothing of how the model was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config.graph import GraphSpec
from atomloom.config.training import Batching
from atomloom.data.loader import Loader
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.data.placement import Placement, open_loader
from atomloom.errors import AtomloomError, again
from atomloom.former import warn
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.inference.devices import choose_device
from atomloom.inference.global_features import GLOBALS
from atomloom.inference.model_file import ModelCard, read_model, working_dtype
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.common.layers import segment_sum
from atomloom.models.common.outputs import Outputs
from atomloom.models.registry import build_model, require_elements
from atomloom.store.files import expand_home
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

Given = Mapping[str, Any] | np.ndarray | None
"""Global features as a user gives them: by name, or as an array of one column each."""


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
        global_features: Given = None,
        *,
        globals: Given = None,
    ) -> Any:
        """[len(structures), K] float64 predictions in real units; of a potential, energies [.., 1]; of
        classes probabilities, of class 1 of each target or, where one has C classes, [.., C].

        A model with targets that are more than a number per structure gives a dict by name: numbers
        [len(structures)], vectors [len(structures), 3], and of what atoms have an array per structure.

        Args:
            structures: ours, or of pymatgen, ASE or jarvis-tools.
            bounds: most structures, atoms, edges and triplets of a batch.
            device: `auto`, `cpu` or `cuda`.
            global_features: where the model was trained with them: by name, a number or one for each
                structure; or an array of one column each.
            globals: the former name of `global_features`.

        Raises:
            AtomloomError: when a structure is nothing of the kind or cannot have the model's graph.
        """
        if globals is not None:
            warn("predict(globals=...)", "predict(global_features=...)")
            global_features = globals
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
        found = predict_all(self, table, None, bounds, device, global_features)
        if not self.card.direct:
            return found.scalars
        values: dict[str, Any] = dict(zip(self.card.columns, found.scalars.T, strict=True))
        for spec in self.card.direct:
            values[spec.name] = found.heads[spec.name]
            if spec.per == "atom":
                values[spec.name] = np.split(values[spec.name], table.node_ptr[1:-1])
        return values


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
        try:
            model = build_model(card.model, card.outputs, **card.model_options)
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


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of some structures, in real units."""

    scalars: np.ndarray
    """[R, K] float64, columns as of the model's card; of a potential energies."""
    heads: Mapping[str, np.ndarray]
    """By name of the target, [R, ...], or [atoms of these structures, ...] one after the other."""


def predict_table(
    loaded: LoadedModel,
    table: GraphTable | OnDiskGraphs,
    rows: np.ndarray | None = None,
    bounds: Batching | None = None,
    device: str = "auto",
    global_features: Given = None,
    choice: Placement | None = None,
) -> np.ndarray:
    """[len(rows), K] float64 predictions as of `LoadedModel.predict`, in the order of `rows` (forces
    and stress of potentials: `atomloom.potentials`; what further heads give: `predict_all`).

    Args:
        loaded: the model.
        table: graphs built by the model's own graph spec (`loaded.card.graph`).
        rows: which of them; all unless given.
        bounds: most structures, atoms, edges and triplets of a batch.
        device: `auto`, `cpu` or `cuda`.
        global_features: those of the table's structures.
        choice: how graphs on disk are gone through.
    """
    return predict_all(loaded, table, rows, bounds, device, global_features, choice).scalars


def predict_all(
    loaded: LoadedModel,
    table: GraphTable | OnDiskGraphs,
    rows: np.ndarray | None = None,
    bounds: Batching | None = None,
    device: str = "auto",
    global_features: Given = None,
    choice: Placement | None = None,
) -> Predicted:
    """All that a model says of some structures but derivatives of energies; args as of `predict_table`."""
    card = loaded.card
    rows = np.arange(len(table)) if rows is None else np.asarray(rows)
    require_elements(loaded.model, table.numbers)
    if isinstance(card.scaler, AtomicEnergies):
        card.scaler.require_elements(table.numbers)
    device = choose_device(device)
    # Rows may repeat or be in any order: each structure is predicted once.
    unique, place = np.unique(rows, return_inverse=True)
    given = {}
    if card.global_features is not None:
        given = {GLOBALS: card.global_features.read(global_features, len(table), unique)}
    elif global_features is not None:
        raise AtomloomError(
            "the model was trained without global features", where="global_features"
        )
    options = {"dtype": loaded.dtype, "device": device, "of_structures": given}
    loader = open_loader(table, unique, bounds=bounds, choice=choice, **options)
    main, heads = _collected(loaded.model.to(device), card, loader)
    if isinstance(card.scaler, AtomicEnergies):
        scalars = main * card.scaler.scale + card.scaler.offsets(table)[unique][:, None]
    elif card.scaler is not None:
        scalars = card.scaler.restore(main, np.diff(table.node_ptr)[unique])
    else:
        scalars = np.zeros((len(unique), 0))
    return Predicted(scalars[place], _restored(card, heads, table, unique, place))


def _collected(
    model: nn.Module, card: ModelCard, loader: Loader
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """[R, outputs] float64 in the network's units, in the order of the loader's rows, and what heads give.

    Nothing waits for the device before the last batch is under way.
    """
    mains: list[Tensor] = []
    heads: dict[str, list[Tensor]] = {spec.name: [] for spec in card.direct}
    with torch.no_grad():
        for batch in loader:
            said = Outputs.of(model(batch))
            if card.is_potential:
                # Added up in float64, as everywhere where energies of atoms become those of structures.
                energies = segment_sum(said.required.double(), batch.node_graph, batch.size)
                mains.append(energies.unsqueeze(1))
            elif card.outputs:
                mains.append(said.required.reshape(batch.size, card.outputs).double())
            for name, parts in heads.items():
                parts.append(said.heads[name].double())
    shapes = {spec.name: spec.shape for spec in card.direct}
    return (
        _joined(mains, (card.outputs,)),
        {name: _joined(parts, shapes[name]) for name, parts in heads.items()},
    )


def _joined(parts: list[Tensor], shape: tuple[int, ...]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, *shape))


def _restored(
    card: ModelCard,
    heads: Mapping[str, np.ndarray],
    table: GraphTable | OnDiskGraphs,
    unique: np.ndarray,
    place: np.ndarray,
) -> dict[str, np.ndarray]:
    """What heads give of `unique` structures, in real units, of the structures at `place` among them."""
    if not heads:
        return {}
    counts = np.diff(table.node_ptr)[unique]
    numbers = table.numbers[atoms_of(table.node_ptr, unique)]
    ptr = np.concatenate([[0], np.cumsum(counts)])
    found = {}
    for spec in card.direct:
        values = card.head_scalers[spec.name].restore(heads[spec.name], numbers)
        found[spec.name] = values[atoms_of(ptr, place) if spec.per == "atom" else place]
    return found


def atoms_of(node_ptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Atoms of some structures, in their order."""
    counts = np.diff(node_ptr)[rows]
    starts = np.repeat(node_ptr[rows] - (np.cumsum(counts) - counts), counts)
    return starts + np.arange(counts.sum())
