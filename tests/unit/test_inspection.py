"""`atomloom inspect` says what is there, of every kind of file it is shown."""

from __future__ import annotations

import numpy as np
import pytest

from atomloom.commands.inspection import inspect_path
from atomloom.config import GraphSpec
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.graphs.store import write_graphs
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

ROCKSALT = np.array([[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]])


def text(path) -> str:
    return "\n".join(inspect_path(path))


def test_a_shard_of_graphs_and_its_folder(tmp_path):
    salt = Structure([11, 17], [[0, 0, 0], [2.82, 0, 0]], ROCKSALT, [True] * 3)
    spec = GraphSpec(max_neighbors=6)
    graphs = build_graphs(StructureTable.from_structures([salt, salt]), spec)
    write_graphs(tmp_path / "a.zarr.zip", graphs, spec)
    shown = text(tmp_path / "a.zarr.zip")
    assert "graphs             2\n" in shown
    assert "atoms              4, 2 to 2 per structure" in shown
    assert "formulas           NaCl 2" in shown
    assert "edges              24" in shown
    assert '"max_neighbors":6' in shown
    assert shown.splitlines()[-1].split() == ["6", "#" * 40, "4"]
    assert text(tmp_path) == shown


def test_raw_files_with_what_cannot_be_used(tmp_path):
    good = "2\nenergy=-1.5\nH 0 0 0\nH 0 0 0.74\n"
    (tmp_path / "two.xyz").write_text(good + good.replace("H 0 0 0.74", "Xx 0 0 0.74"))
    shown = text(tmp_path / "two.xyz")
    assert "records            2 (extxyz 2)" in shown
    assert "periodic in        0 directions 1" in shown
    assert "properties         energy 1" in shown
    assert "cannot be used     1" in shown
    assert "Xx" in shown


def test_nothing_there_and_damage_are_said(tmp_path):
    with pytest.raises(AtomloomError, match="no such file or folder"):
        text(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AtomloomError, match="empty: no file that a reader recognises"):
        text(tmp_path / "empty")
    (tmp_path / "cut.zarr.zip").write_bytes(b"PK")
    with pytest.raises(AtomloomError, match=r"cut\.zarr\.zip"):
        text(tmp_path / "cut.zarr.zip")
