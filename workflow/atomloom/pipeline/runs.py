"""Runs in a results folder: their names, states, errors, and what differs between them.

Read from run cards, metrics and the records of attempts alone; no shard is opened and nothing is written. A
file that cannot be read makes its run a damaged one and leaves the others as they are.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from atomloom import former
from atomloom.config import Config, load_config
from atomloom.config.base import Section
from atomloom.config.foundation import published_file
from atomloom.config.model import MODELS
from atomloom.errors import AtomloomError
from atomloom.pipeline.attempt import ATTEMPT, PROGRESS, in_training
from atomloom.pipeline.parent import WHERE as PARENT
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.run_card import HISTORY
from atomloom.store.files import read_json
from atomloom.store.keys import flat, short_hash

STATES = (
    "evaluated",
    "trained",
    "training",
    "stopped",
    "unfinished",
    "failed",
    "damaged",
    "planned",
)
"""States of a run. `stopped`: a training that was interrupted or killed, or that ended at the epoch it was
asked to; it resumes where it was. `unfinished`: it is in training or was stopped, and nothing tells which, since
another version began it or the file system has no locks. `planned`: there is a plan for it, and nothing has been
trained."""

DIGITS = 5
"""Characters of the key in a short name."""
NAMELESS = "target"
"""Name of the only target of a run that does not say how it is called."""
_KEY = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(rf"[a-z]+-[0-9a-f]{{{DIGITS}}}|{_KEY.pattern}")
_SHORTEST = 4
"""Min characters of a key that stand for all of it."""

_WORDS = """
agate albite almandine amber anatase andesite anglesite anhydrite ankerite anorthite apatite
aragonite argentite augite autunite azurite barite basalt bauxite beryl biotite bismite
boehmite boracite borax bornite brookite brucite calcite celestine cerussite chabazite chert
chlorite chromite cinnabar citrine cobaltite columbite copper corundum covellite cryolite
cuprite danburite datolite diamond diopside dolomite dunite emerald enargite epidote erythrite
feldspar flint fluorite gabbro gahnite galena garnet gibbsite gneiss goethite granite graphite
gypsum halite hematite ilmenite jadeite jasper kaolin kernite kyanite lazurite leucite lignite
limonite magnetite malachite marble marcasite mica millerite mimetite monazite mullite
muscovite natrolite nepheline nickeline obsidian olivine onyx opal orpiment periclase
proustite pumice pyrite pyrope quartz realgar rhodonite rutile sanidine scheelite siderite
sodalite spinel stibnite talc topaz
"""
MINERALS = tuple(_WORDS.split())
"""Words of short names. Another list would rename all runs: it stays as it is."""


def short_name(key: str) -> str:
    """Name of a run for people, which follows from its key alone, such as `calcite-3fa9c`."""
    return f"{MINERALS[int(key[-4:], 16) % len(MINERALS)]}-{key[:DIGITS]}"


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as its files tell."""

    folder: Path
    """Folder of the run; that of a planned one does not exist yet."""
    dataset: str
    """Name of the data set."""
    state: str
    """One of `STATES`."""
    reason: str = ""
    """Reason that it failed, or is damaged."""
    epoch: int | None = None
    """Epochs trained, as saved."""
    epochs: int | None = None
    """Epochs of the whole run."""
    best_epoch: int | None = None
    """Epoch with the lowest validation error so far, from 1."""
    config: Mapping[str, Any] | None = None
    """Complete config; None where nothing tells it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of what the run was made from: plan, graph, index, dataset."""
    errors: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Mean absolute errors: target -> split -> number. Of an unfinished run, validation errors so far."""
    accuracies: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Accuracies of targets that are classes, of an evaluated run: target -> split -> share of right predictions."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Target -> unit of its errors."""
    seconds: float | None = None
    """Time of training and validation."""
    when: str = ""
    """Time (UTC, ISO 8601) at which it was finished, stopped or begun, whichever is known last."""

    @property
    def key(self) -> str:
        """Run key."""
        return self.folder.name

    @property
    def name(self) -> str:
        """Short name."""
        return short_name(self.key)

    @property
    def progress(self) -> str:
        """State in words, with the epochs of an unfinished run."""
        if self.state in ("training", "stopped", "unfinished", "failed") and self.epochs:
            return f"{self.state} {self.epoch or 0}/{self.epochs}"
        return self.state


# --- where runs are ---


def dataset_folders(results: Path) -> list[Path]:
    """Folders of data sets in a results folder, or the folder of one data set itself.

    Raises:
        AtomloomError: when there is no such folder.
    """
    results = Path(results)
    if not results.is_dir():
        todo = "give the results folder of a project"
        if results.suffix in (".yaml", ".yml", ".json"):
            todo = f"a config is given as --config {results}"
        raise AtomloomError("no such folder", where=results, todo=todo)
    if results.name in ("", ".."):  # data sets are named by their folders
        results = results.resolve()
    if any((results / name).is_dir() for name in ("runs", "configs")) and not (
        (results / "runs" / "runs").is_dir() or (results / "configs" / "configs").is_dir()
    ):
        return [results]
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(results)
            if entry.is_dir()
            and any(Path(entry.path, name).is_dir() for name in ("runs", "configs"))
        )
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error.strerror}", where=results) from None


def run_folders(dataset: Path) -> list[Path]:
    """Folders of the runs of one data set, by key."""
    try:
        entries = list(os.scandir(dataset / "runs"))
    except OSError:
        return []
    return sorted(
        Path(entry.path) for entry in entries if _KEY.fullmatch(entry.name) and entry.is_dir()
    )


def find_run(results: Path, name: str) -> RunRecord:
    """The run that is meant by a name.

    Args:
        results: the results folder of a project, or of one of its data sets.
        name: a short name, a run key or its first characters, perhaps after `DATASET/`; or the path of a
            run's folder, or of a file in it.

    Raises:
        AtomloomError: when there is no such run, or several are meant.
    """
    if name and (path := Path(name)).exists():
        folder = (path if path.is_dir() else path.parent).resolve()
        if _KEY.fullmatch(folder.name):
            return read_run(folder)
    wanted, _, own = name.rpartition("/")
    known = [
        folder
        for dataset in dataset_folders(results)
        if wanted in ("", dataset.name)
        for folder in run_folders(dataset)
    ]
    found = [folder for folder in known if own in (folder.name, short_name(folder.name))]
    if not found and len(own) >= _SHORTEST:
        found = [folder for folder in known if folder.name.startswith(own)]
    if len(found) == 1:
        return read_run(found[0])
    listed = f"`atomloom runs {results}` lists all"
    if not found:
        raise AtomloomError(
            f"there is no run `{name}`", where=results, todo=_nearest(own, known) + listed
        )
    several = ", ".join(f"{folder.parents[1].name}/{folder.name}" for folder in found[:4])
    raise AtomloomError(
        f"`{name}` may be {'any of ' if len(found) > 2 else ''}{several}{' ...' * (len(found) > 4)}",
        where=results,
        todo="give one of these",
    )


def model_file(path: Path) -> Path:
    """Path of a model file; for the short name or key of a run in `results`, perhaps after `DATASET/`, that of its
    model, and for the name of a published potential that of its checkpoint.

    Raises:
        AtomloomError: when there is no such run, or several are meant, or the potential is not installed.
    """
    path = published_file(path)
    if path.exists() or not _NAME.fullmatch(path.name) or not Path("results").is_dir():
        return path
    return find_run(Path("results"), str(path)).folder / "model.safetensors"


def _nearest(name: str, known: Sequence[Path]) -> str:
    """Advice that names the run whose name is the nearest, if one is near."""
    import difflib

    close = difflib.get_close_matches(name, [short_name(folder.name) for folder in known], n=1)
    return f"did you mean {close[0]}? " if close else ""


def all_runs(results: Path) -> list[RunRecord]:
    """All runs in a results folder, by data set and key; planned ones last.

    Raises:
        AtomloomError: when there is no such folder.
    """
    return [run for dataset in dataset_folders(results) for run in runs_of(dataset)]


def runs_of(dataset: Path) -> list[RunRecord]:
    """All runs of one data set, by key; planned ones last."""
    runs = {folder.name: read_run(folder) for folder in run_folders(dataset)}
    told = set[str]()
    for run in runs.values():
        if run.config is not None:
            told |= set(_config_names(run.config))
    for key, config, paths in _configured(dataset, told):
        known = runs.get(key)
        if known is None:
            runs[key] = replace(planned_run(paths), folder=dataset / "runs" / key)
        elif known.config is None and known.state != "damaged":
            runs[key] = _told_by(known, config, paths)
    return sorted(runs.values(), key=lambda run: (run.state == "planned", run.key))


def _config_names(config: Mapping[str, Any]) -> Iterator[str]:
    """Names that the merged config of a run may have: a job is told how many threads it has."""
    with suppress(TypeError, KeyError):
        yield short_hash(config)
        yield short_hash({**config, "training": {**config["training"], "threads": None}})


def _configured(dataset: Path, told: set[str]) -> Iterator[tuple[str, Config, RunPaths]]:
    """Run key and config of each merged config that no run card tells of, where there is a plan for it."""
    plans: dict[Path, Plan] = {}
    for file in sorted((dataset / "configs").glob("*.yaml")):
        if file.stem in told:
            continue
        # A config of another version, or whose files are elsewhere, plans nothing here.
        with suppress(AtomloomError, OSError), former.told_by(_say_nothing):
            config = load_config(file)
            layout = Layout(config)
            folder = dataset / "plan" / layout.plan_folder.name
            if folder not in plans:
                plans[folder] = Plan.read(folder / "plan.json")
            paths = RunPaths(layout, plans[folder])
            yield paths.run_key, config, paths


def planned_run(paths: RunPaths) -> RunRecord:
    """The run of a config, as if nothing of it had been trained."""
    config = paths.config
    return RunRecord(
        paths.run,
        config.dataset.name,
        "planned",
        epochs=config.training.epochs,
        config=config.model_dump(mode="json"),
        keys=_keys_of(paths),
    )


def _say_nothing(_: str) -> None:
    """Ignore that a config has former names: whoever uses it is told."""


def _told_by(run: RunRecord, config: Config, paths: RunPaths) -> RunRecord:
    """A run that says little of itself, with what its config tells of it."""
    units = {spec.reported: spec.reported_unit for spec in config.targets}
    errors = run.errors
    if [*errors] == [NAMELESS]:
        errors = dict(zip(units, errors.values(), strict=False))
    return replace(
        run,
        config=config.model_dump(mode="json"),
        keys=_keys_of(paths),
        epochs=run.epochs or config.training.epochs,
        units=units,
        errors=errors,
    )


def _keys_of(paths: RunPaths) -> dict[str, str]:
    return {
        "plan": paths.layout.plan_folder.name,
        "graph": paths.layout.graph_key,
        "index": paths.index.name,
        "dataset": paths.dataset_key,
    }


# --- one run ---


def read_run(folder: Path) -> RunRecord:
    """The run in a folder; a damaged file is its state and not an error."""
    record = RunRecord(folder, folder.parents[1].name, "stopped", when=_changed(folder))
    try:
        return _finished(record) if (folder / "run.json").exists() else _unfinished(record)
    except AtomloomError as error:
        return replace(record, state="damaged", reason=_local(str(error), folder))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} in its files: {error}"
        return replace(record, state="damaged", reason=reason)
    except OSError as error:
        return replace(record, state="damaged", reason=f"cannot be read: {error.strerror}")


def _local(text: str, folder: Path) -> str:
    """Message in which files of the run are named by their place in it."""
    return text.replace(f"{folder}{os.sep}", "")


def _changed(folder: Path) -> str:
    try:
        seconds = folder.stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _finished(record: RunRecord) -> RunRecord:
    """A run with a card."""
    card = read_json(record.folder / "run.json", "config", "epochs_run")
    best = card.get("best_epoch")
    record = replace(
        record,
        state="trained",
        epoch=card["epochs_run"],
        epochs=card["config"]["training"]["epochs"],
        best_epoch=best,
        config=card["config"],
        keys={name: key for name, key in card.get("keys", {}).items() if name != "run"},
        units=_units(card),
        seconds=_number(card.get("seconds")),
        when=str(card.get("finished", record.when)),
    )
    if not (record.folder / "model.safetensors").exists():
        reason = "model.safetensors is missing, which the next call trains again"
        return replace(record, state="damaged", reason=reason)
    metrics = record.folder / "metrics.json"
    if not metrics.exists():
        return replace(record, errors=_validated(record.folder, record.units, best))
    found = read_json(metrics)
    errors = {
        target: {split: _number(values.get("mae")) for split, values in splits.items()}
        for target, splits in found.items()
    }
    accuracies = {
        target: {split: _number(values.get("accuracy")) for split, values in splits.items()}
        for target, splits in found.items()
        if any("accuracy" in values for values in splits.values())
    }
    return replace(record, state="evaluated", errors=errors, accuracies=accuracies)


def _unfinished(record: RunRecord) -> RunRecord:
    """A run without a card: in training, stopped or failed."""
    folder = record.folder
    attempt = read_json(folder / ATTEMPT) if (folder / ATTEMPT).exists() else {}
    told = read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {}
    config = attempt.get("config")
    epochs = told.get("epochs") or (config or {}).get("training", {}).get("epochs")
    units = _units(attempt)
    errors = {name: {"val": _number(value)} for name, value in told.get("val_mae", {}).items()}
    record = replace(
        record,
        epoch=told.get("epoch", _epochs_in(folder / HISTORY)),
        epochs=epochs or _epochs_of_spec(folder),
        best_epoch=told.get("best_epoch") or None,
        config=config,
        units=units,
        errors=errors or _validated(folder, units, None),
        seconds=_number(told.get("seconds")),
        when=str(attempt.get("failed") or attempt.get("started") or record.when),
    )
    alive = in_training(folder)
    if alive:
        return replace(record, state="training")
    if alive is None or not attempt:
        return replace(record, state="unfinished")
    if "failed" in attempt:
        reason = _local(str(attempt.get("reason", "")), folder)
        return replace(record, state="failed", reason=reason)
    return record


def _epochs_of_spec(folder: Path) -> int | None:
    spec = folder / "spec.json"
    return read_json(spec).get("training", {}).get("epochs") if spec.exists() else None


def _units(card: Mapping[str, Any]) -> dict[str, str]:
    """Unit of each target under its reported name."""
    targets, unit = card.get("target", []), card.get("unit", "")
    names = [targets] if isinstance(targets, str) else targets
    if isinstance(unit, Mapping):
        return {name: str(unit.get(name, "")) for name in names}
    return dict.fromkeys(names, str(unit or ""))


def _history(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file))


def _epochs_in(path: Path) -> int:
    return len(_history(path))


def _validated(
    folder: Path, units: Mapping[str, str], best: int | None
) -> dict[str, dict[str, float | None]]:
    """Validation errors at the best epoch, or the lowest of each target where none is named."""
    rows = _history(folder / HISTORY)
    found: dict[str, dict[str, float | None]] = {}
    for column in rows[0] if rows else ():
        if column != "val_mae" and not column.startswith("val_mae_"):
            continue
        name = column.removeprefix("val_mae").removeprefix("_") or next(iter(units), NAMELESS)
        values = [_number(row[column]) for row in rows]
        known = [value for value in values if value is not None]
        chosen = values[best - 1] if best and best <= len(values) else min(known, default=None)
        found[name] = {"val": chosen}
    return found


def _number(value: object) -> float | None:
    """Finite number; None for anything else."""
    try:
        found = float(value)  # type: ignore[arg-type] # other values are handled below
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


# --- what differs ---


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Config fields in which some runs differ, each with its value in every run, None where it is not known.

    Fields that change no result are left out, and so are paths of raw files, unless the data differ. Where
    runs of one config have other data, the field `data` holds their dataset keys.
    """
    fields_of = [flat(run.config or {}) for run in runs]
    known = [place for place, run in enumerate(runs) if run.config is not None]
    data = {runs[place].keys.get("dataset") for place in known}
    found = {}
    for name in dict.fromkeys(name for place in known for name in fields_of[place]):
        if changes_nothing(name) and not (len(data) > 1 and _names_files(name)):
            continue
        values = [one.get(name, default_of(name)) for one in fields_of]
        # What only some models have is told by the model's name, unless it differs among those.
        of_models = name.startswith("model.")
        having = [place for place in known if name in fields_of[place] or not of_models]
        if len({_comparable(values[place]) for place in having}) > 1:
            found[name] = [
                value if run.config is not None else None
                for value, run in zip(values, runs, strict=True)
            ]
    told = [tuple(_comparable(values[place]) for values in found.values()) for place in known]
    apart = {
        (text, runs[place].keys.get("dataset")) for text, place in zip(told, known, strict=True)
    }
    if len(apart) > len(set(told)):
        keys = [run.keys.get("dataset") for run in runs]
        found["data"] = [key[:DIGITS] if key else None for key in keys]
    return found


def _comparable(value: Any) -> Hashable:
    """Value in a form in which 8 equals 8.0, and true does not equal 1."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_comparable, value))
    if isinstance(value, Mapping):
        return tuple(sorted((str(name), _comparable(item)) for name, item in value.items()))
    return (value,) if isinstance(value, bool) else value


@cache
def _unkeyed() -> frozenset[str]:
    """Dotted names of sections and fields that change no result."""
    return frozenset({"dataset.name", "dataset.unit", *_unkeyed_in(Config, "")})


def _unkeyed_in(section: type[Section], place: str) -> Iterator[str]:
    for name, field_info in section.model_fields.items():
        extra = field_info.json_schema_extra
        if isinstance(extra, dict) and extra.get("keyed") is False:
            yield f"{place}{name}"
        for inner in (
            MODELS.values() if (place, name) == ("", "model") else _sections(field_info.annotation)
        ):
            yield from _unkeyed_in(inner, f"{place}{name}.")


def _sections(annotation: Any) -> list[type[Section]]:
    """Sections in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


@cache
def changes_nothing(name: str) -> bool:
    """Whether a config field, by its dotted name, changes no result: it is in no key, or names raw files."""
    if name == PARENT:  # its final state is in the key, wherever it is
        return False
    parts = name.split(".")
    return any(".".join(parts[:end]) in _unkeyed() for end in range(1, len(parts) + 1)) or (
        _names_files(name)
    )


def _names_files(name: str) -> bool:
    return name in ("dataset.source", "split.folds_file") or (
        name.startswith("dataset.labels.") and name.endswith(".file")
    )


@cache
def _defaults() -> Mapping[str, Any]:
    whole = Config.model_validate({"dataset": {"name": "x", "source": ["x"], "target": ["x"]}})
    found = flat(whole.model_dump(mode="json"))
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("model.") and name not in ("dataset.source", "dataset.target")
    }


def default_of(name: str) -> Any:
    """Default of a field that the card of another version does not have; of a model's, None."""
    return _defaults().get(name)


def settings_apart(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Each field in which two configs differ, with both values; what only one has counts with its default.

    A model is not validated, since that may run its module.
    """
    first, second = flat(one), flat(other)
    for name in dict.fromkeys([*first, *second]):
        default = default_of(name)
        if name.startswith("model.") and (section := MODELS.get(first.get("model.name", ""))):
            field_info = section.model_fields.get(name.removeprefix("model."))
            default = None if field_info is None or field_info.is_required() else field_info.default
        values = first.get(name, default), second.get(name, default)
        if _comparable(values[0]) != _comparable(values[1]):
            yield name, *values
