"""A contribution to JARVIS-Leaderboard is of exactly its test rows; its benchmarks become label tables."""

from __future__ import annotations

import io
import json
import re
import subprocess
import zipfile

import pandas as pd
import pytest

from atomloom import cli
from atomloom.commands.jarvis import About, read_benchmark, write_contribution, write_split
from atomloom.errors import AtomloomError
from tests.unit.leaderboards.finished import write_run

NAME = "AI-SinglePropertyPrediction-e_form-megnet-test-mae"
ABOUT = About("ours", "a team", "a@b.c", "https://example.org")
TRUTH = {
    "train": {"mp-1": -1.0, "mp-2": -2.0},
    "val": {"mp-3": 0.5},
    "test": {"mp-9": 1.5, "mp-4": -0.25},
}
TEST = pd.DataFrame({"id": ["mp-4", "mp-9"], "label": [-0.25, 1.5], "prediction": [0.0, 1.0]})


def write_benchmark(folder, content=TRUTH, name="megnet_e_form.json.zip"):
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name.removesuffix(".zip"), text)
    return path


def test_a_contribution_holds_predictions_metadata_and_script(tmp_path):
    file, run = write_benchmark(tmp_path), write_run(tmp_path / "run", TEST)
    for output in ("out", "again"):
        score, cost = write_contribution(run, NAME, file, ABOUT, tmp_path / output)
    assert score == pytest.approx(0.375)
    assert (cost.cpu_hours, cost.gpu_hours) == (1.0, 0.0)
    packed = (tmp_path / "out" / f"{NAME}.csv.zip").read_bytes()
    assert packed == (tmp_path / "again" / f"{NAME}.csv.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.namelist() == [f"{NAME}.csv"]
        assert archive.read(f"{NAME}.csv").decode() == "id,prediction\nmp-9,1.0\nmp-4,0.0\n"
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    asked = {"model_name", "project_url", "date_submitted", "author_email", "database_version", "team_name",
             "time_taken_seconds", "language", "os", "software_used", "hardware_used", "git_url"}  # fmt: skip
    assert asked <= set(metadata)
    assert metadata["date_submitted"] == "01-02-2026"
    assert metadata["cpu_hours"] == 1.0
    assert (tmp_path / "out" / "run.sh").read_text().startswith("#!/bin/bash\n")
    assert "paths" not in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TEST[:1], "1 are missing and 0 are not in it, such as mp-9"),
        (TEST.assign(id=["mp-4", "mp-1"]), "1 are missing and 1 are not in it, such as mp-9"),
        (TEST.assign(id="mp-4"), "1 ids occur twice, such as mp-4"),
        (TEST.assign(prediction=float("inf")), "2 predictions are not finite numbers"),
        (TEST.assign(label=[-25.0, 1.5]), "mp-4 has -25, there -0.25; another property or unit?"),
    ],
    ids=["missing", "of-training", "twice", "infinite", "other-labels"],
)
def test_other_rows_than_the_benchmarks_are_refused_in_one_line(table, says, tmp_path):
    file, run = write_benchmark(tmp_path), write_run(tmp_path / "run", table)
    with pytest.raises(AtomloomError, match=re.escape(says)) as error:
        write_contribution(run, NAME, file, ABOUT, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_predictions_that_the_card_does_not_record_are_refused(tmp_path):
    file, run = write_benchmark(tmp_path), write_run(tmp_path / "run", TEST)
    better = write_run(tmp_path / "other", TEST.assign(prediction=TEST["label"]))
    (better / "predictions.parquet").replace(run / "predictions.parquet")
    with pytest.raises(AtomloomError, match=r"predictions\.parquet: is not the one that the card"):
        write_contribution(run, NAME, file, ABOUT, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "AI-SinglePropertyPrediction-e_form-megnet-test-acc",
        "AI-SinglePropertyPrediction-e_form-megnet-val-mae",
        "AI-Spectra-ph_dos-dft_3d-test-multimae",
        "e_form",
        "AI-SinglePropertyPrediction-gap-megnet-test-mae",
    ],
)
def test_a_benchmark_of_another_kind_or_file_is_refused(name, tmp_path):
    with pytest.raises(AtomloomError, match=r"is not (a benchmark of one number|the file of)"):
        write_contribution(tmp_path, name, write_benchmark(tmp_path), ABOUT, tmp_path / "out")


def test_an_address_is_asked_for(tmp_path):
    with pytest.raises(AtomloomError, match="nobody: is not an address"):
        write_contribution(tmp_path, NAME, tmp_path, About("a", "b", "nobody"), tmp_path)


def test_probabilities_become_classes(tmp_path):
    file = write_benchmark(
        tmp_path, {"train": {"a": 1}, "test": {"b": 1, "c": 0}}, "dft_3d_metal.json.zip"
    )
    table = pd.DataFrame({"id": ["b", "c"], "label": [1.0, 0.0], "prediction": [0.8, 0.6]})
    run = write_run(tmp_path / "run", table, training={"loss": "bce"})
    name = "AI-SinglePropertyClass-metal-dft_3d-test-acc"
    score, _ = write_contribution(run, name, file, ABOUT, tmp_path / "out")
    assert score == 0.5
    with zipfile.ZipFile(tmp_path / "out" / f"{name}.csv.zip") as archive:
        assert archive.read(f"{name}.csv").decode() == "id,prediction\nb,1\nc,1\n"


@pytest.mark.parametrize(
    ("loss", "metric", "says"),
    [
        ("mse", "acc", "is not a model of classes (training.loss: mse)"),
        ("bce", "mae", "is not a model of numbers (training.loss: bce)"),
    ],
)
def test_numbers_are_no_classes_and_classes_no_numbers(loss, metric, says, tmp_path):
    kind = {"acc": "Class", "mae": "Prediction"}[metric]
    file = write_benchmark(
        tmp_path, {"train": {"a": 1}, "test": {"b": 1, "c": 0}}, "dft_3d_metal.json.zip"
    )
    table = pd.DataFrame({"id": ["b", "c"], "label": [1.0, 0.0], "prediction": [0.99, 0.6]})
    run = write_run(tmp_path / "run", table, training={"loss": loss})
    name = f"AI-SingleProperty{kind}-metal-dft_3d-test-{metric}"
    with pytest.raises(AtomloomError, match=re.escape(says)):
        write_contribution(run, name, file, ABOUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_makes_the_contribution_of_its_own_run_alone(tmp_path, monkeypatch):
    """Commands stand in for installing, training and writing."""
    file, run = write_benchmark(tmp_path), write_run(tmp_path / "run", TEST)
    about = About("our's", "a team", "a@b.c", "https://example.org")
    write_contribution(run, NAME, file, about, tmp_path / "out")
    for other in ("x/runs/0", "x/runs/1", "y/runs/2"):
        (tmp_path / "out" / "results" / other).mkdir(parents=True)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {
        "pip": "true",
        "python": "echo results/x/runs/1",
        "atomloom": "printf '%s\\n' \"$@\" > asked",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    subprocess.run(["bash", "run.sh"], cwd=tmp_path / "out", check=True)
    asked = cli._parser().parse_args((tmp_path / "out" / "asked").read_text().splitlines())
    assert (str(asked.run_folder), asked.benchmark) == ("results/x/runs/1", NAME)
    given = (asked.name, asked.team, asked.email, asked.url)
    assert given == ("our's", "a team", "a@b.c", "https://example.org")
    script = (tmp_path / "out" / "run.sh").read_text()
    code = compile(script.split('python -c "')[1].split('")\n')[0], "run.sh", "exec")
    assert {"run_pipeline", "load_config"} <= set(code.co_names)


def test_a_benchmark_becomes_a_label_table_with_its_split(tmp_path, capsys):
    file, output = write_benchmark(tmp_path), tmp_path / "new" / "labels.csv"
    arguments = ["--target", "e_form", "--output", str(output)]
    assert cli.main(["leaderboard", "split", str(file), *arguments]) == 0
    assert "2 train, 1 val, 2 test" in capsys.readouterr().out
    table = pd.read_csv(output)
    assert list(table) == ["id", "e_form", "split"]
    assert table.set_index("id").loc["mp-3"].tolist() == [0.5, "val"]
    with pytest.raises(AtomloomError, match="called split already"):
        write_split(file, "split", output)


def test_an_id_of_two_splits_has_its_row_in_the_one_nearest_to_the_test(tmp_path):
    """JARVIS' formation energies have two such crystals in training and test."""
    content = {"train": {"a": 1.0, "b": 2.0}, "val": {"b": 2.0}, "test": {"a": 1.0}}
    counts = write_split(write_benchmark(tmp_path, content), "y", tmp_path / "labels.csv")
    assert counts == {"train": 0, "val": 1, "test": 1}
    assert pd.read_csv(tmp_path / "labels.csv")["id"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not a benchmark"),
        ([1], "has no splits"),
        ({"train": {"a": 1}}, "has no splits"),
        ({"train": {"a": "1;2"}, "test": {}}, "a has '1;2': not a benchmark of single numbers"),
        ({"train": {"a": None}, "test": {}}, "not a benchmark of single numbers"),
        ({"train": {"a": True}, "test": {}}, "not a benchmark of single numbers"),
    ],
    ids=["json", "list", "no-test", "spectra", "null", "true"],
)
def test_what_is_no_benchmark_is_refused(content, says, tmp_path):
    with pytest.raises(AtomloomError, match=re.escape(says)):
        read_benchmark(write_benchmark(tmp_path, content))


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(AtomloomError, match=r"cannot be read.*jarvis_leaderboard's benchmarks"):
        read_benchmark(tmp_path / "none.json.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(AtomloomError, match="is not a benchmark"):
        read_benchmark(tmp_path / "text.zip")
