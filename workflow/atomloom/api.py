"""`atomloom.train`: the whole pipeline from a notebook or a script, in the current process.

Structures and labels in memory are written into the store under their content hashes; from
there on everything is as in the workflow: the same stages, keys and folders, so that a
second call with another learning rate builds no graph.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import Config, parse_config
from atomloom.config.base import Section
from atomloom.config.dataset import Dataset, Split
from atomloom.config.graph import GraphSpec
from atomloom.config.mistakes import with_present_names
from atomloom.config.model import IComFormerConfig, TabularSection, section_named
from atomloom.config.reading import read_config_file
from atomloom.config.training import Training
from atomloom.errors import AtomloomError, again
from atomloom.inference.predict import LoadedModel, load_model
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.stage_table import STAGES
from atomloom.store.files import expand_home, read_json, write_text
from atomloom.store.keys import chain_hash
from atomloom.store.parquet import read_table
from atomloom.structures.adapters import to_structure
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure

Log = Callable[[str], None]

OWN = ("name", "source", "target", "labels", "global_features")
"""Keys of `dataset` that follow from the other arguments."""


@dataclass(frozen=True, eq=False)
class Run:
    """Trained model with all results of its run."""

    places: RunPaths
    """Paths of the run."""

    @property
    def config(self) -> Config:
        """Complete config."""
        return self.places.config

    @property
    def folder(self) -> Path:
        """Folder of run card, metrics, predictions, history and model file."""
        return self.places.run

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Errors: target -> split -> name -> number."""
        return read_json(self.folder / "metrics.json", todo=again("evaluate"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """History, one row per epoch."""
        from atomloom.stages.train import read_history

        return read_history(self.places)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Predictions, one row per structure."""
        return read_table(self.folder / "predictions.parquet", todo=again("evaluate"))

    @cached_property
    def model(self) -> LoadedModel:
        """Model of the best epoch."""
        return load_model(self.folder / "model.safetensors")

    def predict(self, structures: Any, **options: Any) -> np.ndarray:
        """Predict structures (or one), see `LoadedModel.predict`."""
        many = structures if isinstance(structures, (list, tuple)) else [structures]
        return self.model.predict(many, **options)

    @cached_property
    def report(self) -> Path:
        """Report of this run, an HTML page, written on demand."""
        from atomloom.stages.report import report_run

        return report_run(self.places, _say_nothing)


def train(
    structures: Sequence[Any] | str | Path,
    labels: Any,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    name: str = "notebook",
    target: str = "target",
    folder: str | Path = ".",
    global_features: Mapping[str, Any] | None = None,
    log: Log = print,
    **overrides: Any,
) -> Run:
    """Train a model; existing results are not made again.

        run = atomloom.train(crystals, band_gaps, model="ecomformer", epochs=50, learning_rate=1e-3)
        run.metrics["target"]["test"]["mae"], run.predict(others)
        run = atomloom.train("frames.extxyz", ["energy", "forces"], model="painn")

    Args:
        structures: of atomloom, pymatgen, ASE or jarvis-tools; or a path of structure files.
        labels: one number per structure; several targets as {name: numbers}; or the name (or names)
            of properties that the structures or records have themselves. Structures with NaN for all
            targets, or for a global feature, are left out.
        config: config values that differ from the defaults: nested mappings, a YAML file or
            a `Config`.
        name: of the data set; results go to `<folder>/results/<name>/`.
        target: name of the numbers, where `labels` gives none.
        folder: where `results/` and `store/` are.
        global_features: {name: one number per structure}, or names of properties of the records.
        log: takes one line at a time.
        overrides: single keys of the config (`epochs=5`), whole sections as mappings
            (`graph={"max_neighbors": 16}`), and `model="ecomformer"`.

    Raises:
        AtomloomError: when labels do not fit the structures, a key is unknown or belongs to several
            sections, or a stage fails.
    """
    folder = Path(expand_home(folder))
    content = with_present_names(_content(config), Config, "atomloom.train")
    if isinstance(content.get("model"), str):
        content["model"] = {"name": content["model"]}
    placed = with_present_names(_placed(overrides, content), Config, "atomloom.train")
    content = _merged(content, placed)
    paths = {"results": str(folder / "results"), "store": str(folder / "store")}
    content["paths"] = paths | _section(content, "paths")
    given = _given(structures, labels, target, global_features, Path(content["paths"]["store"]))
    dataset = {key: v for key, v in _section(content, "dataset").items() if key not in OWN}
    content["dataset"] = {**dataset, "name": name, **given}
    return run_pipeline(parse_config(content, where="atomloom.train"), log)


def run_pipeline(config: Config, log: Log = print) -> Run:
    """Run all stages of a config, one after another in this process, except those that are done.

    Raises:
        AtomloomError: when a stage fails.
    """
    from atomloom.stages.relabel import relabel_run
    from atomloom.stages.train import train_in_processes

    paths = prepare(config, log)
    if not STAGES["train"].done(paths):
        if config.training.devices == 1:
            STAGES["train"].run(paths, log)
        else:
            train_in_processes(paths.layout, log)
    if not STAGES["evaluate"].done(paths):
        STAGES["evaluate"].run(paths, log)
    relabel_run(paths, log)
    return Run(paths)


def prepare(config: Config, log: Log = print) -> RunPaths:
    """Run the stages before training, except those that are done; return the paths of the run.

    Raises:
        AtomloomError: when a stage fails.
    """
    from atomloom.stages.current import current_plan

    layout = Layout(config)
    paths = RunPaths(layout, current_plan(layout, log))
    for stage in takewhile(lambda stage: stage.name != "train", STAGES.values()):
        for key in paths.plan.chunk_keys if stage.per_chunk else [""]:
            if stage.wanted(config) and not stage.done(paths, key):
                stage.run(paths, log, key)
    return paths


# --- structures and labels that are in memory ---


def _given(
    structures: Any,
    labels: Any,
    target: str,
    global_features: Any,
    store: Path,
) -> dict[str, Any]:
    """Content of the `dataset` section for structures and labels."""
    names = [labels] if isinstance(labels, str) else labels
    named = isinstance(names, (list, tuple)) and bool(names) and isinstance(names[0], str)
    told = global_features or {}
    columns = {} if named else dict(names) if isinstance(names, Mapping) else {target: names}
    if isinstance(told, Mapping):
        columns |= told
    targets = list(names) if named else [key for key in columns if key not in told]
    content = {"target": targets, "global_features": list(told)}
    if isinstance(structures, (str, Path)):
        if columns:
            raise AtomloomError(
                "labels of records in a file are given by name, not as numbers",
                where=structures,
                todo="name properties of the records, or give the structures themselves",
            )
        return content | {"source": [str(structures)]}
    own = [to_structure(item) for item in structures]
    columns = {name: _numbers(name, values, len(own)) for name, values in columns.items()}
    finite = {name: np.isfinite(values) for name, values in columns.items()}
    given = [finite[name] for name in targets if name in finite]
    known = np.any(given, axis=0) if given else np.ones(len(own), dtype=bool)
    for name in set(finite) - set(targets):
        known = known & finite[name]
    own = [structure for structure, has in zip(own, known, strict=True) if has]
    wanted = [n for n in (*targets, *told) if n not in columns]
    frames = [_frame(structure, wanted).encode() for structure in own]
    if not frames:
        raise AtomloomError("there is no structure with labels", where="structures")
    key = chain_hash(frames)
    source = store / "given" / f"{key}.extxyz"
    _write_once(source, b"".join(frames).decode())
    if not columns:
        return content | {"source": [str(source)]}
    ids = [f"{key}-{place:06d}" for place in range(len(own))] if len(own) > 1 else [key]
    table = pd.DataFrame({"id": ids, **{name: values[known] for name, values in columns.items()}})
    text = table.to_csv(index=False, float_format="%.17g")
    file = store / "given" / f"{chain_hash([text])}.csv"
    _write_once(file, text)
    return content | {"source": [str(source)], "labels": {"file": str(file), "id_column": "id"}}


def _numbers(name: str, values: Any, count: int) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,):
        raise AtomloomError(
            f"{name} has shape {numbers.shape} for {count} structures", where="labels"
        )
    return numbers


def _write_once(path: Path, text: str) -> None:
    """Write a file named by a hash of its content; an existing one is right and keeps its time stamp."""
    if not path.exists():
        write_text(path, text)


def _frame(structure: Structure, wanted: Sequence[str]) -> str:
    """One frame of extended XYZ, with all digits and the given properties of the structure."""
    count = len(structure)
    columns, words = [], []
    for name in wanted:
        value = structure.properties.get(name)
        if value is None:
            continue
        values = np.asarray(value, dtype=np.float64)
        if name in structure.per_atom:
            columns.append((name, values.reshape(count, -1)))
        else:
            words.append(f'{name}="{_digits(values)}"')
    layout = "species:S:1:pos:R:3" + "".join(f":{n}:R:{v.shape[1]}" for n, v in columns)
    cell = f'Lattice="{_digits(structure.cell)}" ' if structure.cell.any() else ""
    pbc = " ".join("FT"[int(flag)] for flag in structure.pbc)
    rows = np.concatenate([structure.positions, *(v for _, v in columns)], axis=1).tolist()
    atoms = "".join(
        f"{SYMBOLS[z]} {' '.join(map(repr, row))}\n"
        for z, row in zip(structure.numbers, rows, strict=True)
    )
    text = " ".join([f'{cell}Properties={layout} pbc="{pbc}"', *words])
    return f"{count}\n{text}\n{atoms}"


def _digits(values: np.ndarray) -> str:
    return " ".join(map(repr, values.reshape(-1).tolist()))


# --- the config ---


def _section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Section of an unvalidated config; empty if it is missing."""
    found = content.get(name)
    if not isinstance(found, Mapping | None):
        raise AtomloomError("should be a mapping of keys", where=f"atomloom.train: {name}")
    return dict(found or {})


def _content(config: Config | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Content of a config, as nested dicts."""
    if config is None:
        return {}
    if isinstance(config, Config):
        return config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, Mapping):
        return _plain(config)
    return read_config_file(config)


def _plain(value: Any) -> Any:
    """Nested values as in a config file: paths as text, numpy numbers as Python numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _placed(given: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in their sections."""
    overrides: dict[str, Any] = _plain(given)
    if isinstance(overrides.get("model"), str):
        overrides["model"] = {"name": overrides["model"]}
    model = _merged(content.get("model", {}), overrides.get("model", {}))
    model = model if isinstance(model, Mapping) else {}
    keys = dict(_keys(model.get("name")))
    placed: dict[str, Any] = {}
    # Whole sections first: a model of another name replaces what was said of the one before.
    for key, value in sorted(
        overrides.items(), key=lambda item: item[0] not in Config.model_fields
    ):
        if key in Config.model_fields:
            placed[key] = _merged(placed.get(key, {}), value)
            continue
        sections = [section for section, names in keys.items() if key in names]
        if len(sections) > 1:
            raise AtomloomError(
                f"{key} is a key of the sections {' and '.join(sections)}",
                where="atomloom.train",
                todo=f"say which: {sections[0]}={{'{key}': ...}}",
            )
        if not sections:
            known = sorted({name for names in keys.values() for name in names})
            close = difflib.get_close_matches(key, known, n=1)
            raise AtomloomError(
                f"no key {key}" + (f", did you mean {close[0]}?" if close else ""),
                where="atomloom.train",
                todo="config/README.md lists all keys",
            )
        placed[sections[0]] = _merged(placed.get(sections[0], {}), {key: value})
    return placed


def _keys(model: str | None) -> Iterator[tuple[str, set[str]]]:
    """Names of the keys of each section, for the chosen model."""
    try:
        meant = section_named(model or IComFormerConfig.model_fields["name"].default)
    except ValueError as error:
        raise AtomloomError(str(error), where="model.name") from None
    own = _names(meant) - {"name"} if meant else set()
    tabular = meant is not None and issubclass(meant, TabularSection)
    # A learning rate of boosting is no other one of the training.
    yield "training", _names(Training) - (own if tabular else set())
    yield "graph", _names(GraphSpec)
    yield "split", _names(Split)
    yield "dataset", _names(Dataset) - set(OWN)
    yield "model", own


def _names(section: type[Section]) -> set[str]:
    """Names of a section's keys, former ones too."""
    return {*section.model_fields, *section.former_names()}


def _merged(base: Any, over: Any) -> Any:
    """Merge nested dicts, the second overriding the first; a model of another name replaces it entirely."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "name" in over and over["name"] != base.get("name"):
        return dict(over)
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _say_nothing(_: str) -> None:
    """Ignore a message."""
