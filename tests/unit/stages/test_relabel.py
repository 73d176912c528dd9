"""A new unit reaches run card, model file and figure, and trains nothing."""

from __future__ import annotations

import json

import numpy as np
from ase.build import bulk

import atomloom
from atomloom.inference.model_file import read_model


def trained(folder, unit: str) -> atomloom.api.Run:
    """A run of two epochs on lattices of copper, or the one that is there."""
    lengths = np.linspace(3.4, 4.2, 20)
    return atomloom.train(
        [bulk("Cu", a=length, cubic=True) for length in lengths],
        lengths**2,
        folder=folder,
        dataset={"unit": unit},
        split={"duplicates": "report"},
        model={"name": "icomformer", "width": 8, "layers": 2},
        training={"epochs": 2, "keep_every": 1, "device": "cpu"},
        log=lambda _: None,
    )


def test_a_new_unit_is_in_everything_a_run_says_of_itself(tmp_path):
    run = trained(tmp_path, "eV")
    files = [run.folder / "model.safetensors", *(run.folder / "checkpoints").iterdir()]
    weights = {path: read_model(path)[0] for path in files}
    kept = {n: (run.folder / n).read_bytes() for n in ("history.csv", "metrics.json", "parity.png")}
    card = json.loads((run.folder / "run.json").read_text())
    again = trained(tmp_path, "meV/atom")
    assert again.folder == run.folder, "a unit is in no key"
    for path in files:
        tensors, own = read_model(path)
        assert own.unit == "meV/atom"
        assert own.facts["epoch"] in (1, 2)
        assert all(tensors[name].equal(weights[path][name]) for name in weights[path])
    new = json.loads((run.folder / "run.json").read_text())
    assert (new["unit"], new["config"]["dataset"]["unit"]) == ("meV/atom", "meV/atom")
    assert new["finished"] == card["finished"], "nothing was trained"
    assert (run.folder / "history.csv").read_bytes() == kept["history.csv"]
    assert (run.folder / "metrics.json").read_bytes() == kept["metrics.json"]
    assert (run.folder / "parity.png").read_bytes() != kept["parity.png"]
    assert "meV/atom" in again.report.read_text()
    stamps = {path: path.stat().st_mtime_ns for path in files}
    trained(tmp_path, "meV/atom")
    assert {path: path.stat().st_mtime_ns for path in files} == stamps
