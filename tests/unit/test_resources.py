"""The embedded demo data are whole, small, and what their READMEs say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import atomloom

RESOURCES = Path(__file__).resolve().parents[2] / "resources"


def test_every_demo_crystal_is_read_and_labelled():
    structures = atomloom.read(RESOURCES / "demo_crystals" / "cif")
    labels = pd.read_csv(RESOURCES / "demo_crystals" / "id_prop.csv", index_col="id")
    assert len(structures) == len(labels) == 434
    assert {s.id for s in structures} == set(labels.index)
    assert labels["cohesive_energy_per_atom"].between(-10, -1).all()
    assert labels.groupby("group").size().eq(7).all()
    assert len({s.hash for s in structures}) == len(structures)


def test_every_tio2_frame_has_energy_forces_and_stress():
    frames = atomloom.read(RESOURCES / "demo_tio2" / "tio2.extxyz")
    assert len(frames) == 400
    for frame in frames:
        assert sorted(set(frame.numbers.tolist())) == [8, 22]
        assert (frame.numbers == 8).sum() == 2 * (frame.numbers == 22).sum()
        assert -99 < frame.properties["energy"] / len(frame) < -97
        assert frame.properties["forces"].shape == (len(frame), 3)
        # Forces of a periodic cell add up to nothing, to the printed digits.
        assert np.abs(frame.properties["forces"].sum(axis=0)).max() < 1e-3
        np.testing.assert_allclose(frame.properties["stress"], frame.properties["stress"].T)


def test_demo_data_stay_small():
    size = sum(path.stat().st_size for path in RESOURCES.rglob("*") if path.is_file())
    assert size < 2_000_000
