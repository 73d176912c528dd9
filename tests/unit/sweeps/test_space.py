"""Which trials a sweep has, and the configs of their runs."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from atomloom.config import Config, dump_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.sweeps.space import config_of, first_points
from atomloom.sweeps.table import keys_of_the_loss
from tests.unit.potentials.models import write_potential

RATE = {"min": 1e-4, "max": 1e-2, "log": True}


def config(sweep: dict, **sections) -> Config:
    dataset = {"source": "a.cif", "target": "gap", "name": "x"}
    return parse_config({"dataset": dataset, "sweep": sweep, **sections})


def conditional(values: object, wanted: object) -> dict:
    """Parameters of which one depends on the width."""
    return {"model.width": values, "model.layers": {"values": [2], "when": {"model.width": wanted}}}


def points(sweep: dict) -> list[dict]:
    return first_points(config(sweep).sweep)


def test_a_grid_has_every_combination_once_in_order():
    found = points({"parameters": {"model.width": [8, 16], "training.loss": ["mse", "mae"]}})
    assert [tuple(point.values()) for point in found] == [
        (8, "mse"),
        (8, "mae"),
        (16, "mse"),
        (16, "mae"),
    ]


def test_a_grid_of_nothing_is_the_config_as_it_is():
    assert points({}) == [{}]


def test_a_range_in_a_grid_has_both_ends_and_steps_of_the_logarithm():
    found = points({"parameters": {"training.learning_rate": {**RATE, "steps": 3}}})
    assert [point["training.learning_rate"] for point in found] == [1e-4, 1e-3, 1e-2]


def test_of_whole_bounds_whole_numbers_are_tried():
    found = points({"parameters": {"model.layers": {"min": 2, "max": 4, "steps": 3}}})
    assert [point["model.layers"] for point in found] == [2, 3, 4]
    assert all(isinstance(point["model.layers"], int) for point in found)


def test_a_key_with_a_condition_is_set_where_it_holds_and_makes_no_double():
    sweep = {
        "parameters": {
            "model.name": ["icomformer", "ecomformer"],
            "model.layers": {"values": [2, 3], "when": {"model.name": "icomformer"}},
        }
    }
    assert points(sweep) == [
        {"model.name": "icomformer", "model.layers": 2},
        {"model.name": "icomformer", "model.layers": 3},
        {"model.name": "ecomformer"},
    ]


@pytest.mark.parametrize(
    ("key", "values", "wanted"),
    [
        ("training.learning_rate", ["1e-3", 1e-2], "1e-3"),
        ("training.learning_rate", [1e-3, 1e-2], ["1e-3"]),
        ("training.learning_rate", {**RATE, "steps": 3}, "1e-4"),
        ("training.milestones", [[1, 2], [3]], [1, 2]),
        ("training.milestones", [[1, 2], [3]], [[1, 2]]),
        ("model.layers", {"min": 2, "max": 3, "steps": 2}, 2),
    ],
)
def test_a_condition_holds_at_the_value_that_it_names(key, values, wanted):
    last = {"values": [8], "when": {key: wanted}}
    found = points({"parameters": {key: values, "model.width": last}})
    assert [point.get("model.width") for point in found] == [8] + [None] * (len(found) - 1)
    assert len(found) > 1


@pytest.mark.parametrize("method", ["random", "sobol"])
def test_drawn_points_are_those_of_the_seed_and_lie_in_the_ranges(method):
    def drawn(seed: int) -> list[dict]:
        parameters = {"training.learning_rate": RATE, "model.layers": {"min": 2, "max": 5}}
        return points({"method": method, "count": 50, "seed": seed, "parameters": parameters})

    assert drawn(1) == drawn(1) != drawn(2)
    rates = np.array([point["training.learning_rate"] for point in drawn(1)])
    assert len(rates) == 50
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert 0.3 < (rates < 1e-3).mean() < 0.7  # evenly by the logarithm
    assert {point["model.layers"] for point in drawn(1)} == {2, 3, 4, 5}


def test_sobol_fills_the_range_evenly():
    sweep = {
        "method": "sobol",
        "count": 16,
        "parameters": {"training.warmup": {"min": 0, "max": 0.5}},
    }
    shares = np.array([point["training.warmup"] for point in points(sweep)]) / 0.5
    assert sorted((shares * 16).astype(int)) == list(range(16))


def test_a_trial_is_the_config_with_its_values():
    base = config({"parameters": {"model.width": [8]}}, training={"epochs": 7})
    own = config_of(base, {"model.width": 8, "training.batch.structures": 5})
    assert own.model.width == 8
    assert own.training.batch.structures == 5
    assert own.training.epochs == 7
    assert own.sweep is None


def test_another_model_starts_from_its_own_defaults_and_graph():
    base = config(
        {"parameters": {"model.name": ["ecomformer"]}}, model={"name": "alignn", "width": 32}
    )
    own = config_of(base, {"model.name": "ecomformer"})
    assert own.model == type(own.model)()
    assert (
        own.graph.key_content()
        == parse_config(
            {"dataset": base.dataset.model_dump(), "model": "ecomformer"}
        ).graph.key_content()
    )


def test_what_a_model_needs_of_the_graph_follows_its_swept_keys():
    dataset = {"source": "a.xyz", "target": "energy", "name": "x"}
    sweep = {"parameters": {"model.cutoff": [4.0, 5.0]}}
    base = parse_config({"dataset": dataset, "model": {"name": "painn"}, "sweep": sweep})
    assert config_of(base, {"model.cutoff": 4.0}).graph.cutoff == 4.0


@pytest.mark.parametrize(
    ("first", "other", "structures"), [("painn", "icomformer", 8), ("icomformer", "painn", 64)]
)
def test_a_trial_of_another_model_is_trained_as_its_base(first, other, structures):
    """The jobs of a workflow read a base that is written out, in which nothing is left to the model."""
    dataset = {"source": "a.xyz", "target": "energy", "name": "x"}
    sweep = {"parameters": {"model.name": [first, other]}}
    base = parse_config({"dataset": dataset, "model": first, "sweep": sweep})
    trial = config_of(base, {"model.name": other})
    assert trial.training == base.training
    assert trial.training.batch.structures == structures


@pytest.mark.parametrize("first", ["icomformer", "painn"])
@pytest.mark.parametrize("other", ["alignn", "icomformer", "painn"])
def test_a_trial_of_another_model_has_the_graphs_of_that_model(first, other):
    """From the config as people write it, and from one that is written out, which jobs read."""
    dataset = {"source": "a.xyz", "target": "energy", "name": "x"}
    sweep = {"parameters": {"model.name": ["alignn", "icomformer", "painn"]}}
    base = parse_config({"dataset": dataset, "model": first, "sweep": sweep})
    written_out = parse_config(yaml.safe_load(dump_config(base)))
    wanted = parse_config({"dataset": dataset, "model": other}).graph
    for config in (base, written_out):
        assert config_of(config, {"model.name": other}).graph == wanted


def test_seeds_and_folds_repeat_each_trial():
    sweep = config({"seeds": [0, 1], "folds": [0, 1, 2], "parameters": {"model.width": [8]}}).sweep
    assert len(sweep.repeats) == 6
    assert sweep.repeats[1] == {"training.seed": 0, "split.fold": 1}
    assert config({"parameters": {"model.width": [8]}}).sweep.repeats == [{}]


def test_the_sweep_is_in_no_key_of_a_run():
    one, other = config({"parameters": {"model.width": [8]}}), config({"seeds": [1, 2]})
    assert one.key_content() == other.key_content()


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"parameters": {"dataset.name": ["a"]}}, "cannot be swept"),
        ({"parameters": {"model": ["alignn"]}}, "cannot be swept"),
        ({"parameters": {"model.width": {"min": 3}}}, "a `min` below its `max`"),
        ({"parameters": {"model.width": {"min": 3, "max": 5}}}, "`steps` of a range"),
        ({"parameters": {"model.width": [8, 8]}}, "twice"),
        ({"parameters": {"training.warmup": {"min": 0, "max": 0.5, "log": True}}}, "above 0"),
        ({"method": "list"}, "`trials`"),
        ({"method": "random"}, "needs `parameters`"),
        ({"trials": [{"model.width": 8}]}, "no list of `trials`"),
        ({"parameters": {"training.seed": [1]}, "seeds": [1, 2]}, "swept twice"),
        (
            {"parameters": {"training.batch.structures": [4], "training.batch": [{"edges": 99}]}},
            "training.batch.structures is part of training.batch",
        ),
        ({"parameters": {"training.epochs": [1, 2]}, "halving": {}}, "exclude each other"),
        (
            {"method": "list", "trials": [{"training.stop_after": 1}], "halving": {}},
            "training.stop_after exclude each other",
        ),
        (
            {"method": "list", "trials": [{"training.epochs": 9}], "halving": {}},
            "exclude each other",
        ),
        ({"parameters": conditional([8, 16], 32)}, "32, a value that model.width never has"),
        ({"parameters": conditional([8, 16], [8, 32])}, "32, a value that model.width never has"),
        ({"parameters": conditional([8, 16], [])}, "names no value of model.width"),
        ({"parameters": conditional({"min": 8, "max": 16, "steps": 3}, 9)}, "9, a value that"),
        (
            {"method": "random", "parameters": conditional({"min": 8, "max": 16}, 17)},
            "17, a value that",
        ),
        (
            {"method": "random", "parameters": conditional({"min": 8.0, "max": 16}, 8.0)},
            "8.0, a value that",
        ),
        (
            {"parameters": {"model.width": {"values": [8], "when": {"model.name": "alignn"}}}},
            "not swept before it",
        ),
        ({"parameters": {"model.width": [8]}, "metric": "test_mae"}, "metric"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(sweep, says):
    with pytest.raises(AtomloomError, match=says):
        config(sweep)


def test_a_key_that_is_not_there_is_named():
    base = config({"parameters": {"training.lr": [1]}})
    with pytest.raises(AtomloomError, match=r"training\.lr: unknown key"):
        config_of(base, {"training.lr": 1})


def test_a_number_that_yaml_takes_for_text_is_a_number():
    axes = {"training.learning_rate": ["1e-3", 1e-2], "model.name": ["icomformer"]}
    assert [point["training.learning_rate"] for point in points({"parameters": axes})] == [
        0.001,
        0.01,
    ]
    with pytest.raises(AtomloomError, match="named twice"):
        points({"parameters": {"training.learning_rate": ["1e-3", 0.001]}})


def test_a_key_inside_a_swept_section_changes_no_other_trial():
    axes = {
        "training.batch": [{"structures": 8}],
        "training.optimizer": ["adamw", "sgd"],
        "training.batch.atoms": {"values": [50], "when": {"training.optimizer": "adamw"}},
    }
    base = config({"parameters": axes})
    both = [config_of(base, point).training.batch.atoms for point in first_points(base.sweep)]
    assert both == [50, None]


def test_a_trial_that_starts_from_another_model_has_its_network(tmp_path):
    files = {
        "tensornet": write_potential(tmp_path / "a.safetensors", kind="tensornet", cutoff=4.5),
        "nequip": write_potential(tmp_path / "b.safetensors", kind="nequip", cutoff=4.0),
    }
    sweep = {"parameters": {"training.start_from": [str(path) for path in files.values()]}}
    dataset = {"source": "a.cif", "target": ["energy"], "name": "x"}
    for training in ({}, {"start_from": str(files["nequip"])}):
        base = parse_config({"dataset": dataset, "sweep": sweep, "training": training})
        for (name, path), cutoff in zip(files.items(), (4.5, 4.0), strict=True):
            own = config_of(base, {"training.start_from": str(path)})
            assert (own.model.name, own.model.cutoff, own.graph.cutoff) == (name, cutoff, cutoff)
            assert own.start_model
    said = {"name": "tensornet", "width": 8}
    base = parse_config({"dataset": dataset, "sweep": sweep, "model": said})
    with pytest.raises(AtomloomError, match=r"model\.width is 8, and 16 in"):
        _ = config_of(base, {"training.start_from": str(files["tensornet"])}).start_model


def test_losses_of_other_units_are_told():
    points = [{"training.start_from": name, "training.loss": "l1"} for name in ("a", "b")]
    assert keys_of_the_loss("val_loss", points) == ["training.start_from"]
    assert keys_of_the_loss("val_mae_energy_per_atom", points) == []
    weights = [{"training.potential.forces_weight": one, "model.width": one} for one in (1, 2)]
    assert keys_of_the_loss("val_loss", weights) == ["training.potential.forces_weight"]
