"""The whole config and how it is read: clear one-line messages for typos and wrong values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from atomloom.config.base import Section, expand_variables, unkeyed
from atomloom.config.dataset import Dataset, Split
from atomloom.config.graph import GraphSpec
from atomloom.config.model import IComFormerConfig, ModelConfig
from atomloom.config.teacher import Teacher
from atomloom.config.training import Training
from atomloom.errors import AtomloomError

POTENTIAL_TARGETS = ("energy", "forces", "stress")
"""What a potential can learn: properties of records by these names, in eV, eV/A and eV/A^3."""

_MODEL: TypeAdapter[Any] = TypeAdapter(ModelConfig)


class Paths(Section):
    """Where things go; relative paths start at the working directory."""

    results: str = unkeyed("results")
    """Reports, runs and tables, one folder a data set."""
    store: str = unkeyed("store")
    """Converted structures and graphs, shared by data sets and workflows."""


class Config(Section):
    """The config of one pipeline: a data set, a graph, a model, a training run."""

    dataset: Dataset
    """Raw structures and labels."""
    teacher: Teacher | None = None
    """What computes the labels; null: they are read."""
    graph: GraphSpec = GraphSpec()
    """Neighbour graphs."""
    split: Split = Split()
    """Training, validation and test."""
    model: ModelConfig = IComFormerConfig()
    """The network."""
    training: Training = Training()
    """How it is trained."""
    paths: Paths = unkeyed(Paths())
    """Where things go."""

    def files(self) -> list[str]:
        """Every path the config names, as written."""
        named = [self.dataset.labels.file, self.split.folds_file]
        named += [self.teacher.model] if self.teacher else []
        paths = [self.paths.results, self.paths.store]
        return [*self.dataset.source, *(name for name in named if name), *paths]

    @model_validator(mode="before")
    @classmethod
    def _graph_as_the_model_needs(cls, data: Any) -> Any:
        """Fill in what the model needs of the graph; refuse what contradicts it."""
        if not isinstance(data, dict):
            return data
        model, graph = data.get("model"), data.get("graph")
        if isinstance(model, Mapping):
            model = {"name": IComFormerConfig.model_fields["name"].default, **model}
        try:
            section = _MODEL.validate_python(IComFormerConfig() if model is None else model)
        except ValidationError:
            return data  # which is reported with the model's section, in the words meant for it
        if isinstance(graph, GraphSpec):
            graph = graph.model_dump(exclude_unset=True)
        if graph is not None and not isinstance(graph, Mapping):
            return data
        graph = dict(graph or {})
        for key, value in section.graph_needs().items():
            if graph.setdefault(key, value) != value:
                raise ValueError(
                    f"model {section.name} needs graph.{key}: {value}, not {graph[key]}"
                )
        return data | {"graph": graph}

    @model_validator(mode="after")
    def _targets_fit_the_model(self) -> Config:
        """A potential learns energies, and perhaps forces and stress; nothing else does."""
        model, targets = self.model, self.dataset.target
        if model.kind == "property":
            self._check_property_model()
            return self
        unknown = [name for name in targets if name not in POTENTIAL_TARGETS]
        if unknown or targets[0] != "energy":
            raise ValueError(
                f"model {model.name} learns the targets energy, forces, stress (energy first), "
                f"not {', '.join(targets)}"
            )
        if self.training.classes or self.training.log_targets:
            raise ValueError(
                f"loss: bce, cross_entropy and log_targets are not for {model.name}, a potential"
            )
        if self.dataset.global_features:
            raise ValueError(f"global_features are not for {model.name}, a potential")
        if self.graph.primitive:
            raise ValueError("graph.primitive changes the atoms, and forces belong to those given")
        return self

    def _check_property_model(self) -> None:
        model, training = self.model, self.training
        if training.loss == "rmse":
            raise ValueError(f"loss: rmse is for potentials; {model.name} is none")
        if training.loss == "cross_entropy" and len(self.dataset.target) > 1:
            raise ValueError("loss: cross_entropy is for one target; train a model for each")
        if getattr(model, "readout", "mean") != "sum":
            return
        if training.classes or training.log_targets:
            raise ValueError(
                "readout: sum is for targets that add up over atoms, not for classes and logarithms"
            )
        if self.graph.primitive:
            raise ValueError(
                "graph.primitive changes the number of atoms that readout: sum adds up over"
            )


def load_config(*files: str | Path) -> Config:
    """Read YAML files, each over the one before, into a validated config.

    Raises:
        AtomloomError: when a file is missing or no YAML, a key is unknown or a value is wrong.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text())
        except OSError as error:
            raise AtomloomError("config file cannot be read", where=file, todo=str(error)) from None
        except yaml.YAMLError as error:
            raise AtomloomError(f"not valid YAML: {error}", where=file) from None
        if not isinstance(content, Mapping | None):
            raise AtomloomError("a config is a mapping of sections", where=file)
        _merge(merged, content or {})
    return parse_config(merged, where=", ".join(str(file) for file in files))


def parse_config(content: Mapping[str, Any], where: str = "config") -> Config:
    """Validate nested mappings into a `Config`; errors as in `load_config`."""
    try:
        config = Config.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise AtomloomError(
            f"{key}: {_reason(first)}" if key else _reason(first),
            where=where,
            todo="config/README.md lists all keys"
            if first["type"] in ("extra_forbidden", "missing")
            else "",
        ) from None
    for name in config.files():
        expand_variables(name)
    return config


def dump_config(config: Config) -> str:
    """The config as YAML, every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _reason(error: Any) -> str:
    if error["type"] == "missing":  # what stands around it is no wrong value
        return "is required, and the config has none"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        shown = repr(error["input"])
        return f"{message}, not {shown}" if len(shown) < 60 else message
    known = _known_keys(error["loc"][:-1])
    close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    return "unknown key" + (
        f", did you mean `{close[0]}`?" if close else f" (known: {', '.join(known)})"
    )


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys of the section at a place of the config; a part may name a member of a union."""
    found: list[type[BaseModel]] = [Config]
    for part in location:
        named = [model for model in found if _is_tag(model, part)]
        held = [
            model.model_fields[part].annotation for model in found if part in model.model_fields
        ]
        found = named or [inner for annotation in held for inner in _classes_in(annotation)]
    return list(found[0].model_fields) if found else []


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _classes_in(inner)]


def _is_tag(model: type[BaseModel], part: Any) -> bool:
    field = model.model_fields.get("name")
    return field is not None and part == field.default
