"""`atomloom reproduce`: train a run again from its card, and say how close it comes to the first time.

The run is made in a folder of its own; nothing of the original is written to. What it is made from is either what lies
in the project of the run (plan, index, split, graphs), checked against the card, or made anew from the raw files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from atomloom.commands.compare import (
    SHOWN,
    Agreement,
    Change,
    compare_results,
    config_changes,
    data_changes,
    environment_changes,
    table_of,
)
from atomloom.commands.options import Prepare
from atomloom.config import Config, parse_config
from atomloom.config.base import expand_variables
from atomloom.config.foundation import POTENTIALS
from atomloom.config.model import is_by_class
from atomloom.config.reading import read_config_file
from atomloom.config.start_model import start_file
from atomloom.errors import AtomloomError
from atomloom.pipeline.evidence import Evidence, opened
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.run_card import CARD, LEVELS, VERSIONS, Level, level_of
from atomloom.pipeline.stage_table import STAGES
from atomloom.reports.formats import number, plural
from atomloom.stages.current import current_plan
from atomloom.stages.sources import HASHED_UP_TO
from atomloom.stages.train import train_in_processes
from atomloom.store.files import file_digest, read_json, write_sealed
from atomloom.store.keys import short_hash

Log = Callable[[str], None]

REPORT = "reproduction.json"
OPTIONS = "repetition.json"
"""Options by which a repetition is made, in its folder."""
NUMERIC = ("python", "torch", "numpy", "numba", "scipy", "dgl", "e3nn", "lightning-fabric", "cpu")
"""Entries of the environment on which bits depend, besides device and threads."""


@dataclass(frozen=True)
class Request:
    """Options of the command."""

    run: str
    """Run's folder, card, archive, short name or key."""
    output: Path | None = None
    """Folder of the repetition; by default `reproduced/<key>`."""
    results: Path = Path("results")
    """Folder in which names and keys are looked for."""
    from_raw: bool = False
    """Whether to make everything anew from the raw files."""
    config: Sequence[str] = ()
    """Config files that say where the data are here."""
    threads: int | None = None
    """CPU threads; by default as many as the run had."""
    trust: Sequence[str] = ()
    """Packages whose code the card may name."""


@dataclass(frozen=True)
class Again(RunPaths):
    """Paths of a run that reads everything before training in one place and is made in another."""

    results_again: Path

    @property
    def run(self) -> Path:
        """Folder of the repetition."""
        return self.results_again / self.layout.config.dataset.name / "runs" / self.run_key


@dataclass(frozen=True)
class Verdict:
    """Outcome of a repetition."""

    level: Level
    """Level of determinism that holds between the run and its repetition."""
    agreements: Sequence[Agreement]
    explanations: Mapping[str, Sequence[Change]]
    """Section -> what differs between the two that may explain why results do."""

    @cached_property
    def outcome(self) -> str:
        """One of `bit-equal`, `equal within the level`, `different`, `not compared`."""
        if not self.agreements:
            return "not compared"
        if all(item.equal for item in self.agreements):
            return "bit-equal"
        bounds = {"weights": self.level.weights}
        for item in self.agreements:
            bound = bounds.get(item.kind, self.level.metrics)
            if bound is None or item.worst is None or item.worst > bound:
                return "different"
        return "equal within the level"

    @property
    def success(self) -> bool:
        """Whether the run was reproduced."""
        return self.outcome in ("bit-equal", "equal within the level")

    def lines(self) -> Iterator[str]:
        """Text for people."""
        for item in self.agreements:
            yield item.text
            yield from table_of(item.changes[:SHOWN])
        level = f"level `{self.level.name}`"
        if self.level.weights:
            level += (
                f": weights within {number(self.level.weights)}, errors and predictions within "
                f"{number(self.level.metrics)} of their size"
            )
        yield f"verdict: {self.outcome} ({level})"
        told = False
        for section, changes in self.explanations.items():
            if changes:
                told = True
                yield f"{section} that differs:"
                yield from table_of(changes)
        if self.outcome != "bit-equal" and not told:
            yield "nothing that the cards record of code, environment and data differs"

    def to_dict(self) -> dict[str, Any]:
        """Content as JSON values."""
        return {
            "outcome": self.outcome,
            "level": self.level.name,
            "comparison": {item.kind: item.to_dict() for item in self.agreements},
            "explanations": {
                section: {item.name: [item.one, item.other] for item in changes}
                for section, changes in self.explanations.items()
            },
        }


def reproduce_run(request: Request, prepare: Prepare, log: Log) -> Verdict:
    """Train and evaluate a run again, and compare; the verdict is also written into the folder of the repetition.

    Raises:
        AtomloomError: when the card or the data are missing, the data are not those of the card, or the
            training fails.
    """
    with opened(request.run, request.results) as original:
        require_trust(original, request.trust)
        if not compare_results(original, original):  # a damaged file is found here, too
            raise AtomloomError(
                "tells nothing of the results: it is of an earlier version",
                where=request.run,
                todo="give the run's folder with its model",
            )
        output = (request.output or Path("reproduced") / original.key).absolute()
        if original.origin is not None and output in (original.origin, *original.origin.parents):
            raise AtomloomError("holds the run itself", where=output, todo="give another folder")
        overrides = [read_config_file(Path(file).absolute()) for file in request.config]
        with contextlib.chdir(root_of(original)):
            config = config_again(original, overrides, request.threads, log)
            paths = paths_again(original, config, output, request.from_raw, prepare, log)
            require_run_of(original, paths)
            require_same_options(
                paths.run,
                {
                    "--from-raw": request.from_raw,
                    "--threads": config.training.threads,
                    "--config": short_hash(overrides) if overrides else None,
                },
            )
            train_again(original, paths, log)
        log(f"the repetition is in {paths.run}")
        with opened(str(paths.run), request.results) as again:
            verdict = judge(original, again)
        write_sealed(output / REPORT, {"run": original.key, **verdict.to_dict()})
    return verdict


# --- what the card says ---


def require_trust(original: Evidence, trust: Sequence[str]) -> None:
    """Raise AtomloomError if a card names code that is not part of atomloom and that the user has not asked for."""
    config = original.section("config")
    teacher, model = config.get("teacher"), config.get("model")
    named = [teacher.get("calculator") if isinstance(teacher, Mapping) else None]
    features = config.get("features")
    of_features = features.values() if isinstance(features, Mapping) else ()
    named += [one.get("calculator") for one in of_features if isinstance(one, Mapping)]
    named.append(model.get("name") if isinstance(model, Mapping) else None)
    for name in named:
        if isinstance(name, str) and is_by_class(name):
            package = name.partition(":")[0].partition(".")[0]
            if package not in trust and name.partition(":")[0] not in trust:
                raise AtomloomError(
                    f"names {name[:100]}, whose code would be run",
                    where=original.name,
                    todo=f"if you trust it: --trust {package[:100]}",
                )


def root_of(original: Evidence) -> Path:
    """Folder that relative paths of the config start at: of the project that the run is in, or the current one."""
    written = Path(str(original.section("config", "paths").get("results", "")))
    if original.origin is None or not written.parts or written.is_absolute():
        return Path.cwd()
    results = original.origin.parents[2]
    count = len(written.parts)
    return Path(*results.parts[:-count]) if results.parts[-count:] == written.parts else Path.cwd()


def config_again(
    original: Evidence, overrides: Sequence[Mapping[str, Any]], threads: int | None, log: Log
) -> Config:
    """Config of the repetition: that of the card, on the device and with the threads that it records."""
    content: dict[str, Any] = dict(original.section("config"))
    for given in overrides:
        content = _merged(content, given)
    environment = original.section("environment")
    training = dict(content.get("training", {}))
    device = environment.get("device", "cpu")
    training["device"] = "cpu" if device == "cpu" else "auto"
    processes = training.get("devices", 1)
    known = environment.get("threads")
    training["threads"] = threads or (known * processes if isinstance(known, int) else None)
    training["loggers"] = []
    config = parse_config({**content, "training": training, "sweep": None}, original.name)
    if device != "cpu":
        log(f"the run was trained on {device}")
    return config


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in over.items():
        own = found.get(key)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        found[key] = _merged(own, value) if both else value  # type: ignore[arg-type] # as `both` says
    return found


# --- what it is made from ---


def paths_again(
    original: Evidence, config: Config, output: Path, from_raw: bool, prepare: Prepare, log: Log
) -> RunPaths:
    """Paths of the repetition, with everything before training in place.

    Raises:
        AtomloomError: when raw files are missing that are needed, they are not those of the card, or a stage fails.
    """
    own = original.origin is not None
    if own and not from_raw and config.training.devices == 1:
        present = _present(config, output)
        if present is not None:
            log("plan, graphs and split are those of the project; nothing is read from raw files")
            _tell_sources(original, log)
            return present
    results = Layout(config).results
    store = config.paths.store if own and not from_raw else str(output / "store")
    paths = config.paths.model_copy(update={"results": str(output / "results"), "store": store})
    update: dict[str, Any] = {"paths": paths}
    training: dict[str, Any] = {}
    if config.training.start_from:
        training["start_from"] = _start_from(config)
    if config.training.continue_from:
        from atomloom.pipeline.parent import find_parent

        named = expand_variables(config.training.continue_from)
        parent = find_parent(named, results / "runs").folder.resolve()
        training["continue_from"] = str(parent)
    if training:
        update["training"] = config.training.model_copy(update=training)
    log(f"plan, graphs and split are made from the raw files, in {output}")
    config = config.model_copy(update=update)
    layout = Layout(config)
    try:
        planned = RunPaths(layout, current_plan(layout, log))
    except AtomloomError as error:
        if any(Path(expand_variables(name)).exists() for name in config.dataset.source):
            raise
        raise AtomloomError(
            f"the raw data are not here ({error.what})",
            where=error.where,
            todo=f"needed are {_needed(original)}: put them there, or say where they are with --config FILE",
        ) from None
    require_run_of(original, planned)  # before anything is converted
    return prepare(config, log)


def _start_from(config: Config) -> str:
    """The model that a run starts from, by a name that does not depend on the folder of results."""
    named = str(config.training.start_from)
    if named in POTENTIALS:
        return named
    return str(start_file(named, config.paths.results).resolve())


def _needed(original: Evidence) -> str:
    """Raw files and label tables that the card lists, in words."""
    data = original.section("data")
    files, tables = (
        _listed(data.get(name) or {}, what)
        for name, what in (("files", "file"), ("tables", "label table"))
    )
    named = files or "the files of dataset.source"
    return f"{named}, with labels of {tables}" if tables else named


def _listed(files: Mapping[str, Any], what: str) -> str:
    """The first files of a list of a card, in words; empty if there are none."""
    listed, count = files.get("listed", [])[:3], files.get("count") or 0
    if not listed:
        return plural(count, what) if count else ""
    named = ", ".join(f"{path} (digest {digest})" for path, digest in listed)
    return f"{named} and {count - len(listed)} more" if count > len(listed) else named


def _present(config: Config, output: Path) -> RunPaths | None:
    """Paths that read what lies in the project; None where something is missing."""
    layout = Layout(config)
    plan = layout.plan_folder / "plan.json"
    if not plan.exists():
        return None
    paths = Again(layout, Plan.read(plan), output / "results")
    earlier = takewhile(lambda stage: stage.name != "train", STAGES.values())
    done = all(
        stage.done(paths, key)
        for stage in earlier
        if stage.wanted(config)
        for key in (paths.plan.chunk_keys if stage.per_chunk else [""])
    )
    return paths if done else None


def _tell_sources(original: Evidence, log: Log) -> None:
    """Say which raw files are no longer those of the card; what was stored of them is used."""
    changed = []
    for path, digest in original.section("data", "files").get("listed", []):
        own = Path(path)
        if not own.is_file():
            changed.append(f"{path} is missing")
        elif own.stat().st_size <= HASHED_UP_TO and file_digest(own) != digest:
            changed.append(f"{path} has changed")
    if changed:
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        log(f"note: {', '.join(changed[:3])}{more}; the run is made from what was stored then")


def require_run_of(original: Evidence, paths: RunPaths) -> None:
    """Check that the data and settings here are those of the card.

    Other version integers are no obstacle: the code is then another one, which the verdict says.

    Raises:
        AtomloomError: when they are not.
    """
    plan, data = paths.plan, original.section("data")
    here = {
        "records": (plan.members_digest, data.get("members")),
        "labels": (plan.labels_digest, data.get("labels")),
        "definition of the test set": (plan.fixed_digest, data.get("fixed")),
        "teacher": (paths.layout.teacher_key, data.get("teacher")),
    }
    differing = [name for name, (found, wanted) in here.items() if data and found != wanted]
    if differing:
        raise AtomloomError(
            f"the data are not those of the card: {' and '.join(differing)} differ",
            where=original.name,
            todo=f"the card was made of {_needed(original)}",
        )
    code = original.section("code")
    if any(code.get(name) not in (None, version) for name, version in VERSIONS.items()):
        return
    keys = original.section("keys")
    wanted = {"dataset": paths.dataset_key, "graph": paths.layout.graph_key, "run": paths.run_key}
    apart = [name for name, found in wanted.items() if keys.get(name) != found]
    if not apart:
        return
    name = apart[0]
    what = {
        "dataset": "data or split are not those of the card",
        "graph": "the graphs are not those of the card",
        "run": "the settings are not those of the card, or its parent is another one",
    }[name]
    raise AtomloomError(
        f"{what} ({name} key {keys.get(name)}, here {wanted[name]})",
        where=original.name,
        todo="" if code.get("trainer") else "an older card may need the atomloom that wrote it",
    )


# --- the repetition ---


def require_same_options(run: Path, options: Mapping[str, Any]) -> None:
    """Check that a repetition that is there from before was made by these options; write them if none is.

    Raises:
        AtomloomError: when it was made by others, or nothing tells by which.
    """
    path = run / OPTIONS
    if not run.exists():
        write_sealed(path, options)
        return
    made = read_json(path) if path.exists() else {}
    differing = [name for name, value in options.items() if made.get(name, "") != value]
    if differing:
        raise AtomloomError(
            f"holds a repetition by other options ({', '.join(differing)})"
            if made
            else "holds a repetition, and nothing tells by which options",
            where=run,
            todo="remove it, or give another folder: --output",
        )


def train_again(original: Evidence, paths: RunPaths, log: Log) -> None:
    """Train the run, and evaluate it if the original was evaluated."""
    if (paths.run / CARD).exists():
        log(
            f"{paths.run} is there from before: compared without training (remove it to train again)"
        )
    elif paths.config.training.devices == 1:
        placement = paths.run / "state" / "loader.json"
        if not placement.exists() and original.section("loader"):
            write_sealed(
                placement, original.section("loader")
            )  # the order of batches depends on it
        STAGES["train"].run(paths, log)
    else:
        train_in_processes(paths.layout, log)
    evaluated = original.section("evaluated")
    if not (original.metrics is None and not evaluated) and not STAGES["evaluate"].done(paths):
        threads = evaluated.get("threads") or paths.config.training.threads
        training = paths.config.training.model_copy(update={"threads": threads})
        config = paths.config.model_copy(update={"training": training})
        STAGES["evaluate"].run(replace(paths, layout=Layout(config)), log)


def judge(original: Evidence, again: Evidence) -> Verdict:
    """Compare a run with its repetition."""
    explanations = {
        "code": _code_changes(original, again),
        "environment": environment_changes(original, again),
        "data": data_changes(original, again),
        "config": [change for change in config_changes(original, again) if not change.note],
    }
    return Verdict(level_between(original, again), compare_results(original, again), explanations)


def _code_changes(original: Evidence, again: Evidence) -> list[Change]:
    first, second = original.section("code"), again.section("code")
    if first.get("sources") and first.get("sources") == second.get("sources"):
        return []  # the same code, in whichever commit
    return [
        Change(name, first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name) and (name in first or name in ("commit", "dirty"))
    ]


def level_between(one: Evidence, other: Evidence) -> Level:
    """Level of determinism that holds between two runs of one key."""
    levels = [
        level_of(
            str(run.section("environment").get("device", "cpu")),
            run.section("config", "training").get("devices", 1),
            bool(run.section("config", "training").get("compile")),
        )
        for run in (one, other)
    ]
    lowest = max(levels, key=[*LEVELS.values()].index)
    if lowest.name != "bit-equal":
        return lowest
    first, second = one.section("environment"), other.section("environment")
    names = [name for name in (*NUMERIC, "threads") if name in first]
    same = all(first[name] == second.get(name) for name in names)
    code = _code_changes(one, other)
    if any(change.name in VERSIONS for change in code):
        return LEVELS["unmeasured"]
    placed = [run.section("loader").get("window") for run in (one, other)]
    return LEVELS["bit-equal" if same and not code and placed[0] == placed[1] else "rounding"]
