"""Where the real data and the reference numbers are; tests skip, saying so, where they are not.

Tests and what they start use one thread: their problems are too small for more, and threads that
wait by spinning take many times as long beside other work. What a test finds does not depend on the
machine: drawn examples are the same everywhere, and no example fails for being slow.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "everywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("everywhere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of long tests first: the processes that share the tests then end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    long |= {item.path for item in items if item.path.parent.name in ("workflow", "faults")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the real data sets, as ATOMLOOM_DATA names it."""
    named = os.environ.get("ATOMLOOM_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("no real data sets here: set ATOMLOOM_DATA to their folder")
    return Path(named)


@pytest.fixture(scope="session")
def oracle_folder() -> Path:
    """Folder with the reference numbers: ATOMLOOM_ORACLES, or `oracles` next to ATOMLOOM_DATA."""
    named = os.environ.get("ATOMLOOM_ORACLES")
    if not named and (data := os.environ.get("ATOMLOOM_DATA")):
        named = str(Path(data).parent / "oracles")
    if not named or not Path(named).is_dir():
        pytest.skip("no reference numbers here: set ATOMLOOM_ORACLES to their folder")
    return Path(named)


@pytest.fixture(scope="session")
def oracle(oracle_folder):
    """`oracle(name)` opens the reference arrays of that name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(oracle_folder / f"{name}.npz") as content:
            return {key: content[key] for key in content.files}

    return load
