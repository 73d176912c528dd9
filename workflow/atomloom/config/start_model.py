"""The model that a training starts from: the file that a name means, and what of it is in keys and configs.

A run is determined by the weights and scales of that model, rather than by its name. They are read without
torch, since the workflow asks for keys whenever it is parsed. Where the file is missing, runs that started
from it tell its digests, so that only training needs it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from atomloom.config.base import Section, expand_variables
from atomloom.config.foundation import (
    ARCHITECTURES,
    TRAINED_ON,
    is_published,
    published_file,
)
from atomloom.config.model import NequIPConfig, is_by_class
from atomloom.errors import AtomloomError
from atomloom.store.files import file_digest, plain_stat, read_json
from atomloom.store.keys import short_hash

WHERE = "training.start_from"
MODEL = "model.safetensors"
_RUN = re.compile(r"(?:[a-z]+-)?([0-9a-f]{4,16})")
"""Short name of a run, or a key, or how either begins."""
_SCALES = ("targets", "kinds", "scale", "heads", "globals")
"""Entries of a model's card that a run depends on, besides the weights."""


@dataclass(frozen=True, eq=False)
class StartModel:
    """Model that a training starts from, as far as its file tells without torch."""

    path: Path | None
    """Its file; None where that is missing, and only a run that started from it is known."""
    weights: str
    """Digest of its weights, as in the run card of their run; of a published potential, that of the file."""
    scales: str
    """Digest of targets and scales."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    """Its sections `model` and `graph`, as plain values."""
    trained_on: tuple[str, ...] = ()
    """Data that it was trained on, its own parents' after its own; none if its file does not tell."""

    @property
    def spec(self) -> dict[str, str]:
        """Content of the key of a run that starts from it."""
        return {"weights": self.weights, "scales": self.scales}

    def require_architecture(self, model: Section, named: str) -> None:
        """Raise AtomloomError if a section `model` is not that of the model's own."""
        own, wanted = self.sections.get("model") or {}, model.model_dump(mode="json")
        if own.get("name") == wanted["name"]:
            # By the section in use, which knows former names and later defaults.
            with suppress(ValueError):
                own = type(model).model_validate(own).key_content()
                wanted = model.key_content()
        differing = [n for n in {**own, **wanted} if own.get(n) != wanted.get(n)]
        if "name" in differing:
            differing = ["name"]
        if differing:
            said = ", ".join(
                f"model.{n} is {wanted.get(n)}, and {own.get(n)} in {named}" for n in differing[:3]
            )
            raise AtomloomError(
                said, where=WHERE, todo="leave `model` out: it is then that of the parent"
            )


def start_model(named: str, results: str, model: Section) -> StartModel:
    """Read the model that a training starts from.

    Args:
        named: in the config.
        results: folder of results that runs are looked for in, as in the config.
        model: section `model` of the config.

    Raises:
        AtomloomError: when there is no such model, it is another architecture than the config's, or that of a run
            that is not finished.
    """
    found = _find(named, results)
    found.require_architecture(model, named)
    return found


def with_start_sections(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Content of a config with the sections `model` and `graph` of the model that it starts from, where it has no
    own `model`; keys of its own `graph` stay.

    Raises:
        AtomloomError: when that model cannot be read, or its network is one of a module.
    """
    training, paths = content.get("training"), content.get("paths")
    named = training.get("start_from") if isinstance(training, Mapping) else None
    if content.get("model") or not isinstance(named, str) or not named:
        return content
    results = paths.get("results") if isinstance(paths, Mapping) else None
    found = _find(named, results if isinstance(results, str) else "results").sections
    graph = content.get("graph")
    if graph is not None and not isinstance(graph, Mapping):
        return content
    if is_by_class(found["model"].get("name")):
        raise AtomloomError(
            f"{named} is a model of a module, whose code would be run",
            where=WHERE,
            todo="give the section `model`, if you trust it",
        )
    return {**content, "model": found["model"], "graph": {**found["graph"], **(graph or {})}}


def start_file(named: str, results: str) -> Path:
    """File of a model: the file itself, that of a run by folder, key or short name, or a published potential.

    Args:
        named: in the config, with variables.
        results: folder of results that runs are looked for in, with variables.

    Raises:
        AtomloomError: when there is none, several runs are meant, or the run is not finished.
    """
    path = published_file(expand_variables(named))
    dataset, _, own = named.rpartition("/")
    if not path.exists() and (short := _RUN.fullmatch(own)):
        found = sorted(Path(expand_variables(results)).glob(f"{dataset or '*'}/runs/{short[1]}*"))
        if len(found) > 1:
            raise AtomloomError(
                f"{len(found)} runs begin with {own}", where=WHERE, todo="give more of it"
            )
        path = found[0] if found else path
    if path.is_dir():
        path /= MODEL
    if not path.exists():
        raise AtomloomError(f"there is no model file or run {named}", where=WHERE)
    if (path.parent / "spec.json").exists() and not (path.parent / "run.json").exists():
        raise AtomloomError(
            f"the run of {path} is not finished: its weights still change",
            where=WHERE,
            todo="finish it first, or copy the file",
        )
    return path


def trained_on(named: str, results: str) -> tuple[str, ...]:
    """Data that a model was trained on; none if its file does not tell.

    Args:
        named: in the config: a model file, a run, or a published potential.
        results: folder of results that runs are looked for in, as in the config.

    Raises:
        AtomloomError: when there is no such model.
    """
    return (TRAINED_ON,) if is_published(named) else _find(named, results).trained_on


UNKNOWN = "unknown data"


def data_behind(named: str, results: str) -> list[str]:
    """Data that a model was trained on, in words; `UNKNOWN` where its file does not tell, or is gone."""
    data: tuple[str, ...] = ()
    with suppress(AtomloomError):
        data = trained_on(named, results)
    return list(data) or [UNKNOWN]


def _find(named: str, results: str) -> StartModel:
    """Read the model of a name, or what runs tell of it."""
    try:
        path = start_file(named, results)
    except (OSError, ValueError) as error:  # such as a name that is too long for a file
        raise AtomloomError(f"is not the name of a file: {error}"[:200], where=WHERE) from None
    except AtomloomError:
        told = {short_hash(one.spec): one for one in _told(named, Path(expand_variables(results)))}
        if len(told) == 1:
            return next(iter(told.values()))
        raise
    if named in ARCHITECTURES and path.suffix != ".safetensors":
        own = NequIPConfig.model_validate(ARCHITECTURES[named])
        sections = {"model": own.model_dump(mode="json"), "graph": own.graph_needs()}
        return StartModel(path, _digest_of_file(path), "", sections, (TRAINED_ON,))
    if path.suffix != ".safetensors":
        raise AtomloomError(
            "is not a model file",
            where=path,
            todo=f"a checkpoint of SevenNet: atomloom import {path} --output NAME.safetensors",
        )
    stat = plain_stat(path)
    return _read(path, stat.st_mtime_ns, stat.st_size)


def _digest_of_file(path: Path) -> str:
    stat = plain_stat(path)
    return _file_digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _file_digest(path: Path, *_: int) -> str:
    return file_digest(path)


@lru_cache(maxsize=64)
def _read(path: Path, *_: int) -> StartModel:
    """Read a model file; the further arguments tell one file from another at its path."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with safe_open(path, framework="numpy") as file:
            content = json.loads((file.metadata() or {})["atomloom"])
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name}:torch.{tensor.dtype}:{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        sections = {"model": dict(content["model"]), "graph": dict(content["graph"])}
        scales = short_hash({name: content.get(name) for name in _SCALES})
        told = content.get("facts", {}).get("trained_on")
        seen = tuple(map(str, told)) if isinstance(told, list) else ()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AtomloomError(
            f"cannot be read, damaged or not a model file: {error}", where=path
        ) from None
    return StartModel(path, digest.hexdigest(), scales, sections, seen)


def _told(named: str, results: Path) -> Iterator[StartModel]:
    """Yield what runs in a results folder tell of the model of this name that they started from."""
    for spec in sorted(results.glob("*/runs/*/spec.json")):
        with suppress(AtomloomError, KeyError, TypeError, AttributeError):
            own = read_json(spec)["start_from"]
            card = spec.with_name("run.json")
            if not card.exists():
                card = spec.parent / "state" / "attempt.json"
            config = read_json(card)["config"]
            if config["training"].get("start_from") == named:
                sections = {name: config[name] for name in ("model", "graph")}
                yield StartModel(None, own["weights"], own["scales"], sections)
