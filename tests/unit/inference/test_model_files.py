"""A model file is the model that was written or one line: its card, its tensors and its scales."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model, write_model
from atomloom.inference.predict import load_model, predict_table
from atomloom.training.trainer import train
from tests.unit.potentials.models import write_potential
from tests.unit.training.runs import small_config, small_data


def quiet(_):
    """Take no notice."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bytes of a trained model."""
    folder = tmp_path_factory.mktemp("model")
    train(small_data(), small_config(epochs=1), folder, quiet)
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def path(tmp_path, trained):
    (tmp_path / "model.safetensors").write_bytes(trained)
    return tmp_path / "model.safetensors"


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path, tensors=None, card=None) -> None:
    """The file with other tensors or another card, and without a digest, as files of before are."""
    card = card_of(path) if card is None else card
    text = card if isinstance(card, str) else json.dumps(card)
    save_file(load_file(path) if tensors is None else tensors, path, metadata={"atomloom": text})


def card_of(path) -> dict:
    card = json.loads(metadata_of(path)["atomloom"])
    del card["digest"]
    return card


def refused(path, match: str) -> None:
    with pytest.raises(AtomloomError, match=match) as found:
        load_model(path)
    assert str(found.value).startswith(f"{path}: ")
    assert len(str(found.value).splitlines()) == 1


def test_no_flipped_bit_goes_unnoticed(path, trained):
    data = small_data()
    before = predict_table(load_model(path), data.table)
    noticed = 0
    places = range(0, len(trained), max(1, len(trained) // 150))
    for place in places:
        broken = bytearray(trained)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        try:
            np.testing.assert_array_equal(predict_table(load_model(path), data.table), before)
        except AtomloomError:
            noticed += 1
    assert noticed > 0.9 * len(places)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_one_line(path, trained, share):
    path.write_bytes(trained[: int(share * len(trained))])
    refused(path, "cannot be read, damaged .*; get the file again from where it comes from")
    path.with_name("run.json").write_text("{}")  # in the folder of its run
    refused(path, "cannot be read, damaged .*; train again: ")


def test_a_file_of_before_without_a_digest_is_read(path):
    data = small_data()
    before = predict_table(load_model(path), data.table)
    rewrite(path)
    np.testing.assert_array_equal(predict_table(load_model(path), data.table), before)


def test_a_file_that_says_a_former_name_is_read_in_silence(tmp_path):
    path = write_potential(tmp_path / "model.safetensors", min_distance=0.2)
    card = card_of(path)
    card["model"]["least_distance"] = card["model"].pop("min_distance")
    rewrite(path, card=card)
    assert read_model(path)[1].model.min_distance == 0.2


def test_equal_models_are_equal_files(path, trained):
    for _ in range(8):
        write_model(path, *read_model(path))
        assert path.read_bytes() == trained


def test_a_digest_that_differs_is_refused(path):
    rewrite(path, card=card_of(path) | {"digest": "0" * 32})
    refused(path, "its digest differs")


def renamed(tensors: dict, name: str) -> dict:
    return {f"x.{key}" if key == name else key: value for key, value in tensors.items()}


TENSORS = {
    "missing": (lambda t, n: {k: v for k, v in t.items() if k != n}, "does not hold .* no "),
    "extra": (lambda t, n: t | {"x.y": torch.zeros(2)}, "x.y, which it does not have"),
    "renamed": (renamed, "does not hold the tensors of its model: no "),
    "misshapen": (lambda t, n: t | {n: t[n].reshape(-1)[:-1].clone()}, r"as torch.float32 \[\d+\], not"),
    "flat": (lambda t, n: t | {n: t[n].reshape(1, -1).clone()}, "not "),
    "whole numbers": (lambda t, n: t | {n: t[n].long()}, "as torch.int64"),
    "NaN": (lambda t, n: t | {n: torch.full_like(t[n], torch.nan)}, "not finite numbers: "),
    "infinite": (lambda t, n: t | {n: t[n] / 0}, "not finite numbers: "),
    "none": (lambda t, n: {}, "does not hold the tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_other_tensors_than_the_models_are_one_line(path, case):
    change, match = TENSORS[case]
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].ndim * tensors[key].is_floating_point())
    rewrite(path, change(tensors, name))
    refused(path, match)


def scaled(**scale):
    return lambda card: card | {"scale": card["scale"] | scale}


CARDS = {
    "not a JSON": lambda card: "{",
    "a list": lambda card: [1, 2],
    "a number": lambda card: 7,
    "nothing": lambda card: {},
    "deep": lambda card: "[" * 100_000,
    "facts a list": lambda card: card | {"facts": []},
    "a later format": lambda card: card | {"format": 99},
    "no model": lambda card: {k: v for k, v in card.items() if k != "model"},
    "an unknown model": lambda card: card | {"model": {"name": "nothing"}},
    "a model of no width": lambda card: card | {"model": card["model"] | {"width": -1}},
    "a model as text": lambda card: card | {"model": "icomformer"},
    "another width": lambda card: card | {"model": card["model"] | {"width": 16}},
    "no scale": lambda card: {k: v for k, v in card.items() if k != "scale"},
    "a scale as a list": lambda card: card | {"scale": []},
    "no targets": lambda card: card | {"targets": []},
    "targets a number": lambda card: card | {"targets": 3},
    "a target twice": lambda card: card | {"targets": ["a", "a"]},
    "a unit that is a number": lambda card: card | {"unit": 3},
    "more targets than scales": lambda card: card | {"targets": ["a", "b"]},
    "a mean that is NaN": scaled(mean=[float("nan")]),
    "a mean of two": scaled(mean=[0.0, 1.0]),
    "a mean as text": scaled(mean=["x"]),
    "an infinite deviation": scaled(std=[float("inf")]),
    "a deviation of zero": scaled(std=[0.0]),
    "a negative deviation": scaled(std=[-1.0]),
    "no deviation": scaled(std=None),
    "no logarithms": scaled(log=[]),
    "a graph of nonsense": lambda card: card | {"graph": {"cutoff": -1}},
    "globals without scales": lambda card: card | {"globals": {"names": ["T"], "mean": [], "std": []}},
    "globals as text": lambda card: card | {"globals": "T"},
}  # fmt: skip


@pytest.mark.parametrize("case", CARDS)
def test_a_malformed_card_is_one_line(path, case):
    rewrite(path, card=CARDS[case](card_of(path)))
    refused(path, r"card|describes a model|tensors|format")


@pytest.mark.parametrize(
    "scale",
    [
        {"scale": 0.0},
        {"scale": float("nan")},
        {"shift": float("inf")},
        {"shift": "much"},
        {"element_energies": {"Cu": float("-inf")}},
        {"element_energies": {"Xx": 1.0}},
        {"element_energies": [1.0]},
    ],
)
def test_reference_energies_that_make_no_sense_are_one_line(tmp_path, scale):
    path = write_potential(tmp_path / "model.safetensors", ("Cu",))
    rewrite(path, card=scaled(**scale)(card_of(path)))
    refused(path, r"card|describes a model|tensors|format")
