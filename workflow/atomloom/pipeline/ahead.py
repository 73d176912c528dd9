"""Work ahead: a job of one chunk does further chunks, so that not each has to start a process.

On one machine starting Python and loading compiled kernels takes longer than most chunks do. A job therefore goes
on for some seconds with chunks that are still to be done, and leaves their shards under a hidden name beside the
place. The job of such a chunk only renames its shard, by the shell; the workflow has the same jobs and
outputs as ever. Several processes share the chunks by locks, which the system releases with them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.stage_table import Stage
from atomloom.store.files import TEMPORARY_SUFFIX

Log = Callable[[str], None]

AHEAD = ("convert", "features", "graphs")
"""Stages whose chunks can be done ahead."""


def ahead_of(path: Path) -> Path:
    """Hidden name of a shard that was made before its job; `atomloom gc` removes one that nobody fetched."""
    return path.with_name(f".{path.name}.ahead{TEMPORARY_SUFFIX}")


@dataclass(frozen=True)
class AheadLayout(Layout):
    """Layout in which the shards that a stage writes have their hidden names."""

    stage: str = ""

    def structures(self, chunk_key: str) -> Path:
        """Shard of converted structures."""
        path = super().structures(chunk_key)
        return ahead_of(path) if self.stage == "convert" else path

    def features(self, name: str, chunk_key: str) -> Path:
        """Shard of a feature."""
        path = super().features(name, chunk_key)
        return ahead_of(path) if self.stage == "features" else path

    def graphs(self, chunk_key: str) -> Path:
        """Shard of graphs."""
        path = super().graphs(chunk_key)
        return ahead_of(path) if self.stage == "graphs" else path


def run_with_others(
    stage: Stage, paths: RunPaths, chunk: str, seconds: float, log_of: Callable[[str], Log]
) -> None:
    """Do a chunk, or fetch it if it was done ahead; then go on with others that can be done.

    Args:
        stage: one of `AHEAD`.
        paths: the paths of the run; of `features`, with one alone.
        chunk: key of the chunk whose job this is.
        seconds: processor time of this process after which no other chunk is begun.
        log_of: log of a chunk, by its key.

    Raises:
        AtomloomError: when the chunk itself fails; of another one, its own job will say so.
    """
    (own,) = stage.outputs(paths, chunk)
    with _claimed(own, wait=True):
        try:
            os.replace(ahead_of(own), own)
        except OSError:
            stage.run_timed(paths, log_of(chunk), chunk)
    hidden = RunPaths(AheadLayout(paths.config, stage.name), paths.plan)
    keys = paths.plan.chunk_keys
    first = keys.index(chunk)
    for key in keys[first + 1 :] + keys[:first]:
        if time.process_time() >= seconds:
            return
        if _possible(stage, paths, key):
            (path,) = stage.outputs(paths, key)
            # Whatever goes wrong, and be it the system's fault: this job has made its own chunk.
            with _claimed(path, wait=False) as mine, suppress(Exception):
                if mine and _possible(stage, paths, key):
                    stage.run_timed(hidden, log_of(key), key)


def _possible(stage: Stage, paths: RunPaths, key: str) -> bool:
    """Whether a chunk is still to be done, and what it is made of is there."""
    (path,) = stage.outputs(paths, key)
    made = path.exists() or ahead_of(path).exists()
    return not made and all(file.exists() for file in stage.reads(paths, key))


@contextmanager
def _claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a shard that is being made; whether it is held.

    Who does not wait makes the file, too: one that is there is of a process that is at work, or that was killed
    over this chunk, as by want of memory, and would have been killed again. Where the file system has no locks it
    is held by nobody, and each process does its own chunks.
    """
    lock = path.with_name(f".{path.name}.lock{TEMPORARY_SUFFIX}")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | (0 if wait else os.O_EXCL), 0o666)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        if held:
            lock.unlink(missing_ok=True)
        os.close(descriptor)
