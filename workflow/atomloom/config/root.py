"""The whole config and how it is read: clear one-line messages for typos and wrong values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from atomloom.config.base import Section, expand_variables, unkeyed
from atomloom.config.dataset import Dataset, Split
from atomloom.config.features import Feature, named_features
from atomloom.config.graph import GraphSpec
from atomloom.config.mistakes import check_values, mistake, with_present_names, without_empty
from atomloom.config.model import (
    MODELS,
    IComFormerConfig,
    ModelConfig,
    ModelSection,
    TabularSection,
    is_by_class,
)
from atomloom.config.published import Published
from atomloom.config.reading import read_config_file
from atomloom.config.start_model import StartModel, start_model, with_start_sections
from atomloom.config.sweep import Sweep
from atomloom.config.teacher import Teacher
from atomloom.config.training import Training
from atomloom.errors import AtomloomError
from atomloom.targets import KINDS, TargetSpec, kind_class, kind_named, spec_of

_PLAIN_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_TAKEN = frozenset(
    (
        "energy",
        "energy_per_atom",
        "forces",
        "stress",
        "predictions",
        "refused",
        "dataset",
        "row",
        "atom",
        "element",
        "component",
    )
)
"""Names of tables of a run, which a target with its own table cannot have."""

OF_TABLES = ("seed", "loss", "log_targets", "threads", "batch", "loader")
"""Keys of the section `training` that mean something for a tabular model; it reads rows in batches, too."""

_MODEL: TypeAdapter[Any] = TypeAdapter(ModelConfig)


class Paths(Section):
    """Output folders; relative paths start at the working directory."""

    results: str = unkeyed("results")
    """Reports, runs and tables, one folder per data set."""
    store: str = unkeyed("store")
    """Converted structures and graphs, shared by data sets and workflows."""


class Config(Section):
    """The config of one pipeline: a data set, a graph, a model, a training run."""

    dataset: Dataset
    """Raw structures and labels."""
    teacher: Teacher | None = None
    """Calculator that computes the labels; null: they are read."""
    features: dict[str, Feature] = {}
    """Numbers that are computed for each structure, and are inputs of the model like `dataset.global_features`,
    under names such as `{composition: {}, phonons: {source: gamma_frequencies, model: sevennet-l3i5}}`; a list
    where sources need nothing else (docs/features.md)."""
    graph: GraphSpec = GraphSpec()
    """Neighbour graphs."""
    split: Split = Split()
    """Training, validation and test."""
    model: ModelConfig = IComFormerConfig()
    """The network; a name alone stands for its defaults, and keys without a name are those of
    `icomformer`. `module:Class` names your own model (docs/adding-a-model.md); such a config runs the module's
    code."""
    training: Training = Training()
    """Training of the model."""
    sweep: Sweep | None = unkeyed(None)
    """Runs that differ in some keys, and the best of them: `snakemake sweep` (docs/sweeps.md)."""
    published: Published | None = unkeyed(None)
    """Published errors on the same data, for comparison (docs/published.md)."""
    paths: Paths = unkeyed(Paths())
    """Output folders."""

    @property
    def targets(self) -> tuple[TargetSpec, ...]:
        """Specs of the targets, in the order of `dataset.target`."""
        dataset = self.dataset
        kinds = {
            name: self.model.usual_kind(name) for name in dataset.target
        } | dataset.target_kinds
        return tuple(spec_of(name, kinds[name], dataset.unit_of(name)) for name in dataset.target)

    @property
    def uses_isolated_atoms(self) -> bool:
        """Whether frames of isolated atoms are not structures of the data set, but give reference energies."""
        asked = self.training.potential.reference_energies == "isolated_atoms"
        return asked and any(spec.of_energy for spec in self.targets)

    def files(self) -> list[str]:
        """All paths that the config names, as written."""
        named = [*(table.file for table in self.dataset.label_tables), *self.split.files]
        named += [self.teacher.model] if self.teacher else []
        named += [feature.model for feature in self.features.values()]
        named += [self.training.continue_from, self.training.start_from]
        paths = [self.paths.results, self.paths.store]
        return [*self.dataset.source, *(name for name in named if name), *paths]

    @property
    def start_model(self) -> StartModel | None:
        """Model that the training starts from, read at each call; None if it starts anew.

        Raises:
            AtomloomError: as `config.start_model.start_model`.
        """
        named = self.training.start_from
        return start_model(named, self.paths.results, self.model) if named else None

    @field_validator("features", mode="before")
    @classmethod
    def _features_have_names(cls, value: Any) -> Any:
        return named_features(value)

    @field_validator("features")
    @classmethod
    def _names_of_features_are_plain(cls, value: dict[str, Feature]) -> dict[str, Feature]:
        for name in value:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(
                    f"`{name}` cannot be the name of a feature: letters, digits and _, a letter first"
                )
        return value

    @model_validator(mode="after")
    def _features_are_no_other_columns(self) -> Config:
        for name in [*self.dataset.target, *self.dataset.global_features]:
            if name.partition(".")[0] in self.features and "." in name:
                raise ValueError(
                    f"{name} of the section dataset would be a column of the feature {name.partition('.')[0]}: give "
                    "that another name"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _graph_as_the_model_needs(cls, data: Any) -> Any:
        """Fill in what the model needs of the graph; refuse what contradicts it."""
        if not isinstance(data, dict):
            return data
        model, graph = data.get("model"), data.get("graph")
        model = _with_name(model)
        data = data | {"model": model}
        try:
            section = _MODEL.validate_python(model)
        except ValidationError:
            return data  # reported with the model's section, in its own words
        try:
            graph = GraphSpec.model_validate({} if graph is None else graph)
        except ValidationError:
            return data  # reported there, too
        given = graph.model_dump(exclude_unset=True)
        for key, value in section.graph_needs().items():
            if given.setdefault(key, value) != value:
                raise ValueError(
                    f"model {section.name} needs graph.{key}: {value}, not {given[key]}"
                )
        return data | {"graph": given}

    @model_validator(mode="wrap")
    @classmethod
    def _trained_as_usual(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        """Fill in how the model is usually trained, where the config does not say it."""
        config = handler(data)
        usual = config.model.usual_training
        if not usual or config.training.optimizer == "lbfgs":
            return config
        return _filled(config, {"training": usual})

    @model_validator(mode="after")
    def _targets_fit_the_model(self) -> Config:
        """Check that the model can learn the targets, and that the options fit them."""
        model, targets = self.model, self.targets
        foreign = [spec for spec in targets if not model.can_learn(spec)]
        if foreign and model.kind == "potential":
            raise ValueError(
                f"model {model.name} learns the targets {_potential_targets(model)}, not "
                f"{', '.join(spec.name for spec in foreign)}: dataset.target_kinds sets the kind of a "
                f"target ({model.learns()})"
            )
        if foreign:
            raise ValueError(
                f"model {model.name} does not learn {foreign[0].name}, of the kind {foreign[0].kind}: "
                f"dataset.target_kinds may be {model.learns()}"
            )
        self._check_derivatives()
        of_energy = [spec.name for spec in targets if spec.of_energy]
        if of_energy and targets[0].name != "energy":
            raise ValueError(
                f"model {model.name} learns the targets {_potential_targets(model)}, not "
                f"{', '.join(spec.name for spec in targets)}"
            )
        self._check_weights()
        self._check_direct_targets()
        self._check_published()
        self._check_table()
        self._check_recomputing()
        if model.kind == "property":
            self._check_property_model()
            return self
        if self.training.strategy == "fsdp" and any(spec.derived for spec in targets):
            raise ValueError(
                "training.strategy: fsdp frees weights that forces and stress still need: use ddp"
            )
        if self.training.classes or self.training.log_targets:
            raise ValueError(
                f"loss: bce, cross_entropy and log_targets are not for {model.name}, a potential"
            )
        if self.dataset.global_features:
            raise ValueError(f"global_features are not for {model.name}, a potential")
        if self.features:
            raise ValueError(f"features are not for {model.name}, a potential")
        if self.graph.primitive:
            raise ValueError("graph.primitive changes the atoms, and forces belong to those given")
        options = self.training.potential
        if not of_energy and (options.sampling != "uniform" or options.force_fraction < 1.0):
            raise ValueError(
                "training.potential: sampling and force_fraction need the target energy"
            )
        return self

    def _check_derivatives(self) -> None:
        """Check that forces and stress are not learnt as numbers per structure, unless a table or the config says
        that they are."""
        if self.dataset.label_tables:
            return
        for spec in self.targets:
            if _is_called_as_a_derivative(spec) and spec.name not in self.dataset.target_kinds:
                learn = [name for name, section in MODELS.items() if section.kind == "potential"]
                raise ValueError(
                    f"model {self.model.name} learns numbers per structure, not {spec.name}: the models "
                    f"{', '.join(learn)} do (dataset.target_kinds: {{{spec.name}: scalar}}, if it is a number "
                    "per structure)"
                )

    def loss_weight(self, target: TargetSpec) -> float:
        """Weight of the loss of a target."""
        if target.of_energy:
            return getattr(self.training.potential, f"{target.name}_weight")
        return self.training.loss_weights.get(target.name, 1.0)

    def _check_weights(self) -> None:
        for name in self.training.loss_weights:
            spec = next((spec for spec in self.targets if spec.name == name), None)
            if spec is None:
                raise ValueError(f"training.loss_weights: {name} is not a target")
            if spec.of_energy:
                raise ValueError(
                    f"training.loss_weights: the weight of {name} is training.potential.{name}_weight"
                )
        if not any(self.loss_weight(spec) for spec in self.targets):
            raise ValueError("the weights of all targets are 0: nothing would be learnt")
        if self.training.classes and self.training.loss_weights:
            raise ValueError(f"loss_weights and loss: {self.training.loss} exclude each other")

    def _check_published(self) -> None:
        """Check that published errors are of targets that the run reports, and of folds that it has."""
        if self.published is None:
            return
        reported = [spec.reported for spec in self.targets]
        for error in self.published.errors:
            if error.target not in reported:
                raise ValueError(
                    f"published.errors: {error.target} is not a target that is reported "
                    f"({', '.join(reported)}); published: null leaves the comparison out"
                )
        if self.training.classes:
            raise ValueError(f"published errors are not for loss: {self.training.loss}")
        if self.published.folds > 1 and self.split.kind != "folds":
            raise ValueError("published.folds above 1 needs split.kind: folds")

    def _check_direct_targets(self) -> None:
        """Check targets with their own heads for conflicting options and names."""
        for spec in self.targets:
            if not spec.direct:
                continue
            if self.training.classes:
                raise ValueError(
                    f"loss: {self.training.loss} is for classes; {spec.name} is of the kind {spec.kind}"
                )
            if spec.name in self.training.log_targets:
                raise ValueError(
                    f"training.log_targets: {spec.name} is of the kind {spec.kind}, not a scalar"
                )
            if self.graph.primitive:
                raise ValueError(
                    f"graph.primitive changes the atoms, and {spec.name} belongs to those given"
                )
            if not _PLAIN_NAME.fullmatch(spec.name) or spec.name in _TAKEN:
                raise ValueError(
                    f"a target of the kind {spec.kind} cannot be called `{spec.name}`, since tables and files "
                    "have its name (letters, digits and _)"
                )

    def _check_recomputing(self) -> None:
        name = self.model.name
        if not self.training.gradient_checkpointing or self.model.recomputing or is_by_class(name):
            return
        can = [one for one, section in MODELS.items() if section.recomputing]
        raise ValueError(
            f"training.gradient_checkpointing: model {name} has no layers that can be recomputed; "
            f"{', '.join(can)} have"
        )

    def _check_table(self) -> None:
        """Check that a tabular model has a table, and is not told what means something to networks only."""
        model, training = self.model, self.training
        if not isinstance(model, TabularSection):
            if self.graph.neighbors == "none":
                raise ValueError(
                    f"model {model.name} sees graphs: graph.neighbors: none is for tabular models"
                )
            return
        if not self.dataset.global_features and not self.features:
            raise ValueError(
                f"model {model.name} learns from dataset.global_features, columns of the label tables, and from "
                "`features`: name some"
            )
        if training.loss not in model.losses:
            raise ValueError(
                f"model {model.name} is not fitted by training.loss: {training.loss} "
                f"({' or '.join(model.losses)})"
            )
        usual = {**model.usual_training, "device": training.device}
        for name, field in Training.model_fields.items():
            value = getattr(training, name)
            if name not in OF_TABLES and value != usual.get(name, field.get_default()):
                raise ValueError(
                    f"model {model.name} is fitted at once, so training.{name} means nothing for it: leave it out"
                )
        if training.device == "cuda":
            raise ValueError(
                f"model {model.name} is fitted on the CPU: training.device may be auto or cpu"
            )

    def _check_property_model(self) -> None:
        model, training = self.model, self.training
        if training.loss == "rmse":
            raise ValueError(f"loss: rmse is for potentials; {model.name} is not one")
        unknown = [name for name in training.log_targets if name not in self.dataset.target]
        if unknown:
            raise ValueError(f"training.log_targets: {unknown[0]} is not a target")
        if training.loss == "cross_entropy" and len(self.dataset.target) > 1:
            raise ValueError("loss: cross_entropy is for one target; train a model for each")
        for name in self.dataset.target:
            if training.classes and f"{name}_p0" in self.dataset.target:
                raise ValueError(
                    f"{name}_p0 cannot be a target alongside {name}: class probabilities have that name"
                )
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


def _with_name(model: Any) -> Any:
    """Content of the section `model` with the name of the model, which may be all that is given, or left out."""
    if isinstance(model, str):
        return {"name": model}
    if model is None or isinstance(model, Mapping):
        return {"name": IComFormerConfig.model_fields["name"].default, **(model or {})}
    return model


def graph_needs(model: Any) -> dict[str, Any]:
    """Keys of the section `graph` that the model of this content decides; none if it is no model."""
    try:
        return _MODEL.validate_python(_with_name(model)).graph_needs()
    except ValidationError:
        return {}


def _filled(section: Section, values: Mapping[str, Any]) -> Any:
    """The section with values for keys that are not set."""
    filled = {
        key: _filled(getattr(section, key), value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if isinstance(value, Mapping) or key not in section.model_fields_set
    }
    return section.model_copy(update=filled)


def _potential_targets(model: ModelSection) -> str:
    """Targets of a potential, in words."""
    more = [name for kind in KINDS if model.can_learn(spec := kind_class(kind)(kind)) and spec.direct
            for name in spec.names]  # fmt: skip
    return "energy, forces, stress (energy first)" + (f" and {', '.join(more)}" if more else "")


def direct_kinds(config: Config) -> dict[str, dict[str, str]]:
    """Content of keys for kinds of targets: empty if all are of the original kinds, under their usual names."""
    kinds = {
        spec.name: spec.kind
        for spec in config.targets
        if spec.direct or _is_called_as_a_derivative(spec)
    }
    return {"kinds": kinds} if kinds else {}


def _is_called_as_a_derivative(spec: TargetSpec) -> bool:
    """Whether a number per structure has the name of what a potential derives: forces or stress."""
    return spec.is_column and kind_class(kind_named(spec.name)).source == "derivative"


def load_config(*files: str | Path) -> Config:
    """Read YAML files, each overriding the one before, into a validated config.

    Raises:
        AtomloomError: when a file is missing or not YAML, a key is unknown or a value is wrong.
    """
    merged: dict[str, Any] = {}
    for file in files:
        # by file, so that a former name goes over the present one, and the other way about
        content = with_present_names(read_config_file(file), Config, where=str(file))
        _merge(merged, content)
    return parse_config(merged, where=", ".join(str(file) for file in files))


def parse_config(content: Mapping[str, Any], where: str = "config") -> Config:
    """Validate nested mappings into a `Config`; errors as in `load_config`."""
    content = with_start_sections(with_present_names(content, Config, where))
    check_values(content, Config, where)
    try:
        config = Config.model_validate(without_empty(content, Config))
    except ValidationError as error:
        raise mistake(error, content, Config, where) from None
    for name in config.files():
        try:
            expand_variables(name)
        except AtomloomError as error:
            raise told_where_data_are(error, config) from None
    return config


def told_where_data_are(error: AtomloomError, config: Config) -> AtomloomError:
    """The error of a missing file, which also says where the data of a preset can be had."""
    if config.published is None or not config.published.data:
        return error
    todo = "; ".join(part for part in (error.todo, f"the data: {config.published.data}") if part)
    return AtomloomError(error.what, where=error.where, todo=todo)


def dump_config(config: Config) -> str:
    """The config as YAML, every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value
