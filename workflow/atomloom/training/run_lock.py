"""Lock of a run: of several trainings of one run at the same time, one trains and the others wait.

Two workflows, two sweeps or a sweep and a person may want the same run. The system releases the lock with
the process that holds it, however it ended; whoever waited resumes from the state that it left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atomloom.errors import AtomloomError

LOCK = Path("state") / "training.lock"
"""File of the lock, in the folder of a run; it says who holds it."""
WAITING = "waiting for it"
"""End of the line that says so."""


@contextmanager
def alone(run: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run inside the block, waiting for it if need be.

    Where the file system has no locks, nothing is held.

    Args:
        run: the run's folder.
        log: told whom it waits for.

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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                log(f"{run} is trained by {file.read().strip() or 'another process'}: {WAITING}")
                fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
