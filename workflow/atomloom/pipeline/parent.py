"""The parent of a run: one that it continues with more epochs, or with another number of processes.

A run is determined by the final state of its parent rather than by the parent's name: equal states, wherever
they are, give equal keys. The state itself is read by training (`atomloom.training.train_state`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError, again
from atomloom.store.files import file_digest, read_json
from atomloom.store.keys import flat

WHERE = "training.continue_from"
PROCESSES = ("devices", "nodes")
MAY_DIFFER = ("epochs", "early_stopping", *PROCESSES)
"""Keys of `training` in which a run may differ from its parent."""
ENDING = ("onecycle", "cosine")
"""Schedulers whose rates depend on the number of epochs."""
_NAME = re.compile(r"(?:[a-z]+-)?([0-9a-f]{4,16})")
"""Short name of a run, or a key, or how either begins."""


@dataclass(frozen=True)
class Parent:
    """Run that was trained before, as its files say."""

    folder: Path
    """Folder of the run."""
    key: str | None
    """Key under which its state is saved; None where only the state knows it, since the run is not finished."""
    state: str
    """Digest of its last state."""
    epochs: int
    """Number of epochs that it was trained."""
    spec: Mapping[str, Any]
    """Spec of the run."""

    @property
    def state_file(self) -> Path:
        """File of its last state."""
        return self.folder / "state" / "last.ckpt"

    @property
    def processes(self) -> int:
        """Processes on all nodes that trained it."""
        return _processes(flat(self.spec))

    def require_continued_by(self, spec: Mapping[str, Any], epochs: int) -> None:
        """Raise AtomloomError if a run of this spec and number of epochs does not continue this one."""
        own, wanted = flat(self.spec), flat(spec)
        free = {"parent", *(f"training.{key}" for key in MAY_DIFFER)}
        differing = sorted(
            n for n in {**own, **wanted} if own.get(n) != wanted.get(n) and n not in free
        )
        if differing:
            raise AtomloomError(
                f"only epochs and processes of a run can change, but {', '.join(differing)} "
                f"{'differs' if len(differing) == 1 else 'differ'} from those of {self.folder}",
                where=WHERE,
            )
        if self.key is None and _layout(own) == _layout(wanted):
            raise AtomloomError(
                f"{self.folder} is not finished: it is resumed with its own config",
                where=WHERE,
                todo=f"finish it first, or continue it with other {' or '.join(PROCESSES)}",
            )
        scheduler = own.get("training.scheduler")
        ends = scheduler in ENDING and own.get("training.optimizer") != "lbfgs"
        if ends and own.get("training.epochs") != epochs:
            raise AtomloomError(
                f"scheduler {scheduler} has rates that depend on the number of epochs, which is "
                f"{own.get('training.epochs'):,} in {self.folder}",
                where=WHERE,
                todo="use constant or plateau, or train all epochs at once",
            )
        if epochs <= self.epochs:
            raise AtomloomError(
                f"{self.folder} has {self.epochs:,} epochs already",
                where=WHERE,
                todo="training.epochs, which counts them, must be more",
            )


def find_parent(named: str, runs: Path) -> Parent:
    """Find a run that was trained before.

    Args:
        named: its folder or run card, or its short name or key, or how that begins.
        runs: folder of the runs that a key is looked for in.

    Raises:
        AtomloomError: when there is no such run, several, or one without a state.
    """
    folder = Path(named)
    if (short := _NAME.fullmatch(named)) and not folder.exists():
        found = sorted(runs.glob(f"{short[1]}*"))
        if len(found) > 1:
            raise AtomloomError(
                f"{len(found)} runs in {runs} begin with {named}",
                where=WHERE,
                todo="give more of it",
            )
        folder = found[0] if found else runs / named
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise AtomloomError(f"there is no run {folder}", where=WHERE)
    finished, state = folder / "state" / "finished.json", folder / "state" / "last.ckpt"
    if not state.exists():
        raise AtomloomError(
            f"{folder} holds no state: it has not been trained, or its state/ was removed",
            where=WHERE,
            todo="train it first",
        )
    spec = read_json(folder / "spec.json")
    if not finished.exists():
        epochs = read_json(folder / "state" / "progress.json", "epoch")["epoch"]
        return Parent(folder, None, file_digest(state), epochs, spec)
    content = read_json(finished, "key", "result", todo=again("train"))
    return Parent(
        folder,
        content["key"],
        # Runs of before have no digest of their state that leaves out times.
        content.get("state") or file_digest(state),
        content["result"]["epochs_run"],
        spec,
    )


def begun_with_other_processes(spec: Mapping[str, Any], runs: Path) -> list[Parent]:
    """Find unfinished runs of the same spec but for the number of their processes.

    Args:
        spec: of a run.
        runs: folder of the runs that are looked at.
    """
    free = {f"training.{name}" for name in PROCESSES}

    def without(content: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in flat(content).items() if name not in free}

    found = []
    for folder in sorted(runs.glob("*")):
        with suppress(AtomloomError):  # not a run, or one of another time
            if without(read_json(folder / "spec.json")) != without(spec):
                continue
            parent = find_parent(str(folder), runs)
            if parent.key is None and _layout(flat(parent.spec)) != _layout(flat(spec)):
                found.append(parent)
    return found


def _processes(spec: Mapping[str, Any]) -> int:
    return math.prod(_layout(spec))


def _layout(spec: Mapping[str, Any]) -> list[int]:
    return [int(spec.get(f"training.{name}", 1)) for name in PROCESSES]
