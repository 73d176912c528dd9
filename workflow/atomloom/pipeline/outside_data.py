"""Outside data: what a run has seen besides its own data set, through a model that it starts from or that labels.

An error on structures that a parent was trained on is no error of prediction, and an error reached with the
data of others is not one reached without. So the run card says both, and reports and leaderboards repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomloom.config.foundation import model_behind
from atomloom.config.root import Config
from atomloom.config.start_model import UNKNOWN, data_behind
from atomloom.errors import AtomloomError
from atomloom.store.files import read_json

if TYPE_CHECKING:
    import pandas as pd

ENTRY = "outside_data"
"""Entry of run cards; absent where a run has seen nothing else."""
_OF_A_DATABASE = re.compile(r"(mp|mvc|JVASP|jvasp|agm|oqmd|alex)-?[0-9]+")
"""Ids that mean the same structure in any data set."""


def outside_data(config: Config) -> list[dict[str, Any]]:
    """List what a run of this config sees besides its own data set.

    Returns:
        One entry per model: `through`, the key of the config that names it; `model`, its name there;
        `data`, what it was trained on, as far as its file tells.
    """
    named: dict[str, str | None] = {"training.start_from": config.training.start_from}
    if config.teacher is not None:
        named["teacher.model"] = model_behind(config.teacher)
    for called, feature in config.features.items():
        named[f"features.{called}"] = model_behind(feature.teacher)
    found = []
    for key, name in named.items():
        if name:
            data = data_behind(name, config.paths.results)
            found.append({"through": key, "model": name, "data": data})
    return found


def training_overlap(parent: Path, frame: pd.DataFrame) -> dict[str, int] | None:
    """Number of structures of each split that a parent was trained on.

    A structure counts if it is the same to the hash, or has the same id of a database (`mp-149`). A test set
    must be new to the parent's validation set, too.

    Args:
        parent: model file of the parent.
        frame: columns id, hash and split of the data set of a run.

    Returns:
        Numbers by split, of those that judge a model (all but `train`); None where the parent's training set is not
        known, since its run is not where its file is.
    """
    try:
        dataset = read_json(parent.with_name("run.json"), "keys")["keys"]["dataset"]
        table = parent.parents[2] / "split" / dataset / "dataset.parquet"
        import pandas as pd  # the command line, which reads cards, does without

        seen = pd.read_parquet(table, columns=["id", "hash", "split"])
    except (AtomloomError, OSError, KeyError, TypeError, ValueError, IndexError):
        return None
    counts = {}
    for name in sorted(set(frame["split"]) - {"train"}):
        rows = frame[frame["split"] == name]
        theirs = seen[seen["split"].isin(["train"] if name == "val" else ["train", "val"])]
        ids = {one for one in theirs["id"] if _OF_A_DATABASE.fullmatch(one)}
        counts[name] = int((rows["hash"].isin(theirs["hash"]) | rows["id"].isin(ids)).sum())
    return counts


def seen_lines(card: Mapping[str, Any]) -> list[str]:
    """Lines on what a run has seen besides its own data set; none without.

    Args:
        card: the run card, of which nothing is trusted to have the right type.
    """
    listed, lines = _entry(card).get("seen"), []
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, Mapping):
            data = one.get("data")
            what = ", ".join(map(str, data)) if isinstance(data, list) else UNKNOWN
            lines.append(f"{one.get('model')} ({one.get('through')}) has been trained on {what}")
    return lines


def overlap_lines(card: Mapping[str, Any]) -> list[str]:
    """Lines on structures that judge a run and that its parent was trained on; none without.

    Args:
        card: the run card, of which nothing is trusted to have the right type.
    """
    overlap = _entry(card).get("overlap")
    return [
        f"{count:,} structures of split {split} were in the training of the model that the run starts from: "
        "errors may look too small"
        for split, count in (overlap if isinstance(overlap, Mapping) else {}).items()
        if isinstance(count, int) and count
    ]


def told_of(card: Mapping[str, Any]) -> list[str]:
    """All lines on outside data."""
    return seen_lines(card) + overlap_lines(card)


def _entry(card: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = card.get(ENTRY)
    return entry if isinstance(entry, Mapping) else {}
