"""Model files written before targets were data still load, and predict what they predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model, write_model
from atomloom.inference.predict import load_model
from atomloom.structures.structure import Structure

FOLDER = Path(__file__).parent / "former_models"
PREDICTED = json.loads((FOLDER / "predictions.json").read_text())


def crystals() -> list[Structure]:
    """Three of those that the files were trained on."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(3):
        numbers = draw.choice([3, 9], size=draw.integers(2, 5))
        cell = np.eye(3) * draw.uniform(3.8, 4.6) + draw.normal(0, 0.2, (3, 3))
        grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        places = (grid[: len(numbers)] + draw.normal(0, 0.04, (len(numbers), 3))) @ cell
        made.append(Structure(numbers, places, cell, np.ones(3, dtype=bool)))
    return made


@pytest.mark.parametrize("name", PREDICTED)
def test_a_file_of_before_predicts_what_it_did(name):
    model = load_model(FOLDER / f"{name}.safetensors")
    options = {}
    if model.card.global_features is not None:
        options["global_features"] = np.linspace(0, 1, 3)[:, None]
    found = model.predict(crystals(), **options)
    np.testing.assert_allclose(found, PREDICTED[name], rtol=1e-4, atol=1e-5)


# Chebyshev's section has a key of another name now.
@pytest.mark.parametrize("name", [name for name in PREDICTED if name != "chebyshev"])
def test_written_again_it_has_the_same_bytes(name, tmp_path):
    path = FOLDER / f"{name}.safetensors"
    write_model(tmp_path / "again.safetensors", *read_model(path))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_global_features_go_by_their_former_name_with_a_warning():
    model = load_model(FOLDER / "sum_with_globals.safetensors")
    given = np.linspace(0, 1, 3)[:, None]
    with pytest.warns(FutureWarning, match="global_features"):
        found = model.predict(crystals(), globals=given)
    np.testing.assert_array_equal(found, model.predict(crystals(), global_features=given))


def test_a_kind_of_targets_that_is_not_known_here_is_named(tmp_path, monkeypatch):
    _, card = read_model(FOLDER / "painn.safetensors")
    content = card.model.model_dump()
    assert content["name"] == "painn"
    from atomloom.inference import model_file

    whole = model_file._content_of
    monkeypatch.setattr(
        model_file,
        "_content_of",
        lambda path, text: whole(path, text) | {"kinds": {"energy": "quadrupole"}, "digest": None},
    )
    monkeypatch.setattr(model_file, "_digest", lambda *_: None)
    with pytest.raises(AtomloomError, match="of the kind quadrupole, not known here"):
        read_model(FOLDER / "painn.safetensors")
