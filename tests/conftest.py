"""Where the real data and the reference numbers are; tests skip, saying so, where they are not.

Tests and what they start use one thread: their problems are too small for more, and threads that
wait by spinning take many times as long beside other work.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _shared(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable) or ROOT.parent / "shared" / name)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the real data sets."""
    folder = _shared("ATOMLOOM_DATA", "data")
    if not folder.is_dir():
        pytest.skip("no real data sets here: set ATOMLOOM_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def oracle_folder() -> Path:
    """Folder with the reference numbers."""
    folder = _shared("ATOMLOOM_ORACLES", "oracles")
    if not folder.is_dir():
        pytest.skip("no reference numbers here: set ATOMLOOM_ORACLES to their folder")
    return folder


@pytest.fixture(scope="session")
def oracle(oracle_folder):
    """`oracle(name)` opens the reference arrays of that name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(oracle_folder / f"{name}.npz") as content:
            return {key: content[key] for key in content.files}

    return load
