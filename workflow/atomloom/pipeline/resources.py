"""Resources that jobs ask a cluster for: memory, time and cores of each rule, as measured or by default.

`atomloom plan --cost --write` measures them into `results/<name>/resources.yaml`, which the workflow reads when it is
parsed. They belong to the place where jobs run, so no key knows them and no job is repeated for them. What
was measured with another model, cutoff or batch is not used: each entry says by a digest what it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from atomloom.config import Config
from atomloom.config.base import MOST, Section
from atomloom.config.mistakes import mistake
from atomloom.config.reading import read_config_file
from atomloom.store.keys import short_hash

FILE = "resources.yaml"
"""Name of the file in the folder of a data set's results."""
GROWN = 1.5
"""Factor by which a data set may have grown since it was measured."""
MOST_ATTEMPTS = 16
"""Number of attempts after which nothing is doubled any more."""


@dataclass(frozen=True)
class Ask:
    """Resources of the jobs of one rule at their first attempt."""

    mem_mb: int
    runtime: int
    """Minutes."""
    cpus: int | None = None
    """Cores; None leaves them to the rule."""

    def memory(self, attempt: int) -> int:
        """Megabytes at an attempt, counted from 1: each has twice that of the one before."""
        return self.mem_mb * 2 ** (min(attempt, MOST_ATTEMPTS) - 1)

    def minutes(self, attempt: int, most: int) -> int:
        """Minutes at an attempt, doubled likewise, up to the longest time that the cluster gives."""
        return min(most, self.runtime * 2 ** (min(attempt, MOST_ATTEMPTS) - 1))


DEFAULTS = {
    "plan": Ask(2000, 30),
    "convert": Ask(2000, 30),
    "label": Ask(4000, 24 * 60),
    "features": Ask(4000, 24 * 60),
    "graphs": Ask(2000, 30),
    "index": Ask(4000, 30),
    "split": Ask(4000, 30),
    "train": Ask(8000, 24 * 60),
    "evaluate": Ask(8000, 120),
    "report": Ask(2000, 30),
    "trial": Ask(4000, 24 * 60),
    "refit": Ask(4000, 24 * 60),
    "suggest": Ask(2000, 30),
    "tabulate": Ask(2000, 30),
}
"""Rule -> what its jobs ask for where nothing was measured."""


# --- what a measurement is of ---

FREE = {
    *("seed", "learning_rate", "weight_decay", "scheduler", "warmup", "cycle_momentum"),
    *("plateau_patience", "plateau_factor", "milestones", "clip_norm", "loss_weights"),
    *("early_stopping", "checkpoint_minutes", "keep_every", "continue_from", "huber_delta"),
    *("start_from", "learning_rates"),
}
"""Keys of `training` that cost neither time nor memory."""


def work_of(config: Config, rule: str) -> str:
    """Digest of what decides time and memory of a rule's jobs, besides the number of records.

    A learning rate is not in it; the model and the batch are, even where they are in no key.
    """
    dataset, training = config.dataset, config.training.model_dump(mode="json")
    reader = {"options": dataset.options, "format": dataset.format}
    chunks = {"chunks": dataset.chunks.bounds}
    graph = {"graph": config.graph.key_content()}
    features = {name: one.model_dump(mode="json") for name, one in config.features.items()}
    described = {"features": features} if features else {}
    teacher = config.teacher.model_dump(mode="json") if config.teacher else None
    learnt = {
        **graph,
        **described,
        "target": dataset.target,
        "model": config.model.model_dump(mode="json"),
    }
    steps = {name: value for name, value in training.items() if name not in FREE}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "convert": lambda: reader | chunks,
        "label": lambda: chunks | {"teacher": teacher},
        "features": lambda: chunks | described,
        "graphs": lambda: graph | chunks,
        "index": lambda: graph,
        "split": lambda: {"target": dataset.target, "teacher": teacher} | described,
        "train": lambda: learnt | {"training": steps},
        "evaluate": lambda: learnt | {n: steps[n] for n in ("batch", "threads", "loader")},
        "report": lambda: {"target": dataset.target},
        "trial": lambda: learnt | {"training": steps, "sweep": _costly(config)},
        "refit": lambda: learnt | {"training": steps, "sweep": _costly(config)},
    }
    return short_hash(parts[rule]()) if rule in parts else ""


def _costly(config: Config) -> dict[str, Any]:
    """Threads of a trial, and the swept keys that decide what it costs."""
    sweep = config.sweep
    if sweep is None:
        return {}
    swept = {*sweep.parameters, *(key for trial in sweep.trials for key in trial)}
    free = {f"training.{name}" for name in FREE}
    return {
        "threads": sweep.threads,
        "keys": sorted(key for key in swept if key not in free and not key.startswith("split.")),
    }


def trials_cost_alike(config: Config) -> bool:
    """Whether all trials of the section `sweep` take the time and memory of the config's own run."""
    return not _costly(config).get("keys")


# --- the file ---


class Measured(Section):
    """Entry of one rule in the file."""

    mem_mb: int = Field(ge=1, le=MOST)
    """Megabytes that a job asks for at its first attempt."""
    runtime: int = Field(ge=1, le=MOST)
    """Minutes that a job asks for at its first attempt."""
    cpus: int | None = Field(default=None, ge=1, le=1024)
    """Cores of a job, where the config names none."""
    of: str = ""
    """Digest of what it was measured with; empty: it holds for anything."""


class ResourceFile(Section):
    """Content of `resources.yaml`."""

    records: int = Field(ge=1, le=MOST)
    """Number of records of the data set when it was measured."""
    rules: dict[str, Measured] = {}
    """Rule -> what its jobs ask for."""


HEAD = """\
# What the jobs of this data set ask a cluster for, by rule: megabytes, minutes and cores at the first attempt. Written
# by `atomloom plan --cost --write`; edit it, or remove it to have the defaults. `of` says what an entry was measured
# with (model, cutoff, batch, ...): it is not used for anything else.
"""


def resource_text(records: int, asks: Mapping[str, Ask], config: Config) -> str:
    """Content of the file, one line per rule."""
    lines = [HEAD + f"records: {records}\nrules:"]
    for rule, ask in asks.items():
        entry = f"mem_mb: {ask.mem_mb}, runtime: {ask.runtime}"
        entry += f", cpus: {ask.cpus}" if ask.cpus else ""
        of = work_of(config, rule)
        lines.append(f"  {rule}: {{{entry}{f', of: {of!r}' if of else ''}}}")
    return "\n".join(lines) + "\n"


def read_resources(
    path: Path, config: Config, records: int | None, tell: Callable[[str], None]
) -> dict[str, Ask]:
    """Read what the jobs of each rule ask for; the defaults where nothing fitting was measured.

    Args:
        path: of the file, which may be missing.
        config: the config that jobs are of.
        records: number of records of the plan; None without a plan.
        tell: told of entries that do not fit.

    Raises:
        AtomloomError: when the file is not one of these.
    """
    asks = dict(DEFAULTS)
    if not path.exists():
        return asks
    content = read_config_file(path)
    try:
        file = ResourceFile.model_validate(content)
    except ValidationError as error:
        keys = f"its keys are {', '.join(ResourceFile.model_fields)}"
        raise mistake(error, content, ResourceFile, str(path), keys) from None
    again = "`atomloom plan --cost --write` measures again"
    if unknown := sorted(file.rules.keys() - asks.keys()):
        tell(f"{path}: there is no rule {unknown[0]}")
    known = {rule: entry for rule, entry in file.rules.items() if rule in asks}
    stale = [rule for rule, entry in known.items() if entry.of not in ("", work_of(config, rule))]
    if records is not None and records > GROWN * file.records:
        stale = [rule for rule, entry in known.items() if entry.of]
        tell(f"{path} is of {file.records:,} records, of {records:,} now: not used; {again}")
    elif stale:
        tell(f"{path} is of other settings for {', '.join(stale)}, which ask as usual; {again}")
    for rule, entry in known.items():
        if rule not in stale:
            asks[rule] = Ask(entry.mem_mb, entry.runtime, entry.cpus)
    return asks
