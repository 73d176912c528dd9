"""Runs of a sweep: their paths and configs, which follow from the config in use and the values of a trial.

What a round wrote down about a run names it and no more, so that results may be moved, and settings that
are in no key changed, while a sweep goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomloom.config import dump_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.store.files import write_text
from atomloom.sweeps.rounds import TODO, Repeat, Trial
from atomloom.sweeps.space import config_of


def paths_at(paths: RunPaths, point: Mapping[str, Any]) -> RunPaths:
    """Paths of the run at a point of a sweep, of whose base `paths` are.

    Raises:
        AtomloomError: when a key is not known, or has a value that it cannot have.
    """
    return RunPaths(Layout(config_of(paths.config, point)), paths.plan)


def paths_of(paths: RunPaths, trial: Trial, repeat: Repeat) -> RunPaths:
    """Paths of a run of a trial.

    Raises:
        AtomloomError: when it is another run by now than the one that the round wrote down.
    """
    own = paths_at(paths, {**trial.point, **repeat.values})
    if own.run_key != repeat.run:
        raise AtomloomError(
            f"trial {trial.number} was run {repeat.run} when it was chosen, and is {own.run_key} now",
            where=paths.sweep,
            todo=TODO,
        )
    return own


def written_config(layout: Layout) -> Path:
    """File of the merged config of a run, which is written if it is not there."""
    file = layout.merged_config
    if not file.exists():
        write_text(file, dump_config(layout.config))
    return file
