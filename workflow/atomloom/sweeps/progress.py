"""Progress of a run: the epochs it has trained and its validation so far, from the files that it leaves."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from atomloom.errors import again
from atomloom.store.files import read_json, require_digest


@dataclass(frozen=True)
class Progress:
    """A run up to some epoch."""

    history: dict[str, list[float]]
    """Column of history.csv -> its value at each epoch."""
    best_epoch: int | None
    """Epoch of the model file, from 1, of a run that is finished; None of one that may go on."""


def read_progress(run: Path, epochs: int, total: int) -> Progress | None:
    """A run as it was after some epochs, or at its end where it ended before; None where it is not there yet.

    Args:
        run: the run's folder.
        epochs: how far it is looked at.
        total: epochs of the whole run.

    Raises:
        AtomloomError: when the card or the history of a finished run is damaged.
    """
    card_file, file = run / "run.json", run / "history.csv"
    finished = card_file.exists() and (run / "model.safetensors").exists()
    if finished:
        card = read_json(card_file, "digests", "best_epoch", todo=again("train"))
        require_digest(file, card["digests"].get(file.name), again("train"))
    elif epochs >= total or not file.exists():
        return None
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not finished and len(rows) < epochs:
        return None
    history = {name: [float(row[name]) for row in rows[:epochs]] for name in rows[0]}
    ended = finished and (len(rows) < epochs or epochs >= total)
    return Progress(history, card["best_epoch"] if ended else None)
