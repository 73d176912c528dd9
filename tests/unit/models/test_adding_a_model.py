"""The example of docs/adding-a-model.md works as it stands."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from atomloom.config import model as config_module
from atomloom.models import MODELS, build_model
from tests.unit.models.batches import batch_from_graphs, random_crystal

DOCUMENT = Path(__file__).parents[3] / "docs" / "adding-a-model.md"


@pytest.fixture
def documented(monkeypatch):
    """The three pieces of code, run where they say they belong."""
    config, module, potential = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = dict(vars(config_module))
    exec(config, names)
    shells = types.ModuleType("atomloom.models.shells")
    exec(module, vars(shells))
    monkeypatch.setitem(sys.modules, shells.__name__, shells)
    monkeypatch.setitem(MODELS, "shells", "atomloom.models.shells:Shells")
    exec(potential, names)
    return types.SimpleNamespace(**names)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    return batch_from_graphs([random_crystal(rng, 3), random_crystal(rng, 4)])


def test_the_documented_model_is_found_by_name_and_learns(documented, batch):
    config = documented.ShellsConfig()
    assert config.graph_needs()["neighbors"] == "radius"
    model = build_model(config, 2).double()
    output = model(batch)
    assert output.shape == (2, 2)
    output.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_documented_potential_has_the_forces_of_finite_differences(documented, batch):
    model = documented.Potential(documented.ShellsConfig(width=8), 1).double()
    energy, forces, stress = documented.forces_and_stress(model, batch)
    assert stress.shape == (2, 3, 3)
    step = torch.zeros_like(batch.positions)
    step[1, 2] = 1e-5
    moved = [
        documented.forces_and_stress(
            model, dataclasses.replace(batch, positions=batch.positions + sign * step, vectors=None)
        )[0]
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]).sum() / 2e-5
    assert energy.shape == (2,)
    assert float(forces[1, 2]) == pytest.approx(-float(slope), rel=1e-6, abs=1e-9)
