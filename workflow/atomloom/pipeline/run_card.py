"""Evidence of a run, as its run card records it: versions, machine, code, data, results, determinism.

Nothing here enters a key: the run card is evidence, not identity. Cards of before have fewer entries.
"""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.store.files import file_digest, read_json, write_sealed
from atomloom.store.keys import (
    BUILDER,
    CONVERTER,
    GUARD,
    LABELLER,
    PLANNER,
    TRAINER,
    chain_hash,
    short_hash,
)

CARD = "run.json"
"""Name of the run card in a run's folder."""
HISTORY = "history.csv"
"""Name of the table alongside the run card, with one row per epoch."""
PACKAGES = (
    "atomloom",
    "torch",
    "numpy",
    "numba",
    "scipy",
    "pandas",
    "pyarrow",
    "safetensors",
    "zarr",
    "pymatgen",
    "spglib",
    "ase",
    "gemmi",
    "jarvis-tools",
    "e3nn",
    "lightning-fabric",
    "dgl",
    "tblite",
    "chgnet",
    "snakemake",
)
"""Packages whose versions are recorded, where they are installed."""
LISTED = 200
"""Max number of raw files that a card lists by name; of more, the digest of the list remains."""
VERSIONS = {
    "planner": PLANNER,
    "converter": CONVERTER,
    "builder": BUILDER,
    "trainer": TRAINER,
    "labeller": LABELLER,
    "guard": GUARD,
}
"""Version integers that stand for code in keys."""


# --- determinism ---


@dataclass(frozen=True)
class Level:
    """Level of determinism: how close a repetition of a run comes to it."""

    name: str
    promise: str
    """Promise, in a clause."""
    weights: float | None
    """Max difference of a tensor, relative to its largest weight; None: nothing is promised."""
    metrics: float | None
    """Max relative difference of an error or a prediction; None: nothing is promised."""


LEVELS = {
    level.name: level
    for level in (
        Level(
            "bit-equal",
            "the same weights, errors and predictions to the bit, with the same code, versions, kind of "
            "processor and number of threads",
            0.0,
            0.0,
        ),
        Level(
            "rounding",
            "the same up to rounding, which training amplifies: sums are taken in another order",
            0.05,
            0.02,
        ),
        Level(
            "unmeasured", "nothing: how close a repetition comes has not been measured", None, None
        ),
    )
}
"""Level by its name."""


def level_of(device: str, processes: int = 1, compiled: bool = False) -> Level:
    """Level of a run repeated where and as it was run.

    Args:
        device: `cpu`, or the name of a GPU.
        processes: number of processes that shared the batches.
        compiled: whether torch.compile was on.
    """
    if device != "cpu":
        return LEVELS["unmeasured"]
    return LEVELS["bit-equal" if processes == 1 and not compiled else "rounding"]


# --- environment and code ---


def now() -> str:
    """Current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine and state of the code, for the run card."""
    return {
        "environment": {
            "python": platform.python_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
            "lock": lock_digest(),
            "platform": platform.platform(),
            "cpu": processor(),
            "device": device,
            "threads": threads,
        },
        "code": code_state(),
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


def code_state() -> dict[str, Any]:
    """Commit of the checkout that the package runs from, whether it has local changes, and its digest.

    Commit and changes are None where the package is not part of a checkout: it may be installed in
    an environment that lies within another project's.
    """
    package = Path(__file__).parents[1]
    code = {"commit": None, "dirty": None, "sources": sources_digest(package), **VERSIONS}
    try:
        _git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=all", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return code
    return code | {"commit": commit, "dirty": bool(changed)}


@cache
def sources_digest(package: Path) -> str:
    """Digest of names and content of the package's modules: equal code has it without git, too."""
    modules = sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix())
    return chain_hash(
        part
        for path in modules
        for part in (path.relative_to(package).as_posix(), path.read_bytes())
    )


def lock_digest() -> str | None:
    """Digest of the lock file of the checkout that the package runs from; None without one."""
    lock = Path(__file__).parents[3] / "envs" / "requirements.lock"
    return file_digest(lock) if lock.exists() else None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- data and results ---


def data_facts(paths: RunPaths) -> dict[str, Any]:
    """Digests of everything that the run's data were made of.

    Digests of records, label values and splits say which data they are, wherever they were read from. Raw
    files are those that were there when the workflow, or the plan by hand, was last started.
    """
    plan, manifest = paths.plan, paths.layout.plan_folder / "sources.json"
    facts = {
        "records": plan.records,
        "chunks": len(plan.chunks),
        "members": plan.members_digest,
        "labels": plan.labels_digest,
        "fixed": plan.fixed_digest,
        "teacher": paths.layout.teacher_key,
        **({"features": paths.layout.feature_keys} if paths.config.features else {}),
        "index": short_hash(paths.index_spec),
    }
    if not manifest.exists():
        return facts
    content = read_json(manifest, "files", "tables")
    return facts | {name: _list_of(content[name]) for name in ("files", "tables")}


def _list_of(files: list[list[Any]]) -> dict[str, Any]:
    """Digest of a list of files with their digests, and the list itself if it is short."""
    found = {"count": len(files), "digest": short_hash([digest for _, digest in files])}
    return found | ({"listed": files} if len(files) <= LISTED else {})


def history_digest(path: Path) -> str:
    """Digest of a history without its times."""
    with open(path, newline="") as file:
        rows = [
            [value for name, value in row.items() if not name.endswith("seconds")]
            for row in csv.DictReader(file)
        ]
    return short_hash(rows)


def require_result(card: Mapping[str, Any], path: Path, todo: str) -> None:
    """Raise AtomloomError if a file of results is not the one that a card records; cards of before record none."""
    results = card.get("results")
    if isinstance(results, Mapping) and results and file_digest(path) != results.get(path.name):
        raise AtomloomError("is not the one that the card records", where=path, todo=todo)


def record_results(run: Path, digests: Mapping[str, str], **facts: Any) -> None:
    """Add digests of results, and other facts, to the card of a run, if there is one.

    Raises:
        AtomloomError: when the card is damaged.
    """
    path = run / CARD
    if not path.exists():
        return
    card = read_json(path)
    if not isinstance(card, dict):
        raise AtomloomError("is not a run card", where=path)
    results = {**card.get("results", {}), **digests}
    write_sealed(path, card | facts | {"results": results})
