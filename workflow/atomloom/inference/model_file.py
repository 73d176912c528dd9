"""`model.safetensors`: a trained model as one file that is read without pickles.

The tensors are those of the model's state dict, by name; the metadata hold, as JSON, everything
needed to build and use the model. It knows nothing of the loop.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from atomloom import __version__
from atomloom.config.dataset import Checks
from atomloom.config.features import Feature, feature_spec
from atomloom.config.graph import GraphSpec
from atomloom.config.model import VERSION_KEY, ModelConfig, is_by_class, module_version
from atomloom.config.root import Config
from atomloom.errors import AtomloomError, again
from atomloom.former import FormerName
from atomloom.inference.global_features import GlobalFeatures
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.scalers.direct_scaler import DirectScaler
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models.common.outputs import Head
from atomloom.store.files import plain_stat, write_atomically
from atomloom.store.keys import short_hash
from atomloom.structures.elements import SYMBOLS
from atomloom.targets import KINDS, TargetSpec, spec_of

FORMAT = 2
STACK = "atomloom stack"
"""Entry of the metadata of a file that holds several models."""
DIGEST = "digest"
"""Name under which a card holds the digest of its file."""


@dataclass(frozen=True)
class CardFeature:
    """Derived feature as it was in training."""

    section: Feature
    """Its section of the config."""
    key: str
    """Its key, which a feature that gives the same numbers has, too."""


@dataclass(frozen=True, eq=False)
class ModelCard:
    """Card of a model file."""

    model: Any
    """The model's section of the config (a class of `atomloom.config.model`)."""
    graph: GraphSpec
    """Graphs that the model expects."""
    targets: tuple[str, ...]
    """Names of the targets."""
    unit: str | Mapping[str, str]
    """Unit of the targets, or of each by name."""
    scaler: TargetScaler | AtomicEnergies | None
    """Scaler of outputs to real units; for a potential, its atomic energies and scale. None for a network
    with only heads."""
    facts: Mapping[str, Any]
    """Origin of the model: epoch, step, validation error, version of atomloom."""
    global_features: GlobalFeatures | None = None
    """Inputs of the model besides the graph."""
    checks: Checks = field(default_factory=Checks)
    """Checks that the training structures passed."""
    elements: tuple[str, ...] | None = None
    """Elements of the training structures; None if not recorded."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    """Kinds of the targets by name, if not the usual ones of the model."""
    head_scalers: Mapping[str, DirectScaler] = field(default_factory=dict)
    """Scalers of heads to real units, by name of the target."""
    features: Mapping[str, CardFeature] = field(default_factory=dict)
    """Derived features among the global features, by name; their columns are `NAME.COLUMN`."""

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        """Specs of the targets."""
        unit, usual = self.unit, self.model.usual_kind
        units = unit if isinstance(unit, Mapping) else dict.fromkeys(self.targets, unit)
        return tuple(
            spec_of(name, self.kinds.get(name) or usual(name), units.get(name, ""))
            for name in self.targets
        )

    @property
    def direct(self) -> tuple[TargetSpec, ...]:
        """Targets with their own heads."""
        return tuple(spec for spec in self.specs if spec.direct)

    @property
    def is_potential(self) -> bool:
        """Whether it predicts energies, and with them forces and stress."""
        return any(spec.of_energy for spec in self.specs)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Targets that are scalars per structure."""
        return tuple(spec.name for spec in self.specs if spec.is_column)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the predicted numbers per structure: the scalars, or `NAME_p0`, `NAME_p1`, ... for the probabilities
        of several classes."""
        count = getattr(self.scaler, "class_count", 0)
        return tuple(f"{self.targets[0]}_p{i}" for i in range(count)) or self.scalars

    @property
    def outputs(self) -> int:
        """Number of outputs of the network per structure: for a potential, 1, the energy."""
        return len(self.columns)

    @property
    def model_options(self) -> dict[str, Any]:
        """Arguments of the network besides its config and `outputs`."""
        options: dict[str, Any] = {}
        if self.global_features is not None:
            options["global_features"] = len(self.global_features.names)
        heads = tuple(Head(spec.name, spec.per, spec.shape) for spec in self.direct)
        return options | {"heads": heads} if heads else options

    @property
    def told(self) -> tuple[str, ...]:
        """Global features that the user gives: those that are not derived from structures."""
        names = self.global_features.names if self.global_features else ()
        return tuple(name for name in names if name.partition(".")[0] not in self.features)

    def unseen(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Elements among atomic numbers that no training structure has: a property model has learnt nothing
        about them (a potential refuses them)."""
        if self.elements is None:
            return ()
        present = (SYMBOLS[number] for number in np.unique(numbers))
        return tuple(symbol for symbol in present if symbol not in self.elements)

    @classmethod
    def of(
        cls,
        config: Config,
        scaler: TargetScaler | AtomicEnergies | None,
        facts: Mapping[str, Any],
        global_features: GlobalFeatures | None = None,
        elements: tuple[str, ...] | None = None,
        head_scalers: Mapping[str, DirectScaler] | None = None,
    ) -> ModelCard:
        """Create the card of a run."""
        dataset = config.dataset
        return cls(
            config.model,
            config.graph,
            tuple(dataset.target),
            dataset.unit,
            scaler,
            facts,
            global_features,
            dataset.checks,
            elements,
            {spec.name: spec.kind for spec in config.targets if head_scalers},
            head_scalers or {},
            {
                name: CardFeature(one, short_hash(feature_spec(name, one)))
                for name, one in config.features.items()
            },
        )


def write_model(path: Path, tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model file atomically."""
    content = {
        "format": FORMAT,
        "model": card.model.model_dump(mode="json"),
        "graph": card.graph.model_dump(mode="json", exclude_unset=False),
        "targets": list(card.targets),
        "unit": card.unit,
        "scale": None if card.scaler is None else card.scaler.to_dict(),
        "checks": card.checks.model_dump(mode="json", exclude={"max_fraction"}),
        "facts": {"atomloom": __version__, **card.facts},
    }
    if (version := module_version(card.model.name)) is not None:
        content[VERSION_KEY] = version
    if card.elements is not None:
        content["elements"] = list(card.elements)
    if card.global_features is not None:
        content["globals"] = card.global_features.to_dict()
    if card.features:
        content["features"] = {
            name: {"section": one.section.model_dump(mode="json"), "key": one.key}
            for name, one in card.features.items()
        }
    if card.head_scalers:
        content["kinds"] = dict(card.kinds)
        content["heads"] = {name: own.to_dict() for name, own in card.head_scalers.items()}
    # Copies: two names may share memory, which the format cannot express.
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Written here: safetensors would make the file readable only by its owner, and raises its own error
    # for a full disk.
    # One entry: safetensors writes several in any order, and equal models are equal files.
    text = json.dumps({**content, DIGEST: _digest(flat, content)}, sort_keys=True)
    payload = save(flat, metadata={"atomloom": text})
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def read_model(path: Path, trust: str | Sequence[str] = ()) -> tuple[dict[str, Tensor], ModelCard]:
    """Read tensors and card of a model file.

    Args:
        path: of the file.
        trust: modules, or packages of modules, that the file may name for its network and that are then
            imported. No other module is imported because of a file.

    Raises:
        AtomloomError: when the file is missing, damaged, not a model of atomloom, of a newer one, holds
            numbers that are not finite, or names a module that is neither imported nor trusted.
    """
    if not path.exists():
        raise AtomloomError("no model here", where=path, todo="train one first")
    try:
        plain_stat(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error}", where=path) from None
    except SafetensorError as error:
        raise AtomloomError(
            f"cannot be read, damaged or not a model file: {error}",
            where=path,
            todo=made_again(path),
        ) from None
    if STACK in metadata:
        raise AtomloomError(
            "is a stack of several models",
            where=path,
            todo="atomloom.load_stack and atomloom predict read it",
        )
    if "atomloom" not in metadata:
        raise AtomloomError("holds tensors, but not a model of atomloom", where=path)
    content = _content_of(path, metadata["atomloom"])
    # Older files have none.
    if content.pop(DIGEST, digest := _digest(tensors, content)) != digest:
        raise AtomloomError("is damaged: its digest differs", where=path, todo=made_again(path))
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    card = _card_of(path, content, trusted)
    infinite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise AtomloomError(
            f"has weights that are not finite numbers: {', '.join(infinite[:3])}",
            where=path,
            todo=made_again(path),
        )
    return tensors, card


def made_again(path: Path) -> str:
    """Advice on how to replace a model file: one outside the folder of its run is a copy from elsewhere."""
    own = path.with_name("run.json").exists()  # the card of the run
    return again("train") if own else "get the file again from where it comes from"


def _digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """Digest of names, types, shapes and bytes of tensors, and of the card without the digest."""
    card = {name: value for name, value in content.items() if name != DIGEST}
    return _digest_after(json.dumps(card, sort_keys=True), tensors)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes of tensors, which no unit and no version changes."""
    return _digest_after("", tensors)


def _digest_after(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty one cannot be seen as bytes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content_of(path: Path, text: str) -> dict[str, Any]:
    """Parse the card of a file."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AtomloomError(f"has a damaged card: {error}", where=path) from None
    if not isinstance(content, dict):
        raise AtomloomError("has a damaged card: it is not a JSON object", where=path)
    return content


def _card_of(path: Path, content: dict[str, Any], trusted: tuple[str, ...]) -> ModelCard:
    """Build the card from the content of a file.

    Raises:
        AtomloomError: when it is of another version, or describes an unknown model.
    """
    try:
        form, version = content["format"], content.get("facts", {}).get("atomloom", "")
    except (TypeError, KeyError, AttributeError) as error:
        raise AtomloomError(f"has a damaged card: {error}", where=path) from None
    if form != FORMAT:
        raise AtomloomError(
            f"has format {form}, this atomloom reads {FORMAT}",
            where=path,
            todo=f"use atomloom {version}",
        )
    model = content.get("model")
    _require_trust(path, model.get("name") if isinstance(model, Mapping) else None, trusted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FormerName)  # a file of before says what it said then
            model = TypeAdapter(ModelConfig).validate_python(content["model"])
        if module_version(model.name) != content.get(VERSION_KEY):
            raise ValueError(
                f"VERSION of its module was {content.get(VERSION_KEY)} and is {module_version(model.name)}"
            )
        card = ModelCard(
            model=model,
            graph=GraphSpec.model_validate(content["graph"]),
            targets=tuple(content["targets"]),
            unit=content["unit"],
            scaler=None,
            facts=content["facts"],
            global_features=(
                GlobalFeatures.from_dict(content["globals"]) if "globals" in content else None
            ),
            checks=Checks.model_validate(content.get("checks", {})),
            elements=tuple(content["elements"]) if "elements" in content else None,
            kinds=dict(content.get("kinds", {})),
            head_scalers={
                name: DirectScaler.from_dict(own) for name, own in content.get("heads", {}).items()
            },
            features={
                name: CardFeature(Feature.model_validate(one["section"]), str(one["key"]))
                for name, one in content.get("features", {}).items()
            },
        )
        for name, kind in card.kinds.items():
            if kind not in KINDS:
                raise _Unknown(f"predicts {name}, a target of the kind {kind}, not known here")
        if card.scalars:
            scaler = AtomicEnergies if card.is_potential else TargetScaler
            card = replace(card, scaler=scaler.from_dict(content["scale"]))
        _require_sense(card)
    except _Unknown as error:
        raise AtomloomError(
            str(error),
            where=path,
            todo="use the atomloom, with its kinds of targets, that trained it",
        ) from None
    except AtomloomError as error:
        raise AtomloomError(f"has a damaged card: {error.what}", where=path) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AtomloomError(
            f"describes a model that is not known here: {error}", where=path
        ) from None
    return card


def _require_trust(path: Path, name: Any, trusted: tuple[str, ...]) -> None:
    """Raise AtomloomError if a model is of a module whose code the user has not asked for.

    A file is data: a module it names is imported only if the reader of the file says so, or has imported it.
    """
    if not is_by_class(name):
        return
    module = name.partition(":")[0]
    parts = module.split(".")
    packages = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    if module in sys.modules or not set(packages).isdisjoint(trusted):
        return
    raise AtomloomError(
        f"is a model of the module {module[:100]}, whose code would be run",
        where=path,
        todo=f"if you trust it: --trust {packages[0][:100]}, or trust=... of load_model",
    )


class _Unknown(Exception):
    """Kind of targets of another version."""


def _require_sense(card: ModelCard) -> None:
    """Raise ValueError if a card contradicts itself, or a scale is not a finite number."""
    names = card.targets
    if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise ValueError("targets are not names")
    if not isinstance(card.unit, (str, Mapping)):
        raise ValueError("the unit is not text")
    for spec in card.specs:
        if not card.model.can_learn(spec):
            raise ValueError(
                f"{spec.name} is of the kind {spec.kind}, which the model cannot learn"
            )
    scalers = [scaler for scaler in (card.scaler, card.global_features) if scaler is not None]
    numbers, divisors = [], []
    for scaler in [*scalers, *card.head_scalers.values()]:
        numbers += scaler.numbers()
        divisors += scaler.divisors()
    if isinstance(card.scaler, TargetScaler):
        scales = {len(card.scaler.log), len(card.scaler.mean), len(card.scaler.std)}
        if scales != {len(card.scalars)}:
            raise ValueError(f"the scales are not those of {len(card.scalars)} targets")
    if set(card.head_scalers) != {spec.name for spec in card.direct}:
        raise ValueError("the scales of heads are not those of the targets")
    given = card.global_features
    if given is not None and {len(given.mean), len(given.std)} != {len(given.names)}:
        raise ValueError("the scales of global features do not match their names")
    if not all(np.isfinite(np.asarray(value, dtype=np.float64)).all() for value in numbers):
        raise ValueError("a scale is not a finite number")
    if not all((np.asarray(value) > 0).all() for value in divisors):
        raise ValueError("a scale is not above zero")


def working_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Working precision: 64 bits if the weights have them, else 32."""
    doubles = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return torch.float64 if doubles else torch.float32
