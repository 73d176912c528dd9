"""Command `atomloom status`: what would be done for a config, and why, stage by stage.

It says what the workflow then does: both look at the same files. The workflow's own dry run knows the steps
behind the plan only once the plan is there; here it is made, or, on request, made elsewhere and thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atomloom.pipeline.paths import Layout, RunPaths, report_key_of
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.run_table import value_text
from atomloom.pipeline.runs import differences, planned_run, read_run, runs_of, short_name
from atomloom.pipeline.stage_table import STAGES, Job, jobs_to_do
from atomloom.stages.current import current_plan, plan_is_current
from atomloom.stages.sources import current_sources, downloads_of, kept_sources

SECTIONS = {
    "convert": ("dataset.options", "dataset.checks", "dataset.chunks"),
    "label": ("teacher",),
    "features": ("features",),
    "graphs": ("graph",),
    "split": ("dataset.target", "dataset.global_features", "features", "split"),
    "train": (
        *("dataset.target", "dataset.global_features", "features", "split", "graph"),
        *("model", "training"),
    ),
}
"""Stage -> the parts of the config on which its files depend, besides the records."""
COMPARED = 200
"""Max number of runs among which the nearest is sought, the latest ones."""
NAMED = 3
"""Max number of files or fields named in a reason."""


@dataclass(frozen=True)
class StageStatus:
    """A stage, its jobs, and why some of them are to be done."""

    stage: str
    todo: int
    """Number of jobs to do."""
    jobs: int
    """Number of jobs in all."""
    why: str = ""
    """Reason; of a stage that is done, what there is."""

    @property
    def state(self) -> str:
        """State in words."""
        if not self.todo:
            return "done"
        return "to do" if self.jobs == 1 else f"{self.todo:,} of {self.jobs:,} to do"


@dataclass(frozen=True)
class Status:
    """Jobs that would be run for a config, stage by stage."""

    dataset: str
    run: str
    """Run key; empty where it is not known yet."""
    stages: tuple[StageStatus, ...]
    note: str = ""
    """Anything else that there is to say."""

    @property
    def jobs(self) -> dict[str, int]:
        """Number of jobs to do, by stage, without those that have none."""
        return {one.stage: one.todo for one in self.stages if one.todo}

    def lines(self) -> list[str]:
        """Lines for a terminal."""
        named = f"run {short_name(self.run)} ({self.run})" if self.run else "a run"
        lines = [f"{named} of {self.dataset}"]
        width = max(len(one.state) for one in self.stages)
        lines += [
            f"{one.stage:8s}  {one.state:{width}s}  {one.why}".rstrip() for one in self.stages
        ]
        if self.note:
            lines.append(self.note)
        total = sum(self.jobs.values())
        if not total and self.run:
            return [*lines, "nothing to do"]
        counted = ", ".join(f"{count:,} {stage}" for stage, count in self.jobs.items())
        return [*lines, f"{total:,} job{'s' * (total != 1)} to do: {counted}"]

    def content(self) -> dict[str, Any]:
        """Content for JSON."""
        stages = [{**asdict(one), "state": one.state} for one in self.stages]
        name = short_name(self.run) if self.run else ""
        return {"dataset": self.dataset, "run": self.run, "name": name, "stages": stages,
                "jobs": self.jobs, "note": self.note}  # fmt: skip


def status_of(layout: Layout, log: Callable[[str], None], dry: bool = False) -> Status:
    """Find out what would be done.

    Args:
        layout: paths of the project.
        log: takes one line at a time.
        dry: write nothing: where a plan is needed, make it in a temporary folder.

    Raises:
        AtomloomError: when a plan is needed and cannot be made.
    """
    why = _why_to_plan(layout)
    if dry and why and (missing := [one for one in downloads_of(layout) if not one.path.exists()]):
        first = StageStatus("plan", 1, 1, why)
        note = (
            f"what follows is known once {missing[0].path.name} is downloaded, which the plan does"
        )
        return Status(layout.config.dataset.name, "", (first,), note)
    if not why:
        plan = Plan.read(layout.plan_folder / "plan.json")
    elif dry:
        plan = _plan_elsewhere(layout, log)
    else:
        plan = current_plan(layout, log, layout.timing("plan", "plan"))
    paths = RunPaths(layout, plan)
    counted = f"{plan.records:,} records in {len(plan.chunk_keys):,} chunks"
    first = StageStatus("plan", int(dry and bool(why)), 1, f"{counted}{f'; {why}' if why else ''}")
    if why and not dry:
        first = StageStatus("plan", 0, 1, f"{counted}; just made: {why}")
    return Status(
        layout.config.dataset.name, paths.run_key, (first, *_after_plan(paths)), _note(paths)
    )


def _plan_elsewhere(layout: Layout, log: Callable[[str], None]) -> Plan:
    with tempfile.TemporaryDirectory(prefix="atomloom-") as folder:
        places = layout.config.paths.model_copy(update={"results": folder})
        return current_plan(Layout(layout.config.model_copy(update={"paths": places})), log)


# --- the plan ---


def _why_to_plan(layout: Layout) -> str:
    """Reason to plan; empty if the plan is current."""
    before, (now, _) = kept_sources(layout), current_sources(layout)
    if before is None:
        return "there is no plan for this section `dataset` and these raw files"
    if before != now:
        return _changed_files(before, now)
    return "" if plan_is_current(layout) else "the plan is missing, damaged or of older raw files"


def _changed_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Raw files that differ between two lists of them."""
    old, new = (
        dict(map(tuple, [*listed.get("files", []), *listed.get("tables", [])]))
        for listed in (before, now)
    )
    parts = {
        "changed": [file for file in new if file in old and new[file] != old[file]],
        "new": [file for file in new if file not in old],
        "gone": [file for file in old if file not in new],
    }
    told = [f"{_some(files)} {word}" for word, files in parts.items() if files]
    return ", ".join(told) or "the order of the raw files changed"


def _some(files: Sequence[str]) -> str:
    """Some files by name, and how many there are."""
    shown = ", ".join(files[:NAMED])
    return shown if len(files) <= NAMED else f"{shown} and {len(files) - NAMED:,} more"


# --- the stages after it ---


def _after_plan(paths: RunPaths) -> list[StageStatus]:
    todo: dict[str, list[Job]] = {}
    for job in jobs_to_do(paths):
        todo.setdefault(job.stage, []).append(job)
    nearest = _Nearest(paths) if todo else None
    found = []
    for stage in STAGES.values():
        if not stage.wanted(paths.config):
            continue
        jobs = todo.get(stage.name, [])
        count = len(stage.parts(paths)) * (len(paths.plan.chunk_keys) if stage.per_chunk else 1)
        why = ""
        if jobs and nearest is not None:
            why = _why(paths, stage.name, jobs, count, nearest)
        found.append(StageStatus(stage.name, len(jobs), count, why))
    return found


def _why(paths: RunPaths, stage: str, jobs: Sequence[Job], count: int, nearest: _Nearest) -> str:
    """Reason for jobs of a stage."""
    if stage == "train" and (begun := _begun(paths)):
        return begun
    missing = [path for job in jobs for path in job.missing]
    if not missing:
        if stage == "report" and paths.layout.report.exists():
            return _of_report(paths)
        return "reads what is made again"
    if not all(job.whole for job in jobs):
        return f"missing: {_some([path.name for path in missing])}"
    if stage == "report":
        return "there is none"
    if stage == "evaluate":
        return "the run has not been evaluated"
    fields = nearest.fields(SECTIONS.get(stage, ()))
    if fields:
        return f"{fields} (since {nearest.name})"
    if len(jobs) < count:
        return "their records are new or changed, or their shards were lost"
    if nearest.other_data:
        return f"records or labels changed (since {nearest.name})"
    return "has not been made yet"


def _begun(paths: RunPaths) -> str:
    """State of the training, where it has begun."""
    run = read_run(paths.run) if paths.run.is_dir() else None
    if run is None or run.state in ("evaluated", "trained", "damaged"):
        return ""
    epochs = f"epoch {run.epoch or 0} of {run.epochs}"
    if run.state == "training":
        return f"another process trains it at present, at {epochs}"
    if run.state == "failed":
        return f"failed after {epochs}: {run.reason}"
    return f"resumes after {epochs}" if run.epoch else "begun, and resumes where it was"


def _of_report(paths: RunPaths) -> str:
    """Reason to write a report that is there."""
    standing = report_key_of(paths.layout.report)
    if standing is None:
        return "the report that stands is truncated"
    if standing == paths.report_key and not paths.own_report.exists():
        return f"missing: {paths.own_report.name}, to which other reports link"
    if standing == paths.report_key:
        return "reads what is made again"
    return "the report that stands shows another run, index, split or unit"


class _Nearest:
    """Run from which the present one differs least, and how."""

    def __init__(self, paths: RunPaths) -> None:
        present = planned_run(paths)
        folder = paths.layout.results
        others = [
            run
            for run in (runs_of(folder) if folder.is_dir() else [])
            if run.config is not None and run.key != present.key and run.state != "planned"
        ]
        others = sorted(others, key=lambda run: run.when)[-COMPARED:]
        compared = [(run, differences([run, present])) for run in reversed(others)]
        own = present.keys.get("dataset")
        # Other data are a difference, too; of equally near runs the latest.
        distance = [
            len(different.keys() - {"data"}) + (run.keys.get("dataset") != own)
            for run, different in compared
        ]
        best = compared[distance.index(min(distance))] if compared else None
        self.name = ""
        self.other_data = False
        self._differing: dict[str, list[Any]] = {}
        if best is not None:
            run, self._differing = best
            self.name = short_name(run.key)
            self.other_data = run.keys.get("dataset") != own

    def fields(self, sections: Sequence[str]) -> str:
        """Fields in some sections that differ, with their values before and now."""
        told = [
            f"{name} {value_text(before)} -> {value_text(now)}"
            for name, (before, now) in self._differing.items()
            if any(name == section or name.startswith(f"{section}.") for section in sections)
        ]
        return _some(told)


def _note(paths: RunPaths) -> str:
    known = read_run(paths.run) if paths.run.is_dir() else None
    return f"the run is damaged: {known.reason}" if known and known.state == "damaged" else ""
