"""Predictions of a trained model, from its file alone, for any graphs of its graph spec.

It knows nothing of how the model was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atomloom.config.foundation import published_file
from atomloom.config.graph import GraphSpec
from atomloom.config.model import ModelSection
from atomloom.config.training import Batching
from atomloom.data.loader import Loader
from atomloom.data.on_disk import GraphSource
from atomloom.data.placement import Placement, open_loader
from atomloom.errors import AtomloomError
from atomloom.former import warn
from atomloom.graphs.build import build_graphs
from atomloom.inference.devices import choose_device
from atomloom.inference.global_features import GLOBALS
from atomloom.inference.model_file import ModelCard, made_again, read_model, working_dtype
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.sevennet import read_sevennet
from atomloom.models.common.layers import segment_sum
from atomloom.models.common.outputs import Outputs
from atomloom.models.registry import build_model, require_elements, require_sizes
from atomloom.models.tabular.base import TabularModel
from atomloom.store.files import expand_home
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

Given = Mapping[str, Any] | np.ndarray | None
"""Global features as given by the user: by name, or as an array of one column each."""


COMPUTED_BY = "atomloom.features.computing:FeatureComputer"
"""Class that computes derived features, imported where a model has some."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Trained model, ready for predictions."""

    model: nn.Module
    """Network in evaluation mode, on the CPU until used elsewhere."""
    card: ModelCard
    """Card with config, graph spec, targets and unit."""
    dtype: torch.dtype
    """Precision of its weights."""
    trust: tuple[str, ...] = ()
    """Modules, or packages of modules, that its file may name."""

    @cached_property
    def features(self) -> Any:
        """Sources of the model's derived features (`features.computing.FeatureComputer`).

        Raises:
            AtomloomError: when one cannot be opened here, or would give other numbers than in training.
        """
        module, _, name = COMPUTED_BY.partition(":")
        return getattr(import_module(module), name).of(self.card, self.trust)

    def with_features(self, table: StructureTable, told: Given) -> Given:
        """Global features of structures: those that are told, and the derived ones that are not.

        Raises:
            AtomloomError: when the features of a structure cannot be computed.
        """
        if not self.card.features or isinstance(told, np.ndarray):
            return told
        assert self.card.global_features is not None
        if told is not None and set(told) >= set(self.card.global_features.names):
            return told
        computed = self.features.compute(table)
        for place, reason in computed.reasons.items():
            raise AtomloomError(f"structure {place}: {reason}", where="structures")
        return {**computed.columns, **(told or {})}

    def predict(
        self,
        structures: Sequence[Any],
        bounds: Batching | None = None,
        device: str = "auto",
        global_features: Given = None,
        *,
        globals: Given = None,
    ) -> Any:
        """Predict [len(structures), K] float64 values in real units; for a potential, energies [.., 1]; for
        classes probabilities, of class 1 of each target or, with C classes, [.., C].

        A model with targets beyond scalars per structure returns a dict by name: numbers
        [len(structures)], vectors [len(structures), 3], and for targets per atom one array per structure.

        Args:
            structures: of atomloom, pymatgen, ASE or jarvis-tools.
            bounds: max structures, atoms, edges and triplets per batch.
            device: `auto`, `cpu` or `cuda`.
            global_features: if the model was trained with them: by name, one number or one per
                structure; or an array of one column each. Derived features are computed unless they are given.
            globals: former name of `global_features`.

        Raises:
            AtomloomError: when a structure is none of these or cannot have the model's graph.
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
                f"the model has not seen {', '.join(unseen)} in training: its predictions "
                "for structures with these elements are guesses",
                stacklevel=2,
            )
        given = self.with_features(StructureTable.from_structures(own), global_features)
        found = predict_all(self, table, None, bounds, device, given)
        if not self.card.direct:
            return found.scalars
        values: dict[str, Any] = dict(zip(self.card.columns, found.scalars.T, strict=True))
        for spec in self.card.direct:
            values[spec.name] = found.heads[spec.name]
            if spec.per == "atom":
                values[spec.name] = np.split(values[spec.name], table.node_ptr[1:-1])
        return values


def unfit(spec: GraphSpec, structure: Structure) -> str:
    """Reason why a structure cannot have a graph of this kind; empty if it can."""
    if (spec.lattice or spec.lattice_edges) and not structure.pbc.all():
        return (
            f"is periodic in {int(structure.pbc.sum())} directions; the model takes only crystals, "
            "periodic in three"
        )
    return ""


def load_model(path: str | Path, trust: str | Sequence[str] = ()) -> LoadedModel:
    """Build the model that a file describes and fill in its weights.

    Args:
        path: of the file: a model file, a checkpoint of SevenNet (`.pth`), or the name of a published
            potential (`config.foundation`).
        trust: modules or packages that the file may name for its network; their code is run.

    Raises:
        AtomloomError: when the file is missing, damaged, of an unknown model, or of one that is not trusted.
    """
    path = published_file(expand_home(path))
    if path.suffix == ".pth":
        tensors, card = read_sevennet(path)
    else:
        tensors, card = read_model(path, trust)
    dtype = working_dtype(tensors)
    with torch.random.fork_rng(devices=[]):
        try:
            model = build_model(card.model, card.outputs, **card.model_options)
        except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
            raise AtomloomError(
                f"describes a model that cannot be built: {error}", where=path
            ) from None
    if isinstance(model, TabularModel):
        try:
            model.fill_in(tensors)
        except ValueError as error:
            raise AtomloomError(
                f"does not hold the arrays of its model: {error}", where=path, todo=made_again(path)
            ) from None
    _require_tensors(path, tensors, model.state_dict())
    model.to(dtype)
    model.load_state_dict(tensors)
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    return LoadedModel(model.eval().requires_grad_(False), card, dtype, trusted)


def _require_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise AtomloomError if a file has other tensors than the model that it describes."""
    wrong = [f"no {name}" for name in wanted if name not in found]
    wrong += [f"{name}, which it does not have" for name in found if name not in wanted]
    for name in found.keys() & wanted.keys():
        ours, its = wanted[name], found[name]
        if its.shape != ours.shape or its.is_floating_point() != ours.is_floating_point():
            wrong.append(f"{name} as {its.dtype} {list(its.shape)}, not {list(ours.shape)}")
    if wrong:
        shown = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
        raise AtomloomError(
            f"does not hold the tensors of its model: {shown}", where=path, todo=made_again(path)
        )


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of some structures, in real units."""

    scalars: np.ndarray
    """[R, K] float64, with the columns of the model's card; for a potential, energies."""
    heads: Mapping[str, np.ndarray]
    """Values of heads by target, [R, ...], or [atoms of these structures, ...], concatenated."""


def predict_table(
    loaded: LoadedModel,
    table: GraphSource,
    rows: np.ndarray | None = None,
    bounds: Batching | None = None,
    device: str = "auto",
    global_features: Given = None,
    choice: Placement | None = None,
) -> np.ndarray:
    """Predict [len(rows), K] float64 values as `LoadedModel.predict`, in the order of `rows` (forces and
    stress of potentials: `atomloom.potentials`; values of further heads: `predict_all`).

    Args:
        loaded: the model.
        table: graphs built by the model's own graph spec (`loaded.card.graph`).
        rows: of the table; by default all.
        bounds: max structures, atoms, edges and triplets per batch.
        device: `auto`, `cpu` or `cuda`.
        global_features: of the table's structures.
        choice: placement of graphs on disk.
    """
    return predict_all(loaded, table, rows, bounds, device, global_features, choice).scalars


def predict_all(
    loaded: LoadedModel,
    table: GraphSource,
    rows: np.ndarray | None = None,
    bounds: Batching | None = None,
    device: str = "auto",
    global_features: Given = None,
    choice: Placement | None = None,
) -> Predicted:
    """Predict everything except derivatives of energies; arguments are those of `predict_table`."""
    card = loaded.card
    rows = np.arange(len(table)) if rows is None else np.asarray(rows)
    require_elements(loaded.model, table.numbers)
    require_sizes(loaded.model, np.diff(table.node_ptr)[rows])
    if isinstance(card.scaler, AtomicEnergies):
        card.scaler.require_elements(table.numbers)
    device = choose_device(device)
    # Rows may repeat or be in any order: each structure is predicted once.
    unique, place = np.unique(rows, return_inverse=True)
    given: dict[str, np.ndarray] = {}
    if card.global_features is not None:
        given = {GLOBALS: card.global_features.read(global_features, len(table), unique)}
    elif global_features is not None:
        raise AtomloomError(
            "the model was trained without global features", where="global_features"
        )
    loader = open_loader(
        table,
        unique,
        bounds=_bounded(bounds or Batching(), card.model),
        choice=choice,
        dtype=loaded.dtype,
        device=device,
        of_structures=given,
    )
    main, heads = _collected(loaded.model.to(device), card, loader)
    if isinstance(card.scaler, AtomicEnergies):
        scalars = main * card.scaler.scale + card.scaler.offsets(table)[unique][:, None]
    elif card.scaler is not None:
        scalars = card.scaler.restore(main, np.diff(table.node_ptr)[unique])
    else:
        scalars = np.zeros((len(unique), 0))
    return Predicted(scalars[place], _restored(card, heads, table, unique, place))


def _bounded(bounds: Batching, model: ModelSection) -> Batching:
    """Bounds of a batch; where none is given for pairs of atoms, the one by which the model is usually trained."""
    if bounds.atom_pairs is not None:
        return bounds
    usual = model.usual_training.get("batch", {})
    return bounds.model_copy(update={"atom_pairs": usual.get("atom_pairs")})


def _collected(
    model: nn.Module, card: ModelCard, loader: Loader
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Collect [R, outputs] float64 in the network's units, in the loader's order of rows, and values of heads.

    The device is not synchronised before the last batch is under way.
    """
    mains: list[Tensor] = []
    heads: dict[str, list[Tensor]] = {spec.name: [] for spec in card.direct}
    with torch.no_grad():
        for batch in loader:
            said = Outputs.of(model(batch))
            if card.is_potential:
                # Summed in float64, as everywhere where atomic energies become those of structures.
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
    table: GraphSource,
    unique: np.ndarray,
    place: np.ndarray,
) -> dict[str, np.ndarray]:
    """Values of heads in real units for the structures at `place` among the `unique` ones."""
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
    """Indices of the atoms of some structures, in order."""
    counts = np.diff(node_ptr)[rows]
    starts = np.repeat(node_ptr[rows] - (np.cumsum(counts) - counts), counts)
    return starts + np.arange(counts.sum())
