"""Plan as it is, where raw files are still those that it was made of; what is done is then known at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.timing import timed
from atomloom.stages.sources import refresh_sources


def plan_is_current(layout: Layout) -> bool:
    """Whether the plan is there, undamaged and not older than `sources.json`, as the workflow judges it."""
    folder = layout.plan_folder
    names = ("plan.json", "members.parquet", "labels.parquet", "records.spool")
    try:
        made = min((folder / name).stat().st_mtime_ns for name in names)
        Plan.read(folder / "plan.json")
        return made >= (folder / "sources.json").stat().st_mtime_ns
    except (OSError, AtomloomError):
        return False


def current_plan(layout: Layout, log: Callable[[str], None], timing: Path | None = None) -> Plan:
    """The plan, made again if raw files have changed since.

    Args:
        layout: paths of the project.
        log: takes one line at a time.
        timing: where to record time and memory, if it is made again.

    Raises:
        AtomloomError: as of `make_plan`.
    """
    refresh_sources(layout, fetch=log)
    if plan_is_current(layout):
        return Plan.read(layout.plan_folder / "plan.json")
    from atomloom.stages.plan import make_plan  # imports pandas

    with nullcontext() if timing is None else timed(timing):
        return make_plan(layout, log)
