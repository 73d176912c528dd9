"""The page docs/adding-a-target.md is true: its kind of targets is one module and one line."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import atomloom
from atomloom import targets
from atomloom.config import parse_config
from atomloom.config.model import MODELS, TabularSection
from atomloom.structures.structure import Structure
from tests.unit.training.direct import SMALL, ionic_molecules

DOCUMENT = Path(__file__).parents[3] / "docs" / "adding-a-target.md"


def pieces(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture
def documented(monkeypatch):
    """The module of the page, and its line in `KINDS`."""
    (code,) = pieces("python")
    module = types.ModuleType("atomloom.targets.atom_vector")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    name, place = re.search(r'`"(\w+)": "([\w.:]+)"`', DOCUMENT.read_text()).groups()
    monkeypatch.setitem(targets.KINDS, name, place)
    return module


def test_the_config_of_the_page_is_one():
    (text,) = pieces("yaml")
    config = parse_config(yaml.safe_load(text))
    assert [spec.kind for spec in config.targets] == ["scalar", "per_atom"]
    assert [config.loss_weight(spec) for spec in config.targets] == [1.0, 0.5]


def test_the_table_of_kinds_is_complete():
    rows = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(targets.KINDS) <= {name for row in rows for name in row}


def test_the_table_of_models_is_true():
    shown = {
        "iComFormer": "icomformer", "eComFormer": "ecomformer", "ALIGNN": "alignn", "PaiNN": "painn",
        "Chebyshev": "chebyshev", "TensorNet": "tensornet",
        "TensorNet for properties": "tensornet_property", "NequIP": "nequip",
        "Crystal transformer": "crystal_transformer",
        "SVR": "svr",
        "ExtraTrees": "extra_trees", "Gaussian process": "gaussian_process",
        "gradient boosting": "gradient_boosting",
    }  # fmt: skip
    assert set(shown.values()) == set(MODELS)
    for line in DOCUMENT.read_text().splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if len(row) != 5 or not row[0].startswith("`"):
            continue
        for kind in re.findall(r"`(\w+)`", row[0]):
            spec = targets.spec_of(kind, kind)
            named = {shown[name] for name in row[3].split(", ")}
            options = {"chebyshev": {"species": ("H",)}}
            found = {
                name
                for name in MODELS
                if parse_config_of(name, options.get(name, {})).can_learn(spec)
            }
            assert found == named, kind


def parse_config_of(name, options):
    content = {"dataset": {"name": "t", "source": ["x"], "target": ["energy"]}}
    if issubclass(MODELS[name], TabularSection):
        content["dataset"]["global_features"] = ["temperature"]
    return parse_config(content | {"model": {"name": name, **options}}).model


def test_the_kind_of_the_page_is_trained_and_reported_end_to_end(documented, tmp_path):
    structures = ionic_molecules(24)
    for one in structures:
        around = one.positions - one.positions.mean(axis=0)
        one.properties["moments"] = one.properties["charges"][:, None] * around
    structures = [
        Structure(
            one.numbers,
            one.positions,
            one.cell,
            one.pbc,
            properties=one.properties,
            per_atom=frozenset((*one.per_atom, "moments")),
        )
        for one in structures
    ]
    run = atomloom.train(
        structures,
        ["energy", "moments"],
        folder=tmp_path,
        model=SMALL["painn"],
        split={"duplicates": "report", "ratios": [0.6, 0.2, 0.2]},
        training={"epochs": 4, "threads": 1, "device": "cpu", "batch": {"structures": 8}},
        log=lambda line: None,
    )
    assert set(run.metrics) == {"energy_per_atom", "moments"}
    table = pd.read_parquet(run.folder / "moments.parquet")
    assert len(table) == 3 * sum(len(one) for one in structures)
    assert set(table["component"]) == {0, 1, 2}
    assert "moments" in run.report.read_text()
    plain = [Structure(one.numbers, one.positions, one.cell, one.pbc) for one in structures[:2]]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [Structure(s.numbers, s.positions @ turn, s.cell, s.pbc) for s in plain]
    said, again = (run.predict(some)["moments"] for some in (plain, turned))
    for one, other in zip(said, again, strict=True):
        np.testing.assert_allclose(other, one @ turn, atol=1e-5)
