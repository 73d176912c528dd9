"""The config: one clear line for every mistake, keys that hold what determines results, fresh files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atomloom.config import GraphSpec, dump_config, load_config, parse_config
from atomloom.config.generate import DEMO, demo_yaml, schema_json, with_keys
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout

ROOT = Path(__file__).resolve().parents[3]
LEAST = {"dataset": {"name": "x", "source": "here", "target": "y"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"trainin": {}}, "trainin: unknown key, did you mean `training`?"),
        ({"graph": {"cutof": 1}}, "graph.cutof: unknown key, did you mean `cutoff`?"),
        (
            {"model": {"name": "icomformer", "widht": 3}},
            "widht: unknown key, did you mean `width`?",
        ),
        (
            {"graph": {"cutoff": -1}},
            "graph.cutoff: Input should be greater than or equal to 0.5, not -1",
        ),
        ({"model": {"name": "foo"}}, "'icomformer'"),
        ({"split": {"kind": "column"}}, "kind: column needs `column`"),
        ({"split": {"ratios": [0.5, 0.1, 0.1]}}, "ratios must be three shares that add up to 1"),
        ({"graph": {"lattice": False}}, "model icomformer needs graph.lattice: True, not False"),
        ({"dataset": {**LEAST["dataset"], "name": "../x"}}, "dataset.name"),
    ],
)
def test_a_mistake_gets_one_line_that_names_the_key(content, says):
    with pytest.raises(AtomloomError) as error:
        parse_config({**LEAST, **content})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_must_be_named():
    with pytest.raises(
        AtomloomError, match="dataset: is required, and the config has none; config/README"
    ):
        parse_config({})


def test_files_that_are_missing_or_no_yaml_are_named(tmp_path):
    with pytest.raises(AtomloomError, match=r"nowhere\.yaml: config file cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1,\nb: 2")
    with pytest.raises(AtomloomError, match=r"bad\.yaml: not valid YAML"):
        load_config(bad)


def test_an_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("ATOMLOOM_NOWHERE", raising=False)
    with pytest.raises(AtomloomError, match="environment variable ATOMLOOM_NOWHERE is not set"):
        parse_config({"dataset": {**LEAST["dataset"], "source": "${ATOMLOOM_NOWHERE}/a"}})


def test_later_files_go_over_earlier_ones(tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("dataset: {name: x, source: s, target: t}\ntraining: {epochs: 3, seed: 4}")
    second.write_text("training: {epochs: 5}")
    training = load_config(first, second).training
    assert (training.epochs, training.seed) == (5, 4)


def test_spelled_out_defaults_give_the_same_keys():
    short = parse_config(LEAST)
    long = parse_config({**LEAST, "graph": {"cutoff": 8, "lattice": True, "max_neighbors": 12.0}})
    assert Layout(short).graph_key == Layout(long).graph_key
    assert parse_config(LEAST).key_content() == parse_config(short.model_dump()).key_content()


@pytest.mark.parametrize("change", [{"threads": 3}, {"device": "cpu"}, {"compile": True}])
def test_what_changes_no_result_is_in_no_key(change):
    plain, changed = parse_config(LEAST), parse_config({**LEAST, "training": change})
    assert plain.training != changed.training
    assert plain.key_content() == changed.key_content()


def test_k_nearest_options_are_no_part_of_a_radius_graphs_key():
    radius = GraphSpec(neighbors="radius", cutoff=5)
    assert GraphSpec(neighbors="radius", cutoff=5, max_neighbors=99) == radius
    assert GraphSpec(cutoff=5, max_neighbors=99) != GraphSpec(cutoff=5)


def test_written_config_reads_back(tmp_path):
    config = parse_config(DEMO)
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_generated_files_are_fresh():
    """`make config` renews them."""
    assert (ROOT / "config" / "config.yaml").read_text() == demo_yaml()
    assert (ROOT / "workflow" / "schemas" / "config.schema.json").read_text() == schema_json()
    readme = (ROOT / "config" / "README.md").read_text()
    assert readme == with_keys(readme)
    assert load_config(ROOT / "config" / "config.yaml") == parse_config(DEMO)


def test_every_key_is_described():
    """Each field carries the sentence that becomes its comment, its schema entry and its table row, and
    a number its bounds."""
    rows = (
        (ROOT / "config" / "README.md")
        .read_text()
        .split("<!-- keys: generated -->")[1]
        .splitlines()
    )
    keys = [row.split(" | ") for row in rows if row.startswith("| ") and "|---" not in row]
    assert len(keys) > 40
    unbounded = [row for row in keys if row[2].startswith(("integer", "number"))]
    unbounded = [row for row in unbounded if not re.match(r"\w+ (from|above) \S+ to ", row[2])]
    assert not unbounded
    assert not [row[0] for row in keys if not row[-1].strip(" |")]


@pytest.mark.parametrize(
    "preset", sorted((ROOT / "config" / "presets").glob("*.yaml")), ids=lambda p: p.stem
)
def test_presets_are_valid(preset, monkeypatch):
    monkeypatch.setenv("ATOMLOOM_DATA", "data")
    assert load_config(preset).dataset.name


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "config" / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_recipe_goes_before_ones_own_config(recipe, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "dataset: {name: x, source: x, target: [energy, forces]}\n"
        + ("model: {species: [Cu]}\n" if "chebyshev" in recipe.stem else "")
        + "training: {epochs: 7}\n"
    )
    config = load_config(recipe, own)
    assert recipe.stem.partition("-")[0] == config.model.name
    assert config.training.epochs == 7
    assert f"`{recipe.stem}`" in (ROOT / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize(
    "model", ["icomformer", "alignn", "painn", "tensornet", "crystal_transformer"]
)
def test_a_typo_in_any_model_is_told_what_was_meant(model):
    content = {
        "dataset": {"name": "x", "source": "x", "target": "energy"},
        "model": {"name": model, "widht": 4},
    }
    with pytest.raises(AtomloomError, match=r"model\.widht: .*did you mean `width`"):
        parse_config(content)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ({"target": "split"}, "cannot be called `split`"),
        ({"target": ["y", "n_atoms"]}, "cannot be called `n_atoms`"),
        ({"target": "id"}, "cannot be called `id`"),
        ({"global_features": ["record"]}, "cannot be called `record`"),
        ({"target": ["T", "T_predicted"]}, "T_predicted cannot be a target alongside T"),
        ({"unit": {"z": "eV"}}, "unit names z, which is not a target (y)"),
        ({"labels": [{"file": "a.csv"}, {"id_column": "id"}]}, "each of several label tables needs"),
        ({"labels": [{"file": "a.csv", "fiel": 1}]}, "labels.0.fiel: unknown key, did you mean `file`"),
        ({"labels": {"fiel": "a.csv"}}, "dataset.labels.fiel: unknown key, did you mean `file`"),
        ({"labels": "a.csv"}, "dataset.labels: Input should be a mapping of keys"),
        ({"unit": 5}, "dataset.unit: Input should be a valid string"),
    ],
)  # fmt: skip
def test_names_and_tables_of_labels_that_cannot_be_are_named(dataset, says):
    with pytest.raises(AtomloomError) as error:
        parse_config({"dataset": {**LEAST["dataset"], **dataset}})
    assert says in str(error.value)


def test_a_class_cannot_be_called_as_a_probability():
    dataset = {**LEAST["dataset"], "target": ["a", "a_p0"]}
    assert parse_config({"dataset": dataset})
    with pytest.raises(AtomloomError, match="a_p0 cannot be a target alongside a"):
        parse_config({"dataset": dataset, "training": {"loss": "bce"}})


def test_several_label_tables_and_units_by_target(tmp_path):
    tables = [{"file": "a.csv"}, {"file": "b.parquet", "id_column": "name"}]
    dataset = {**LEAST["dataset"], "labels": tables, "target": ["y", "z"], "unit": {"z": "eV"}}
    config = parse_config({"dataset": dataset})
    assert [table.file for table in config.dataset.label_tables] == ["a.csv", "b.parquet"]
    assert [config.dataset.unit_of(name) for name in ("y", "z")] == ["", "eV"]
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config
    swapped = parse_config({"dataset": {**dataset, "labels": tables[::-1]}})
    assert Layout(swapped).plan_folder != Layout(config).plan_folder


POTENTIAL = {"dataset": {"name": "x", "source": "x", "target": "energy"}, "model": "painn"}


@pytest.mark.parametrize(
    ("more", "structures"),
    [
        ({}, 8),
        ({"training": {"batch": {"atoms": 500}}}, 8),
        ({"training": {"batch": {"structures": 64}}}, 64),
        ({"training": {"optimizer": "lbfgs"}}, 64),
        ({"model": "icomformer"}, 64),
    ],
)
def test_painn_takes_small_batches_unless_told_otherwise(more, structures):
    config = parse_config({**POTENTIAL, **more})
    assert config.training.batch.structures == structures
    assert parse_config(config.model_dump()) == config
    explicit = parse_config({**POTENTIAL, **config.model_dump(include={"training"}), **{
        name: value for name, value in more.items() if name == "model"}})  # fmt: skip
    assert explicit.key_content() == config.key_content()
