"""A run is held against published errors: reached, not reached, or not measured, and never by other settings."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from atomloom import cli
from atomloom.commands.leaderboard import compare_published
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.published import verdicts
from atomloom.store.files import read_json, write_json, write_sealed
from tests.unit.leaderboards.finished import write_run

PUBLISHED = {"source": "A et al., 2020", "errors": [{"target": "y", "value": 2.0, "gap": 0.1}]}
CONTENT = {
    "dataset": {"name": "x", "source": "x", "target": "y", "unit": "eV"},
    "model": {"width": 8},
    "published": PUBLISHED,
}
FOLDS = {"split": {"kind": "folds", "folds_file": "f.json"}}
TEST = pd.DataFrame({"id": ["a"], "label": [0.0], "prediction": [1.0]})


def config_of(**more):
    return parse_config({**CONTENT, **more})


def metrics_of(mae):
    return {"y": {"test": {"mae": mae, "rmse": 9.0, "count": 1}, "train": {"mae": 0.0}}}


def test_the_commands_and_the_config_of_the_page_are_valid():
    page = (Path(__file__).resolve().parents[3] / "docs" / "published.md").read_text()
    text = page.replace("\\\n", " ")
    commands = re.findall(r"^    atomloom (leaderboard .*)$", text, re.M)
    asked = [cli._parser().parse_args(shlex.split(command)).action for command in commands]
    assert asked == ["published", "split", "matbench", "jarvis"]
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    dataset = CONTENT["dataset"] | {"target": "band_gap"}
    assert parse_config({"dataset": dataset, **section}).published.errors[0].limit == pytest.approx(
        0.22
    )


@pytest.mark.parametrize(
    ("metrics", "state"),
    [
        ([metrics_of(2.2)], "reached"),
        ([metrics_of(2.201)], "not reached"),
        ([], "not measured"),
        ([{"y": {"train": {"mae": 0.0}}}], "not measured"),
        ([metrics_of(None)], "not measured"),
        ([metrics_of(float("nan"))], "not measured"),
        ([{"z": metrics_of(1.0)["y"]}], "not measured"),
    ],
)
def test_a_verdict_depends_on_the_test_error_alone(metrics, state):
    (found,) = verdicts(config_of().published, metrics, {"y": "eV"})
    assert found.state == state
    assert state in found.line


def test_a_mean_over_folds_needs_all_of_them():
    split = {"kind": "folds", "folds_file": "f.json"}
    published = config_of(split=split, published=PUBLISHED | {"folds": 3}).published
    (found,) = verdicts(published, [metrics_of(1.0), metrics_of(3.0)], {"y": "eV"})
    assert (found.state, found.ours) == ("not measured", 2.0)
    assert "ours 2 eV: not measured (2 of 3 folds)" in found.line
    (found,) = verdicts(published, [metrics_of(1.0), metrics_of(3.0), metrics_of(2.0)], {})
    assert found.state == "reached"


@pytest.mark.parametrize(
    ("folds", "count", "state"),
    [
        (1, 1, "reached"),
        (1, 2, "not measured (over 1 test values, not 2)"),
        (1, 1000, "not measured (over 1 test values, not 1,000)"),
        (2, 2, "reached"),
        (2, 3, "not measured (over 1 test values, not 3)"),
    ],
)
def test_an_error_over_another_test_set_does_not_count(folds, count, state):
    errors = [PUBLISHED["errors"][0] | {"count": count}]
    split = {"kind": "folds", "folds_file": "f.json"}
    published = config_of(
        split=split, published=PUBLISHED | {"folds": folds, "errors": errors}
    ).published
    (found,) = verdicts(published, [metrics_of(1.0)] * folds, {})
    assert f"{found.state}{found.reason}" == state


def test_what_is_published_changes_no_key():
    plain = parse_config({name: CONTENT[name] for name in ("dataset", "model")})
    assert config_of().key_content() == plain.key_content()
    assert Layout(config_of()).plan_spec == Layout(plain).plan_spec


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"published": PUBLISHED | {"errors": [{"target": "z", "value": 1}]}}, "z is not a target that is reported (y)"),
        ({"published": PUBLISHED | {"folds": 5}}, "published.folds above 1 needs split.kind: folds"),
        ({"training": {"loss": "bce"}}, "published errors are not for loss: bce"),
        ({"published": PUBLISHED | {"errors": []}}, "published.errors"),
        ({"published": PUBLISHED | {"errors": PUBLISHED["errors"] * 2}}, "is named twice"),
        ({"published": PUBLISHED | {"errors": [{"target": "y", "value": 0}]}}, "greater than 0"),
    ],
)  # fmt: skip
def test_a_published_error_that_no_run_can_have_is_refused(more, says):
    with pytest.raises(AtomloomError, match=re.escape(says)) as error:
        config_of(**more)
    assert "\n" not in str(error.value)


def test_only_runs_with_all_settings_of_the_config_count(tmp_path):
    config = config_of()
    sections = {"dataset": CONTENT["dataset"]}

    def states():
        return [(row.verdict.state, row.note) for row in compare_published(config, "p", tmp_path)]

    assert states() == [("not measured", "")]
    runs = tmp_path / "x" / "runs"
    write_run(runs / "a", TEST, metrics=metrics_of(1.0), training={"epochs": 2}, **sections)
    assert states() == [("not measured", "1 run(s) with another training.epochs")]
    elsewhere = {"dataset": CONTENT["dataset"] | {"source": "/elsewhere"}}
    write_run(runs / "b", TEST, metrics=metrics_of(1.0), training={"threads": 3}, **elsewhere)
    assert states() == [("reached", "1 run(s) with another training.epochs")]
    few = {"y": {"test": {"mae": 9.0, "rmse": 9.0, "count": 0}}}
    write_run(runs / "c", TEST, metrics=few, training={"threads": 4}, **elsewhere)
    assert states()[0][0] == "reached"  # the one with more test values
    shutil.rmtree(runs / "c")
    (runs / "b" / "run.json").write_text("{")
    assert states()[0][0] == "not measured"
    assert "is not valid JSON" in states()[0][1]


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ({}, {"training": {"loss_weights": {"y": 2.0}}}, "training.loss_weights.y"),
        ({"training": {"loss_weights": {"y": 2.0}}}, {"training": {}}, "training.loss_weights.y"),
        ({}, {"dataset": CONTENT["dataset"] | {"options": {"key": 1}}}, "dataset.options.key"),
        ({}, {"split": {"kind": "folds", "folds_file": "f", "fold": 1}}, "split.kind"),
        (FOLDS, {"split": FOLDS["split"] | {"fold": 1}}, "split.fold"),
        ({}, {"model": {"name": "ecomformer", "width": 8}}, "graph.lattice"),
        ({}, {"model": {"width": 8, "layers": 3}}, "model.layers"),
    ],
    ids=["weights", "no weights", "options", "split", "fold", "model", "layers"],
)
def test_settings_are_compared_both_ways(ours, theirs, named, tmp_path):
    sections = {"dataset": CONTENT["dataset"], **ours, **theirs}
    run = write_run(tmp_path / "x" / "runs" / "a", TEST, metrics=metrics_of(1.0), **sections)
    (row,) = compare_published(config_of(**ours), "p", tmp_path)
    assert (row.verdict.state, row.note) == ("not measured", f"1 run(s) with another {named}")
    same = {"dataset": CONTENT["dataset"], **ours}
    write_run(run.with_name("b"), TEST, metrics=metrics_of(1.0), **same)
    (row,) = compare_published(config_of(**ours), "p", tmp_path)
    assert (row.verdict.state, row.verdict.ours) == ("reached", 1.0)


def test_a_card_of_before_lacks_fields_and_counts_by_their_defaults(tmp_path):
    run = write_run(
        tmp_path / "x" / "runs" / "a", TEST, metrics=metrics_of(1.0), dataset=CONTENT["dataset"]
    )
    card = read_json(run / "run.json")
    for section, name in (("model", "readout"), ("training", "accumulate"), ("split", "test")):
        del card["config"][section][name]
    write_sealed(run / "run.json", card)
    for more, state in (
        ({}, "reached"),
        ({"model": {"width": 8, "readout": "sum"}}, "not measured"),
        ({"training": {"accumulate": 2}}, "not measured"),
    ):
        (row,) = compare_published(config_of(**more), "p", tmp_path)
        assert row.verdict.state == state, more


def test_runs_by_a_teacher_are_not_those_of_a_config_without(tmp_path):
    run = write_run(
        tmp_path / "x" / "runs" / "a", TEST, metrics=metrics_of(1.0), dataset=CONTENT["dataset"]
    )
    card = read_json(run / "run.json")
    card["config"]["teacher"] = {"calculator": "ase.calculators.emt:EMT"}
    write_sealed(run / "run.json", card)
    (row,) = compare_published(config_of(), "p", tmp_path)
    assert row.note == "1 run(s) with another teacher.calculator"


def test_errors_that_were_edited_do_not_count(tmp_path):
    run = write_run(
        tmp_path / "x" / "runs" / "a", TEST, metrics=metrics_of(3.0), dataset=CONTENT["dataset"]
    )
    write_json(run / "metrics.json", metrics_of(1.0))
    (row,) = compare_published(config_of(), "p", tmp_path)
    assert row.verdict.state == "not measured"
    assert "metrics.json: is not the one that the card records" in row.note


def test_the_command_shows_one_line_per_published_error(tmp_path, capsys):
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "paths": {"results": str(tmp_path)}}))
    write_run(
        tmp_path / "x" / "runs" / "a", TEST, metrics=metrics_of(3.0), dataset=CONTENT["dataset"]
    )
    assert cli.main(["leaderboard", "published", str(path)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["preset", "error", "theirs", "ours", "allowed", "state"]
    assert re.split(r"  +", line) == ["paper", "MAE of y", "2 eV", "3 eV", "2.2 eV", "not reached"]
    path.write_text(yaml.safe_dump({"dataset": CONTENT["dataset"]}))
    assert cli.main(["leaderboard", "published", str(path)]) == 1
    assert "no section `published` here" in capsys.readouterr().err
