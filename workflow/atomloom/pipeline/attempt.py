"""Attempts to train a run: which config, since when, and how the last one failed, beside the run's state.

A killed process cannot say that it was killed. So an attempt holds a lock that the system releases with
the process, whatever ended it: a run is in training if its lock is held. All processes of a run share it, from
loading the data to writing the card; which of several attempts trains is not decided here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atomloom.errors import LostProcess, StoppedRun, legible
from atomloom.pipeline.run_card import now
from atomloom.store.files import read_json, write_sealed

ATTEMPT = Path("state") / "attempt.json"
"""Record of the last attempt, in the folder of a run."""
PROGRESS = Path("state") / "progress.json"
"""Epochs done and errors so far, as of the saved state of a run."""
LOCK = Path("state") / "attempt.lock"


@contextmanager
def attempted(run: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Hold the run's lock inside the block, and record why it failed if it does.

    Args:
        run: the run's folder.
        facts: recorded beside the time and the process, such as the config.
    """
    record = {**facts, "started": now(), "host": platform.node(), "pid": os.getpid()}
    write_sealed(run / ATTEMPT, record)
    with _locked(run / LOCK):
        try:
            yield
        except StoppedRun:
            raise
        except LostProcess as error:
            if "reason" not in read_json(run / ATTEMPT):  # of the process that was lost
                _fail(run, record, error)
            raise
        except Exception as error:
            _fail(run, record, error)
            raise


def _fail(run: Path, record: Mapping[str, Any], error: Exception) -> None:
    """Record why an attempt failed."""
    reason = legible(" ".join(str(error).split())) or type(error).__name__
    with suppress(Exception):  # the disk may be full, which is what it failed of
        write_sealed(run / ATTEMPT, {**record, "failed": now(), "reason": reason})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Share a lock with the other processes of the run; nothing where the file system has no locks."""
    with open(path, "ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def in_training(run: Path) -> bool | None:
    """Whether a process trains the run at present; None where the file system cannot tell."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(descriptor)
    return False
