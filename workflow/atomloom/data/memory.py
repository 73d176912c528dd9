"""Free memory for this process: the min of what the machine, a control group and the process's
own limits leave.

It knows nothing of graphs. Where the system does not report it (not Linux), half of the installed
memory counts as free.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of limit, use, and reclaimable part of the use: of version 2, and of version 1."""


@dataclass(frozen=True)
class FreeMemory:
    """Free memory, and what limits it."""

    size: int
    """Bytes."""
    limit: str
    """Origin of the limit, in words."""


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """Free memory by the tightest of all limits.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    found = [_of_machine(root), *_of_groups(root), *_of_process(root)]
    return min(found, key=lambda item: item.size)


def _of_machine(root: Path) -> FreeMemory:
    for line in _lines(root / "proc" / "meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return FreeMemory(1024 * int(rest.split()[0]), "free memory of the machine")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return FreeMemory(whole // 2, "half of the memory of the machine")


def _of_groups(root: Path) -> list[FreeMemory]:
    """Limits of the process's control group and of those above it."""
    found = []
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup"
        if controllers:
            top /= "memory"
        # A container sees its own group at the top, under a path that does not exist there.
        groups = [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]
        for group in groups[: groups.index(top) + 1]:
            left = _left_in(group)
            if left is not None:
                found.append(FreeMemory(left, "memory limit of the control group"))
    return found


def _left_in(group: Path) -> int | None:
    """Bytes that a group may still take; None without a limit."""
    for limit, use, reclaimable in CGROUP_FILES:
        most, now = _lines(group / limit), _lines(group / use)
        if most and now and most[0].isdigit() and int(most[0]) < 1 << 60:
            statistics = dict(line.split() for line in _lines(group / "memory.stat"))
            return max(0, int(most[0]) - int(now[0]) + int(statistics.get(reclaimable, 0)))
    return None


def _of_process(root: Path) -> list[FreeMemory]:
    """Limits of `ulimit`, minus the use of the process."""
    used = _lines(root / "proc" / "self" / "statm")
    if not used:
        return []
    pages = used[0].split()
    found = []
    for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            left = max(0, most - int(pages[column]) * os.sysconf("SC_PAGE_SIZE"))
            found.append(FreeMemory(left, "memory limit of the process"))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
