"""Lock of a run: of several trainings of one run at the same time, one trains and the others wait.

Two workflows, two sweeps or a sweep and a person may want the same run, and a cluster may start a job again while the
first copy lives on. The system releases the lock with the process that holds it, however it ended; whoever waited
resumes from the state that it left.

Where the file system has no locks, or those of one node hold on no other, both get it. The file then names the one
that came last, and the other finds that out before it writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atomloom.errors import AtomloomError

LOCK = Path("state") / "training.lock"
"""File of the lock, in the folder of a run; its first line says who holds it, its second is that process's own."""
WAITING = "waiting for it"
"""End of the line that says so."""
WIDTH = 300
"""Length of a first line: of two that are written in one place, nothing stays of the first."""
PAUSE = 2.0
"""Seconds between two attempts to get the lock."""


class Hold:
    """Lock of a run that this process holds.

    Args:
        path: the file of the lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        name = f"process {os.getpid()} on {platform.node()}".ljust(WIDTH)
        self.words = f"{name}\n{uuid.uuid4().hex}\n"
        """End of the file; all of it, unless two processes began at once."""

    def taken_by(self) -> str:
        """Process that has taken the run over meanwhile, in words; empty if none has."""
        try:
            # Opened anew: file systems of several nodes show what others wrote when a file is opened.
            words = self._path.read_text()
        except OSError:
            return ""  # removed with the folder, which tells of nobody else
        if words.endswith(self.words):
            return ""
        return words.split("\n")[-3:][0].strip() or "another process"


@contextmanager
def alone(
    run: Path, log: Callable[[str], None], waiting: Callable[[], object] = lambda: None
) -> Iterator[Hold]:
    """Hold the lock of a run inside the block, waiting for it if need be.

    Where the file system has no locks, a process that holds the run is not waited for.

    Args:
        run: the run's folder.
        log: told whom it waits for.
        waiting: called every now and then while it waits.

    Raises:
        AtomloomError: when the folder cannot be written to.
    """
    path = run / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise AtomloomError(f"cannot be written: {error.strerror}", where=path) from None
    with file:
        if not _locked(file.fileno()):
            file.seek(0)
            log(f"{run} is trained by {file.readline().strip() or 'another process'}: {WAITING}")
            while not _locked(file.fileno()):
                waiting()
                time.sleep(PAUSE)
        hold = Hold(path)
        file.truncate(0)
        file.write(hold.words)
        file.flush()
        os.fsync(file.fileno())
        yield hold


def _locked(file: int) -> bool:
    """Whether the lock is held now, or cannot be had here by anybody; False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
