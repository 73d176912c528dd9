"""The table of stages: each is a rule, a command and a function, and comes after those it needs."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path

import pytest

from atomloom.config import parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Chunk, Plan
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


@pytest.fixture(scope="module")
def paths() -> RunPaths:
    content = {"dataset": {"name": "tiny", "source": "data", "target": "gap"}}
    return RunPaths(Layout(parse_config(content)), Plan((Chunk("0" * 16, 0, 3),), 3, "", "", "", 0))


def names_of(stages: tuple[str, ...], paths: RunPaths) -> set[str]:
    return {file.name for name in stages for file in STAGES[name].outputs(paths, "")}


def test_outputs_are_the_files_that_the_workflow_asks_for(paths):
    """A file in one list and not in the other would be made by one and not by the other."""
    text = (RULES / "common.smk").read_text()
    for function, stages, waited_for in (
        ("prepared", ("index", "split"), {"spec.json"}),
        ("trained", ("train", "evaluate"), set()),
    ):
        (body,) = re.findall(rf"^def {function}\(.*?(?=^def )", text, re.M | re.S)
        asked = set(re.findall(r'"([\w.]+\.\w+)"', body))
        assert asked | waited_for == names_of(stages, paths)


@pytest.mark.parametrize(
    ("name", "file"), [("train", "training"), ("evaluate", "training"), ("report", "report")]
)
def test_files_read_are_those_that_the_rule_waits_for(name, file, paths):
    text = (RULES / f"{file}.smk").read_text()
    (inputs,) = re.findall(rf"^rule {name}:.*?input:(.*?)output:", text, re.M | re.S)
    found = re.findall(r'(?:RUN / |place\("(\w+)", )"([\w.]+)"', inputs)
    waited = {getattr(paths, folder or "run") / file for folder, file in found}
    assert set(STAGES[name].reads(paths, "")) == waited
