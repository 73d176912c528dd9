"""A potential that takes few steps per epoch is told so before it is trained."""

from __future__ import annotations

import pytest

from atomloom.config import parse_config
from atomloom.stages.train import few_steps


def config_of(model, **training):
    dataset = {"name": "x", "source": "x", "target": "energy"}
    return parse_config({"dataset": dataset, "model": model, "training": training})


CHEBYSHEV = {"name": "chebyshev", "species": ["Cu"]}


@pytest.mark.parametrize(
    ("config", "structures", "told"),
    [
        (config_of(CHEBYSHEV), 229, "229 structures in batches of 64 are 4 steps per epoch"),
        (config_of("painn", batch={"structures": 100}), 1000, "are 10 steps per epoch"),
        (config_of(CHEBYSHEV), 64 * 20, ""),
        (config_of(CHEBYSHEV, optimizer="lbfgs"), 229, ""),
        (config_of("painn"), 100, ""),
        (config_of("icomformer"), 229, ""),
    ],
    ids=["chebyshev", "painn", "many", "lbfgs", "small-batches", "property"],
)
def test_advice_is_for_potentials_in_few_large_batches(config, structures, told):
    note = few_steps(config, structures)
    assert told in note
    assert bool(note) == bool(told)
