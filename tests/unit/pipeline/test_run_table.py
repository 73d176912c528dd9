"""The table of runs shows what differs, sorts by any column, and fits a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomloom.cli import main
from atomloom.errors import AtomloomError
from atomloom.pipeline.run_table import (
    RunTable,
    flat_row,
    shown_width,
    table_of,
    text_lines,
    value_text,
)
from atomloom.pipeline.runs import RunRecord

KEYS = ("1000000000000000", "2000000000000001", "3000000000000002")


def run(key: str, state: str = "evaluated", mae: float | None = None, **config) -> RunRecord:
    """A run whose config has some values of the section `training`."""
    known = {} if mae is None else {"gap": {"train": 0.0, "val": mae, "test": 2 * mae}}
    return RunRecord(
        Path("results/tiny/runs") / key,
        "tiny",
        state,
        epoch=1,
        epochs=3,
        config={"model": {"name": "painn"}, "training": config},
        errors=known,
        units={"gap": "eV"},
        seconds=3.0,
        when="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture
def table() -> RunTable:
    runs = [
        run(KEYS[0], mae=0.5, learning_rate=0.01, seed=1),
        run(KEYS[1], mae=0.25, learning_rate=0.001, seed=10),
        run(KEYS[2], "planned", learning_rate=0.1, seed=2),
    ]
    return table_of(runs)


def test_the_best_by_validation_comes_first_and_what_has_no_error_last(table):
    assert [one.key[0] for one in table.runs] == ["2", "1", "3"]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("test", "213"),
        ("val_mae_gap", "213"),
        ("learning_rate", "213"),
        ("training.seed", "132"),
        ("state", "123"),
        ("key", "123"),
        ("name", "123"),
        ("time", "123"),
    ],
)
def test_runs_are_sorted_by_any_column(table, sort, order):
    assert "".join(one.key[0] for one in table_of(table.runs, sort).runs) == order


def test_reversed_order_leaves_what_has_no_value_at_the_end(table):
    assert [one.key[0] for one in table_of(table.runs, reverse=True).runs] == ["1", "2", "3"]


def test_an_unknown_column_is_refused_with_all_that_there_are(table):
    with pytest.raises(
        AtomloomError, match=r"no column `rate`.*val, test, time.*learning_rate, seed"
    ):
        table_of(table.runs, "rate")


def test_values_stay_with_their_runs_when_sorted(table):
    assert table.differing == {
        "training.learning_rate": (0.001, 0.01, 0.1),
        "training.seed": (10, 1, 2),
    }


def test_lines_have_a_column_for_each_difference_and_error(table):
    assert text_lines(table) == [
        "run              state       val  test  learning_rate  seed  time  when (UTC)",
        "albite-20000     evaluated  0.25   0.5  0.001          10     3 s  2026-01-02 03:04",
        "agate-10000      evaluated   0.5     1  0.01           1      3 s  2026-01-02 03:04",
        "almandine-30000  planned       -     -  0.1            2      3 s  2026-01-02 03:04",
    ]


def test_the_present_run_is_marked(table):
    marked = text_lines(table, present=KEYS[0])
    assert [line for line in marked if line.startswith("> ")] == [marked[2]]
    assert marked[2].startswith("> agate-10000 ")


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_lines_fit_the_terminal_and_say_what_is_left_out(table, width):
    lines = text_lines(table, width)
    assert max(map(shown_width, lines[:-1])) <= width
    assert lines[-1].startswith("left out for lack of width: ")
    assert lines[-1].endswith("when (UTC)")
    shown = lines[0].split()
    for name in ("val", "test", "learning_rate", "seed", "time"):
        assert (name in shown) != (name in lines[-1].split(": ")[1].split(", "))


def test_wide_characters_are_counted_as_the_terminal_shows_them():
    assert shown_width("a") == 1
    assert shown_width("铜") == 2
    assert shown_width("e\u0301") == 1
    runs = [run(KEYS[0], mae=1.0, column="铜"), run(KEYS[1], mae=2.0, column="Cu_")]
    lines = text_lines(table_of(runs))
    assert {shown_width(line) for line in lines[1:]} == {shown_width(lines[1])}
    assert "铜 " in lines[1]


def test_runs_with_one_name_are_told_apart_by_their_keys():
    same = ("1000000000000000", "1000000100000000")
    assert table_of([run(key) for key in same]).names == list(same)


def test_fields_have_their_shortest_unmistakable_names():
    runs = [run(KEYS[0], cutoff=1, width=1), run(KEYS[1], cutoff=2, width=2)]
    runs = [
        RunRecord(one.folder, "tiny", "planned", config={**one.config, "graph": {"cutoff": place},
                  "model": {"name": f"m{place}"}})
        for place, one in enumerate(runs)
    ]  # fmt: skip
    assert table_of(runs).fields == ["model", "training.cutoff", "width", "graph.cutoff"]


def test_what_only_one_model_has_is_told_by_its_name():
    runs = [run(KEYS[0]), run(KEYS[1])]
    models = ({"name": "painn", "layers": 3}, {"name": "chebyshev", "order": 8})
    runs = [
        RunRecord(one.folder, "tiny", "planned", config={"model": model})
        for one, model in zip(runs, models, strict=True)
    ]
    assert table_of(runs).differing == {"model.name": ("painn", "chebyshev")}


def test_errors_are_those_of_the_first_two_targets():
    errors = {name: {"val": 1.0, "test": 2.0} for name in ("energy", "forces", "stress")}
    one = RunRecord(Path("r/runs") / KEYS[0], "tiny", "evaluated", errors=errors)
    assert table_of([one]).main_errors == (
        ("energy", "val"), ("energy", "test"), ("forces", "val"), ("forces", "test"),
    )  # fmt: skip
    assert "val forces" in text_lines(table_of([one]))[0]


def test_named_test_sets_have_a_column_each():
    errors = {"gap": {"train": 0.0, "300K": 1.0, "val": 3.0, "600K": 2.0}}
    one = RunRecord(Path("r/runs") / KEYS[0], "tiny", "evaluated", errors=errors)
    assert table_of([one]).errors == (("gap", "val"), ("gap", "300K"), ("gap", "600K"))


def test_classes_have_accuracies_and_the_highest_comes_first():
    """The errors of their probabilities say less, and may order runs otherwise."""
    runs = [
        RunRecord(
            Path("r/runs") / key,
            "tiny",
            "evaluated",
            errors={"metal": {"val": error}},
            accuracies={"metal": {"val": accuracy}},
        )
        for key, error, accuracy in zip(KEYS, (0.1, 0.2, 0.3), (0.7, 0.9, 0.8), strict=True)
    ]
    found = table_of([*runs, run("4000000000000003", "planned")])
    assert [one.key[0] for one in found.runs] == ["2", "3", "1", "4"]
    assert [one.key[0] for one in table_of(runs, reverse=True).runs] == ["1", "3", "2"]
    assert [line.split()[2] for line in text_lines(found)] == ["val", "0.9", "0.8", "0.7", "-"]
    row = flat_row(found, 0)
    assert (row["val_mae_metal"], row["val_accuracy_metal"]) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "true"),
        (0.1 + 0.2, "0.3"),
        (1e-5, "1e-05"),
        ([15, 15], "15, 15"),
        ([], "none"),
        ({"a": 1}, "a: 1"),
        ("a\nb", "a b"),
        ("x" * 40, "x" * 25 + "..."),
    ],
    ids=["none", "bool", "float", "small", "list", "empty", "mapping", "lines", "long"],
)
def test_values_are_short_texts_on_one_line(value, text):
    assert value_text(value) == text


# --- the command ---


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Two data sets: one of two finished runs and one that is damaged, one of an unfinished one."""
    monkeypatch.chdir(tmp_path)
    for place, key in enumerate(KEYS):
        folder = tmp_path / "results" / "tiny" / "runs" / key
        folder.mkdir(parents=True)
        card = {
            "config": {"training": {"epochs": 3, "seed": place}},
            "epochs_run": 3,
            "target": ["gap"],
            "unit": "eV",
        }
        (folder / "run.json").write_text("{" if place == 2 else json.dumps(card))
        (folder / "model.safetensors").touch()
        (folder / "metrics.json").write_text(json.dumps({"gap": {"val": {"mae": 1.0 - place / 4}}}))
    other = tmp_path / "results" / "größe" / "runs" / KEYS[0]
    other.mkdir(parents=True)
    (other / "history.csv").write_text("epoch,val_mae\n1,0.5\n")
    return tmp_path / "results"


def test_the_command_lists_all_data_sets_and_tells_what_is_damaged(results, capsys):
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "größe: 1 run; mean absolute errors of target"
    assert lines[4] == "tiny: 3 runs; mean absolute errors of gap eV"
    assert [line.split()[:3] for line in lines[6:9]] == [
        ["albite-20000", "evaluated", "0.75"],
        ["agate-10000", "evaluated", "1"],
        ["almandine-30000", "damaged", "-"],
    ]
    assert lines[9].startswith("almandine-30000 is damaged: run.json: is not valid JSON")


def test_the_command_writes_csv_and_json(results, capsys):
    assert main(["runs", str(results / "tiny"), "--csv", "--sort", "seed", "--reverse"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["training.seed"] for row in rows] == ["1", "0", ""]
    assert [row["val_mae_gap"] for row in rows] == ["0.75", "1.0", ""]
    assert main(["runs", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [one["dataset"] for one in content] == ["größe", "tiny", "tiny", "tiny"]
    assert content[1]["errors"] == {"gap": {"val": 0.75}}
    assert content[1]["differing"] == {"training.seed": 1}
    assert content[3]["reason"].startswith("run.json: is not valid JSON")


def test_the_command_shows_accuracies_of_classes(results, capsys):
    for folder in (results / "tiny" / "runs" / key for key in KEYS[:2]):
        scores = {"mae": 0.5, "accuracy": 0.75}
        (folder / "metrics.json").write_text(json.dumps({"gap": {"val": scores}}))
    assert main(["runs", str(results / "tiny")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 3 runs; accuracies of gap"
    assert lines[2].split()[2] == "0.75"
    assert main(["runs", str(results / "tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["accuracies"] == {"gap": {"val": 0.75}}


def test_a_column_of_one_data_set_sorts_that_one(results, capsys):
    assert main(["runs", "--sort", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("-")[0] for line in lines[6:9]] == ["agate", "albite", "almandine"]
    assert main(["runs", "--sort", "sead"]) == 1
    said = capsys.readouterr().err
    assert "no column `sead`" in said
    assert {"val_mae_target", "val_mae_gap", "seed"} <= set(
        said.strip().split("choose from ")[1].split(", ")
    )


def test_the_command_says_when_there_is_nothing(results, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in empty yet\n"
    assert main(["runs", "nowhere"]) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_listing_loads_neither_torch_nor_tables(results):
    code = (
        "import sys\nfrom atomloom.cli import main\nmain(['runs'])\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'zarr', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=results.parent
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_output_that_cannot_hold_a_character_is_no_obstacle(results):
    done = subprocess.run(
        [sys.executable, "-m", "atomloom", "runs"],
        capture_output=True,
        cwd=results.parent,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"},
        check=True,
    )
    assert b"gr\\xf6\\xdfe: 1 run" in done.stdout
