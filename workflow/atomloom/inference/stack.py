"""Stacks: several models in one file, whose weighted mean is the prediction, with an error bar.

Members of one kind (seeds, folds) count by their mean. A stack holds the files of its members as they are. How
weights and error bars are found is not known here.

Legend: S structures, K targets, M kinds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from atomloom import __version__
from atomloom.config.training import Batching
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import STACK, weights_digest
from atomloom.inference.predict import Given, LoadedModel, load_model
from atomloom.store.files import expand_home, plain_stat, write_atomically
from atomloom.store.keys import short_hash
from atomloom.structures.adapters import to_structure
from atomloom.structures.table import StructureTable

FORMAT = 1
AGAIN = "make the stack again"


@dataclass(frozen=True)
class Combination:
    """Combination of the predictions of one target by all kinds."""

    weights: tuple[float, ...]
    """[M] not below zero, with the sum 1."""
    floor: float
    """Error bar where all kinds agree, in the unit of the target."""
    slope: float
    """Error bar per deviation of the kinds, added in squares."""

    def of(self, places: Sequence[int]) -> Combination:
        """The same without kinds that have no weight."""
        return replace(self, weights=tuple(self.weights[place] for place in places))

    def combined(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and error bars [S] of the predictions [S, M] of the kinds."""
        weights = np.array(self.weights)
        mean = predicted @ weights
        spread = (predicted - mean[:, None]) ** 2 @ weights
        return mean, np.sqrt(self.floor**2 + self.slope**2 * spread)


@dataclass(frozen=True, eq=False)
class Stack:
    """Stack of trained models, ready for predictions."""

    kinds: tuple[tuple[LoadedModel, ...], ...]
    """Members of each kind."""
    names: tuple[str, ...]
    """Names of the kinds."""
    combinations: Mapping[str, Combination]
    """Combination of each target, by its name."""
    units: Mapping[str, str]
    """Unit of each target."""
    facts: Mapping[str, Any]
    """Origin of the stack: runs, rows, errors."""

    @property
    def members(self) -> list[LoadedModel]:
        """All members."""
        return [member for members in self.kinds for member in members]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, in the order of the columns of predictions."""
        return tuple(self.combinations)

    def predict(
        self,
        structures: Sequence[Any],
        bounds: Batching | None = None,
        device: str = "auto",
        global_features: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Predict [S, K] float64 values in real units; arguments are those of `LoadedModel.predict`."""
        return self.predict_with_errors(structures, bounds, device, global_features)[0]

    def predict_with_errors(
        self,
        structures: Sequence[Any],
        bounds: Batching | None = None,
        device: str = "auto",
        global_features: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict values [S, K] and their error bars [S, K], within which two thirds of the errors on validation
        rows were.

        Args:
            structures: as for `LoadedModel.predict`.
            bounds: max structures, atoms, edges and triplets per batch.
            device: `auto`, `cpu` or `cuda`.
            global_features: by name, of all members together; each is given its own.

        Raises:
            AtomloomError: as `LoadedModel.predict`.
        """
        if global_features is not None and not isinstance(global_features, Mapping):
            raise AtomloomError(
                "global features of a stack are given by name", where="global_features"
            )
        unknown = set(global_features or ()) - {n for m in self.members for n in _own_names(m)}
        if unknown:
            raise AtomloomError(
                f"no member of the stack takes {', '.join(sorted(unknown))}",
                where="global_features",
            )
        structures, features = list(structures), _Features(structures, global_features or {})
        found = [
            np.mean(
                [m.predict(structures, bounds, device, features.of(m)) for m in members], axis=0
            )
            for members in self.kinds
        ]
        by_kind = np.stack(found, axis=2)
        pairs = [
            combination.combined(by_kind[:, column])
            for column, combination in enumerate(self.combinations.values())
        ]
        means, errors = (np.stack(one, axis=1) for one in zip(*pairs, strict=True))
        return means, errors


def _own_names(member: LoadedModel) -> tuple[str, ...]:
    features = member.card.global_features
    return () if features is None else features.names


class _Features:
    """Global features of structures by member: those that are told, and derived ones, computed once for all members
    that share them.

    Args:
        structures: as the user gives them.
        told: by name.
    """

    def __init__(self, structures: Sequence[Any], told: Mapping[str, Any]) -> None:
        self._structures, self._told = structures, told
        self._derived: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def of(self, member: LoadedModel) -> Given:
        """Features that a member takes; None without any."""
        own = {name: self._told[name] for name in _own_names(member) if name in self._told}
        sources = tuple(sorted((name, one.key) for name, one in member.card.features.items()))
        if sources and sources not in self._derived:
            table = StructureTable.from_structures([to_structure(one) for one in self._structures])
            found = member.with_features(table, own)
            assert isinstance(found, Mapping)
            self._derived[sources] = {n: found[n] for n in found if n not in own}
        return {**self._derived.get(sources, {}), **own} or None


def write_stack(
    path: Path,
    kinds: Sequence[tuple[str, Sequence[Path]]],
    combinations: Mapping[str, Combination],
    units: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write a stack atomically.

    Args:
        path: of the file.
        kinds: name of each kind, and the model files of its members.
        combinations: by target.
        units: by target.
        facts: origin of the stack.
    """
    tensors, listed = {}, []
    for place, (name, files) in enumerate(kinds):
        names = [f"{place}-{member}" for member in range(len(files))]
        listed.append({"name": name, "members": names})
        for member, file in zip(names, files, strict=True):
            content = np.frombuffer(file.read_bytes(), dtype=np.uint8)
            tensors[member] = torch.from_numpy(content.copy())
    card = {
        "format": FORMAT,
        "kinds": listed,
        "combinations": {
            name: {"weights": list(one.weights), "floor": one.floor, "slope": one.slope}
            for name, one in combinations.items()
        },
        "units": dict(units),
        "facts": {"atomloom": __version__, **facts},
    }
    digest = short_hash({"card": card, "tensors": weights_digest(tensors)})
    text = json.dumps({**card, "digest": digest}, sort_keys=True)
    payload = save(tensors, metadata={STACK: text})
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def is_stack(path: Path) -> bool:
    """Whether a file is a stack, as far as it can be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return STACK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_stack(path: str | Path, trust: str | Sequence[str] = ()) -> Stack:
    """Load a stack of models.

    Args:
        path: of the file.
        trust: modules or packages that its members may name for their networks; their code is run.

    Raises:
        AtomloomError: when the file is missing, damaged or not a stack, or a member cannot be loaded.
    """
    path = Path(expand_home(path))
    if not path.exists():
        raise AtomloomError("no stack here", where=path)
    try:
        plain_stat(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AtomloomError(f"cannot be read: {error}", where=path, todo=AGAIN) from None
    if STACK not in metadata:
        raise AtomloomError(
            "is not a stack of models", where=path, todo="load_model reads single models"
        )
    try:
        card = json.loads(metadata[STACK])
        digest = card.pop("digest")
        if digest != short_hash({"card": card, "tensors": weights_digest(tensors)}):
            raise AtomloomError("is damaged: its digest differs", where=path, todo=AGAIN)
        if card["format"] != FORMAT:
            raise AtomloomError(
                f"has format {card['format']}, this atomloom reads {FORMAT}", where=path
            )
        combinations = {
            name: Combination(
                tuple(map(float, one["weights"])), float(one["floor"]), float(one["slope"])
            )
            for name, one in card["combinations"].items()
        }
        kinds = [
            (kind["name"], [tensors[name] for name in kind["members"]]) for kind in card["kinds"]
        ]
        units, facts = card["units"], card["facts"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AtomloomError(f"has a damaged card: {error!r}", where=path, todo=AGAIN) from None
    loaded = tuple(
        tuple(_member(path, content, trust) for content in members) for _, members in kinds
    )
    for name, members in zip((name for name, _ in kinds), loaded, strict=True):
        for member in members:
            if member.card.columns != tuple(combinations):
                raise AtomloomError(
                    f"a member of {name} predicts other targets", where=path, todo=AGAIN
                )
    return Stack(loaded, tuple(name for name, _ in kinds), combinations, units, facts)


def _member(path: Path, content: torch.Tensor, trust: str | Sequence[str]) -> LoadedModel:
    """Load a member from the bytes of its file."""
    with tempfile.TemporaryDirectory(prefix="atomloom-stack-") as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(content.numpy().tobytes())
        try:
            return load_model(file, trust)
        except AtomloomError as error:
            raise AtomloomError(
                f"holds a model that {error.what}", where=path, todo=error.todo
            ) from None
