"""The parent of a run: a finished run that it continues with more epochs.

A run is determined by the final state of its parent rather than by the parent's name: equal states, wherever
they are, give equal keys. The state itself is read by training (`atomloom.training.train_state`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError, again
from atomloom.store.files import file_digest, read_json
from atomloom.store.keys import flat

WHERE = "training.continue_from"
MAY_DIFFER = ("epochs", "early_stopping")
"""Keys of `training` in which a run may differ from its parent."""
_NAME = re.compile(r"(?:[a-z]+-)?([0-9a-f]{4,16})")
"""Short name of a run, or a key, or how either begins."""


@dataclass(frozen=True)
class Parent:
    """Finished run, as its files say."""

    folder: Path
    """Folder of the run."""
    key: str
    """Key under which its state is saved."""
    state: str
    """Digest of its final state."""
    epochs: int
    """Number of epochs that it was trained."""
    spec: Mapping[str, Any]
    """Spec of the run."""

    @property
    def state_file(self) -> Path:
        """File of its final state."""
        return self.folder / "state" / "last.ckpt"

    def require_continued_by(self, spec: Mapping[str, Any], epochs: int) -> None:
        """Raise AtomloomError if a run of this spec and number of epochs does not continue this one."""
        own, wanted = flat(self.spec), flat(spec)
        free = {"parent", *(f"training.{key}" for key in MAY_DIFFER)}
        differing = sorted(
            n for n in {**own, **wanted} if own.get(n) != wanted.get(n) and n not in free
        )
        if differing:
            raise AtomloomError(
                f"only epochs can be added to a run, but {', '.join(differing)} "
                f"{'differs' if len(differing) == 1 else 'differ'} from those of {self.folder}",
                where=WHERE,
            )
        if epochs <= self.epochs:
            raise AtomloomError(
                f"{self.folder} has {self.epochs:,} epochs already",
                where=WHERE,
                todo="training.epochs, which counts them, must be more",
            )


def find_parent(named: str, runs: Path) -> Parent:
    """Find a finished run.

    Args:
        named: its folder or run card, or its short name or key, or how that begins.
        runs: folder of the runs that a key is looked for in.

    Raises:
        AtomloomError: when there is no such run, several, or one that is not finished.
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
    if not finished.exists() or not state.exists():
        raise AtomloomError(
            f"{folder} holds no final state: it is not finished, or its state/ was removed",
            where=WHERE,
            todo="train it to the end first",
        )
    content = read_json(finished, "key", "result", todo=again("train"))
    return Parent(
        folder,
        content["key"],
        # Runs of before have no digest of their state that leaves out times.
        content.get("state") or file_digest(state),
        content["result"]["epochs_run"],
        read_json(folder / "spec.json"),
    )
