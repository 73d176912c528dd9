"""Time and memory of jobs, written by the command itself, so that they are the same by hand and in the
workflow; if they were outputs of the rules, the workflow would repeat what was done by hand.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    write_text(path, f"s\tmax_rss\n{seconds:.4f}\t{peak / UNIT:.2f}\n")
