"""The table of stages: each is a rule, a command and a function, and comes after those it needs."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path

import pytest

from atomloom.pipeline.stage_table import OTHERS, STAGES

RULES = Path(__file__).parents[3] / "workflow" / "rules"


def test_every_stage_is_a_rule_and_every_other_rule_is_of_the_plan_or_a_sweep():
    texts = "\n".join(path.read_text() for path in RULES.glob("*.smk"))
    commands = set(re.findall(r"atomloom (\w+) --config", texts))
    assert commands == {"plan", "suggest", "trial", "refit", "sweep", *STAGES}


def test_stages_stand_behind_those_they_need():
    names = list(STAGES)
    for stage in STAGES.values():
        assert all(names.index(name) < names.index(stage.name) for name in stage.needs)
    assert all(set(needs) <= set(names) for needs in OTHERS.values())


@pytest.mark.parametrize("name", STAGES)
def test_the_function_of_a_stage_takes_what_it_is_given(name):
    stage = STAGES[name]
    module, _, function = stage.function.partition(":")
    everything = signature(getattr(import_module(module), function)).parameters
    parameters = [name for name, one in everything.items() if one.default is Parameter.empty]
    assert len(parameters) == len(stage.takes) + 1
    assert parameters[-1] == "log"
    assert ("chunk" in stage.takes) == stage.per_chunk
