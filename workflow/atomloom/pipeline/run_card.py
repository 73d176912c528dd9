"""Environment of a run, as its run card records it: versions, machine, code.

Nothing here enters a key: the run card is evidence, not identity.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "atomloom",
    "torch",
    "numpy",
    "numba",
    "zarr",
    "pymatgen",
    "ase",
    "jarvis-tools",
    "e3nn",
    "lightning-fabric",
    "dgl",
    "snakemake",
)
HISTORY = "history.csv"
"""Name of the table alongside the run card, with one row per epoch."""


def now() -> str:
    """Current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine and state of the code, for the run card."""
    return {
        "environment": {
            "python": platform.python_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
            "platform": platform.platform(),
            "cpu": processor(),
            "device": device,
            "threads": threads,
        },
        "code": _code_state(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _code_state() -> dict[str, Any]:
    """Commit of the checkout that the package runs from, and whether it has local changes."""
    folder = Path(__file__).parents[1]
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
