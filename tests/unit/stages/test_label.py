"""Chunks are labelled once, by structure and teacher, and a killed job goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from atomloom.config import parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.stages import label as stage
from atomloom.stages.convert import convert_chunk
from atomloom.stages.label import label_chunk, labelled_chunk, read_labels_of
from atomloom.stages.plan import make_plan
from atomloom.store.keys import LABELLER, chain_hash
from tests.unit.potentials.models import rattled_copper


def quiet(_):
    """Take no notice."""


def project(folder: Path, structures: list, **teacher) -> tuple[Layout, Plan]:
    write(folder / "cu.extxyz", structures)
    layout = Layout(
        parse_config(
            {
                "dataset": {
                    "name": "cu",
                    "source": str(folder / "cu.extxyz"),
                    "target": ["energy", "forces"],
                    "chunks": {"mean": 8},
                },
                "teacher": {"calculator": "emt", **teacher},
                "model": {"name": "chebyshev", "species": ["Cu"]},
                "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
            }
        )
    )
    make_plan(layout, quiet)
    plan = Plan.read(layout.plan_folder / "plan.json")
    for chunk in plan.chunks:
        convert_chunk(layout, plan, chunk.key, quiet)
    return layout, plan


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many structures the teacher was asked about, call by call."""
    calls: list[int] = []
    genuine = stage.teach

    def counting(teacher, table):
        calls.append(len(table))
        return genuine(teacher, table)

    monkeypatch.setattr(stage, "teach", counting)
    return calls


def test_labels_become_properties_of_the_structures(tmp_path):
    layout, plan = project(tmp_path, rattled_copper(24))
    for chunk in plan.chunks:
        label_chunk(layout, chunk.key, quiet)
        converted, reasons = labelled_chunk(layout, chunk.key)
        labels = read_labels_of(layout, chunk.key)
        assert not reasons
        assert np.array_equal(converted.table.properties["energy"], labels.energy)
        assert labels.forces.shape == (len(converted.table.numbers), 3)


def test_a_known_structure_is_not_labelled_again(tmp_path, asked):
    layout, plan = project(tmp_path, rattled_copper(24))
    for chunk in plan.chunks:
        label_chunk(layout, chunk.key, quiet)
    assert sum(asked) == 24
    before = [read_labels_of(layout, chunk.key).energy for chunk in plan.chunks]
    asked.clear()
    more = rattled_copper(24)
    more.insert(5, bulk("Ag", cubic=True))
    layout, plan = project(tmp_path, more)
    for chunk in plan.chunks:
        label_chunk(layout, chunk.key, quiet)
    assert sum(asked) == 1, "all but the new one were known"
    after = np.concatenate([read_labels_of(layout, chunk.key).energy for chunk in plan.chunks])
    assert np.array_equal(np.delete(after, 5), np.concatenate(before))


def test_another_teacher_has_labels_of_its_own(tmp_path):
    one, _ = project(tmp_path, rattled_copper(8))
    other, _ = project(tmp_path, rattled_copper(8), options={"asap_cutoff": True})
    assert one.label_folder != other.label_folder
    plans = [
        RunPaths(layout, Plan.read(layout.plan_folder / "plan.json")) for layout in (one, other)
    ]
    assert plans[0].dataset_key != plans[1].dataset_key
    assert plans[0].index == plans[1].index, "graphs know no labels"


def test_a_killed_job_goes_on_where_it_was(tmp_path, monkeypatch, asked):
    layout, plan = project(tmp_path, rattled_copper(24))
    key = max(plan.chunks, key=lambda chunk: chunk.count).key
    monkeypatch.setattr(stage, "KEEP_EVERY", 0.0)
    genuine, written = stage._write, []

    def dying(path, table, done):
        genuine(path, table, done)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            label_chunk(layout, key, quiet)
    assert not layout.labels(key).exists()
    whole = asked[0]
    label_chunk(layout, key, quiet)
    assert asked[1] == whole - 3
    assert np.isfinite(read_labels_of(layout, key).energy).all()
    assert not list((layout.label_folder / "partial").iterdir())


def test_failures_are_kept_with_their_reason(tmp_path):
    structures = rattled_copper(8)
    structures[2].numbers[0] = 26
    layout, plan = project(tmp_path, structures)
    reasons = {}
    for chunk in plan.chunks:
        label_chunk(layout, chunk.key, quiet)
        _, found = labelled_chunk(layout, chunk.key)
        reasons |= {chunk.first + row: reason for row, reason in found.items()}
    assert list(reasons) == [2]
    assert reasons[2].startswith("teacher: ")


GOLDEN = {1: "5b5ed479bcfb5ae5"}
"""LABELLER -> digest of the labels below."""


def test_labels_change_only_with_the_version_of_the_labeller(tmp_path):
    layout, plan = project(tmp_path, rattled_copper(6))
    parts = []
    for chunk in plan.chunks:
        label_chunk(layout, chunk.key, quiet)
        labels = read_labels_of(layout, chunk.key)
        arrays = (labels.energy, labels.forces, labels.stress)
        parts += [np.rint(values * 1e6).astype(np.int64).tobytes() for values in arrays]
    assert chain_hash(parts) == GOLDEN[LABELLER]
