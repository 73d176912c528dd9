"""What a run card says of the world a run happened in: versions, machine, code.

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
"""The table beside the run card that has a row an epoch."""


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine and state of the code, as the run card holds them."""
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
    """The name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _code_state() -> dict[str, Any]:
    """Commit of the checkout that the package runs from, and whether it had local changes."""
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
