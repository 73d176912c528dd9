"""Command `atomloom run`: all stages of a config in one process tree, for those without Snakemake.

The jobs are those that the workflow would run, from the same files to the same files with the same bytes; what is
there already is not made again, whoever made it.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from atomloom.commands.options import Prepare, say
from atomloom.config import dump_config
from atomloom.errors import AtomloomError, InterruptedRun, StoppedRun
from atomloom.pipeline.chunk_jobs import run_chunks
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.progress import Progress
from atomloom.pipeline.run_table import shown_width
from atomloom.pipeline.stage_table import STAGES, Job, Stage, jobs_to_do
from atomloom.stages.current import current_plan
from atomloom.store.files import write_text

Log = Callable[[str], None]

EPOCH = re.compile(r"epoch +(\d+)/(\d+)  (.*)")
"""Line of the training on an epoch."""
BAR = 20
"""Characters of a bar."""


@dataclass
class Shown:
    """Lines of one stage: as they are, or in a terminal with the last of a long stage as a bar in place."""

    stage: str
    log: Log
    """Takes lines that stay."""
    terminal: TextIO | None = None
    """Terminal to draw in; None: every line stays."""
    _drawn: bool = field(default=False, init=False)

    def line(self, message: str) -> None:
        """Show a line; one on an epoch moves the bar."""
        epoch = EPOCH.fullmatch(message) if self.terminal is not None else None
        if epoch is None:
            self.clear()
            self.log(message)
        else:
            self.draw(int(epoch[1]), int(epoch[2]), epoch[3])

    def draw(self, done: int, total: int, text: str) -> None:
        """Draw the bar in place of the last one; the last one of all stays."""
        if self.terminal is None:
            return
        full = BAR * done // max(total, 1)
        bar = "#" * full + "-" * (BAR - full)
        line = f"{self.stage:>8s} | [{bar}] {done:,}/{total:,}  {text}"
        width = shutil.get_terminal_size().columns - 1
        while shown_width(line) > width:
            line = line[:-1]
        self.terminal.write(f"\r\x1b[K{line}")
        self._drawn = True
        if done >= total:
            self.clear()
        self.terminal.flush()

    def clear(self) -> None:
        """End the line of the bar, if there is one."""
        if self._drawn and self.terminal is not None:
            self.terminal.write("\n")
            self.terminal.flush()
        self._drawn = False


def run_all(layout: Layout, cores: int, log_of: Callable[[str, Path], Log]) -> RunPaths:
    """Run all jobs that are to be done; return the paths of the run.

    Args:
        layout: paths of the project.
        cores: max number of processes of a stage, and of threads of training and evaluation.
        log_of: returns the log of a stage, which also appends to a file.

    Raises:
        AtomloomError: when a stage fails; it says what stands.
    """
    if not layout.merged_config.exists():
        write_text(layout.merged_config, dump_config(layout.config))
    terminal = sys.stderr if sys.stderr.isatty() else None
    shown = Shown("plan", log_of("plan", layout.logs / "plan.log"), terminal)
    plan = current_plan(layout, shown.line, layout.timing("plan", "plan"))
    paths, threaded = (RunPaths(one, plan) for one in (layout, _with_threads(layout, cores)))
    todo = jobs_to_do(paths)
    if not todo:
        # To nobody's file: results that are finished may be on a medium that cannot be written to.
        say(f"{'run':>8s} | nothing to do: {layout.report} is up to date")
    done = ["plan"]
    for stage in (stage for stage in STAGES.values() if stage.wanted(layout.config)):
        jobs = [job for job in todo if job.stage == stage.name]
        if jobs:
            shown = Shown(stage.name, log_of(stage.name, _log_file(paths, stage)), terminal)
            try:
                _run_stage(threaded if stage.threads else paths, stage, jobs, cores, shown)
            except AtomloomError as error:
                raise _with_what_stands(error, stage, done) from error
            finally:
                shown.clear()
        done.append(stage.name)
    return paths


def _run_stage(
    paths: RunPaths, stage: Stage, jobs: Sequence[Job], cores: int, shown: Shown
) -> None:
    if not stage.per_chunk:
        if stage.name == "train" and paths.config.training.devices > 1:
            from atomloom.stages.train import train_in_processes

            # Their lines come with the name of the stage already.
            train_in_processes(
                paths.layout, lambda line: shown.line(line.removeprefix(f"{stage.name} | "))
            )
        else:
            stage.run_timed(paths, shown.line)
        return
    parts = {id(job.part): job.part for job in jobs}
    for part in parts.values():
        chunks = [job.chunk for job in jobs if job.part is part]
        _run_chunks(part, stage, chunks, cores, shown)


def _run_chunks(
    paths: RunPaths, stage: Stage, chunks: Sequence[str], cores: int, shown: Shown
) -> None:
    size = {chunk.key: chunk.count for chunk in paths.plan.chunks}
    of = f" of {', '.join(paths.config.features)}" if stage.name == "features" else ""
    shown.line(f"{len(chunks):,} of {len(paths.plan.chunk_keys):,} chunks to do{of}")
    progress = Progress(shown.line, len(chunks), sum(size[key] for key in chunks))
    finished: list[str] = []

    def done(key: str) -> None:
        finished.append(key)
        shown.draw(len(finished), len(chunks), "chunks")
        progress.add(size[key])

    # Calculators have one thread each, as in the workflow.
    threads = 1 if stage.name in ("label", "features") else None
    run_chunks(stage, paths, chunks, cores, shown.line, done, threads)


def run_all_trials(
    layout: Layout,
    cores: int,
    log_of: Callable[[str, Path], Log],
    prepare: Prepare,
) -> Path:
    """Plan, and run all trials of the section `sweep`; return the folder of the sweep.

    Args:
        layout: paths of the project.
        cores: shared by the trials at a time, of which each has `sweep.threads`.
        log_of: returns the log of a stage, which also appends to a file.
        prepare: makes what the training of a config needs, such as `atomloom.api.prepare`.

    Raises:
        AtomloomError: when there is no such section, or a step before training fails.
    """
    from atomloom.commands.sweep import run_sweep
    from atomloom.commands.trials import sweep_of

    log = log_of("plan", layout.logs / "plan.log")
    paths = RunPaths(layout, current_plan(layout, log, layout.timing("plan", "plan")))
    jobs = max(1, cores // sweep_of(paths).threads)
    return run_sweep(paths, jobs, log_of("sweep", layout.logs / "sweep.log"), prepare)


def _with_threads(layout: Layout, cores: int) -> Layout:
    """Layout of the config that a job is given which may use some cores, as in the workflow."""
    training = layout.config.training
    if training.threads:
        return layout
    own = training.model_copy(update={"threads": cores})
    return Layout(layout.config.model_copy(update={"training": own}))


def _log_file(paths: RunPaths, stage: Stage) -> Path:
    """Log of a stage where the workflow has it; one for all chunks of a stage."""
    logs = paths.layout.logs
    if stage.per_chunk or stage.job is None:
        return logs / f"{stage.name}.log"
    return logs / stage.name / f"{stage.job(paths, '')}.log"


def _with_what_stands(error: AtomloomError, stage: Stage, done: Sequence[str]) -> AtomloomError:
    """The error of a stage, which also says what is done, or that something is to be done first."""
    stands = (
        f"{', '.join(done)} stand{'s' * (len(done) == 1)}, and the same command goes on from there"
    )
    if not error.todo:
        todo = stands
    elif isinstance(error, (InterruptedRun, StoppedRun)):
        todo = f"{error.todo}; {stands}"
    else:
        todo = f"{error.todo}; then the same command goes on"
    return type(error)(f"{stage.name}: {error.what}", where=error.where, todo=todo)
