"""Levels of determinism hold: what repeats to the bit does, and other threads stay within the bounds that are stated."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atomloom.cli import _parser
from atomloom.config.model import PaiNNConfig
from atomloom.pipeline.run_card import LEVELS
from atomloom.training.trainer import train
from tests.unit.training.potentials import CUTOFF, pair_config, pair_data
from tests.unit.training.runs import small_config, small_data

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "provenance.md").read_text()


def quiet(_):
    """Take no notice."""


def of_property(threads: int):
    return small_data(32), small_config(epochs=2, threads=threads, learning_rate=0.003)


def of_potential(threads: int):
    config = pair_config(("energy", "forces"), epochs=2, threads=threads, precision="32")
    return pair_data(16), config.model_copy(update={"model": PaiNNConfig(cutoff=CUTOFF, width=16)})


def difference(one: Path, other: Path) -> float:
    """Max difference of a tensor, relative to its largest weight."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    apart = [
        float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-30))
        for name in first
        if first[name].is_floating_point()
    ]
    return max(apart)


@pytest.mark.parametrize("made", [of_property, of_potential])
def test_equal_threads_give_equal_bits_and_others_stay_within_the_stated_bound(made, tmp_path):
    before = torch.get_num_threads()
    for name, threads in (("one", 1), ("again", 1), ("two", 2), ("two again", 2)):
        data, config = made(threads)
        assert train(data, config, tmp_path / name, quiet).threads == threads
    assert torch.get_num_threads() == before
    assert difference(tmp_path / "one", tmp_path / "again") == 0.0
    assert difference(tmp_path / "two", tmp_path / "two again") == 0.0
    assert difference(tmp_path / "one", tmp_path / "two") <= LEVELS["rounding"].weights


def test_the_bounds_are_above_rounding_and_below_what_another_seed_changes(tmp_path):
    """A bound that any two runs keep to would promise nothing."""
    data, config = of_property(1)
    other = config.model_copy(update={"training": config.training.model_copy(update={"seed": 1})})
    train(data, config, tmp_path / "one", quiet)
    train(data, other, tmp_path / "other", quiet)
    assert difference(tmp_path / "one", tmp_path / "other") > 5 * LEVELS["rounding"].weights


def test_the_page_states_the_levels_and_their_bounds():
    for level in LEVELS.values():
        assert f"| `{level.name}` |" in PAGE
    weights, errors = (100 * LEVELS["rounding"].weights, 100 * LEVELS["rounding"].metrics)
    assert f"weights within {weights:g} % of the largest" in PAGE
    assert f"errors and predictions within {errors:g} %" in PAGE


@pytest.mark.parametrize("line", re.findall(r"(?m)^    atomloom (.*)$", PAGE))
def test_every_command_of_the_page_is_one(line):
    options = _parser().parse_args(shlex.split(line))
    assert callable(options.run)
