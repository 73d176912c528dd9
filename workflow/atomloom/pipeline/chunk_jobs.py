"""Chunks of a stage, done by several processes: their progress, their failures, and Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.stage_table import STAGES, Stage


def run_chunks(
    stage: Stage,
    paths: RunPaths,
    chunks: Sequence[str],
    workers: int,
    log: Callable[[str], None],
    done: Callable[[str], None],
    threads: int | None = None,
) -> None:
    """Run a stage for some chunks, several at a time.

    Args:
        stage: the stage, one that is per chunk.
        paths: the paths of the run.
        chunks: keys of the chunks.
        workers: max number of processes.
        log: takes one line at a time, where this process does the work.
        done: called with the key of each chunk that is finished.
        threads: number of threads of OpenMP in each process, which then does nothing else; None: as they are.

    Raises:
        AtomloomError: when a chunk fails, or a process is killed.
    """
    if threads is None and (workers <= 1 or len(chunks) <= 1):
        for key in chunks:
            stage.run_timed(paths, log, key)
            done(key)
        return
    with ProcessPoolExecutor(
        max(1, min(workers, len(chunks))), initializer=_begin, initargs=(threads,)
    ) as pool:
        jobs = {pool.submit(_one_chunk, stage.name, paths, key): key for key in chunks}
        try:
            for job in as_completed(jobs):
                job.result()
                done(jobs[job])
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # no file is left half written, whenever it ends
            raise
        except BrokenProcessPool:
            time.sleep(0.5)  # Ctrl-C ends workers too: it is raised here if they received it first
            raise AtomloomError(
                "a process was killed from outside, perhaps for lack of memory",
                todo="run it again with fewer processes; finished chunks stay",
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what fails for one chunk fails for others
            raise


def _one_chunk(stage: str, paths: RunPaths, key: str) -> None:
    """A job of a worker process, which is given the stage by its name."""
    STAGES[stage].run_timed(paths, _silent, key)


def _begin(threads: int | None) -> None:
    """Set the threads of a worker process, and let it end silently at Ctrl-C: the parent process reports."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before it imports what reads it
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells start what runs behind
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _silent(message: str) -> None:
    """Ignore a message: the parent process reports."""
