"""Time and memory of jobs, written by the command itself, so that they are the same by hand and in the
workflow; if they were outputs of the rules, the workflow would repeat what was done by hand.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atomloom.store.files import write_text

UNIT = 2**20 if sys.platform == "darwin" else 2**10
"""Units in which the system counts memory, per MiB."""


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Write the seconds spent in the block and the peak memory (MiB) of the process as one row."""
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    peak = max(_own_peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    write_text(path, f"s\tmax_rss\n{seconds:.4f}\t{peak / UNIT:.2f}\n")


def _own_peak() -> int:
    """Peak memory of this process, in the units of `getrusage`, which may tell that of the process that started it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_timing(path: Path) -> tuple[float, float] | None:
    """Seconds and MiB of a job; None where it was not timed, or the file is not one of these."""
    try:
        seconds, peak = path.read_text().splitlines()[1].split("\t")
        return float(seconds), float(peak)
    except (OSError, IndexError, ValueError):
        return None
