"""Test sets with names, from a config to the errors, predictions and report of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomloom.api import Run, run_pipeline
from atomloom.commands.evaluate import Comparison, compare_with_labels
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from tests.workflow.project import cif_text

ELEMENTS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba", "Be", "Cs", "Zn", "Cd")
ODD = "<b>600 K</b> $T_1$, „heiß“"


def settings(test: dict, **split):
    return parse_config(
        {
            "dataset": {
                "name": "d",
                "source": ["cool.csv", "hot.csv"],
                "target": ["sigma", "gap"],
                "unit": {"sigma": "S/m", "gap": "eV"},
            },
            "split": {"test": test, **split},
            "model": {"name": "icomformer", "width": 8, "layers": 2},
            "training": {
                "epochs": 1,
                "device": "cpu",
                "threads": 1,
                "log_targets": ["sigma"],
                "batch": {"structures": 8},
            },
        }
    )


def write_data() -> None:
    """40 crystals in two files, of which `hot.csv` repeats two of the others and has no gaps."""
    rows = [
        {
            "id": f"s{i:02d}",
            "cif": cif_text(ELEMENTS[i % 12], "O", 4.0 + 0.1 * i),
            "sigma": 10.0 ** (i % 5 - 2),
            "gap": 0.1 * i if i < 30 else None,
            "T": 300 + 100 * (i % 2) if i < 30 else 600.0,
        }
        for i in range(40)
    ]
    pd.DataFrame(rows[:30]).to_csv("cool.csv", index=False)
    again = [{**rows[i], "id": f"again{i}", "gap": None, "T": 600} for i in (3, 4)]
    pd.DataFrame([*rows[30:], *again]).to_csv("hot.csv", index=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("named"))
        write_data()
        lines: list[str] = []
        sets = {ODD: {"source": "hot.csv"}, "400K": {"column": "T", "equals": 400}}
        found = run_pipeline(settings(sets), lines.append)
        assert f"{ODD} sigma" in "\n".join(lines)
        for name in ("metrics", "predictions"):  # read while the folder is the present one
            getattr(found, name)
        found.__dict__["project"] = Path.cwd()
        found.__dict__["table"] = pd.read_csv(found.places.run / "metrics.csv")
        found.__dict__["page"] = found.report.read_text()
        found.__dict__["split"] = json.loads((found.places.split / "split.json").read_text())
        found.__dict__["guard"] = pd.read_csv(found.places.split / "duplicates.csv")
        return found


def test_each_set_has_its_errors_beside_training_and_validation(run):
    assert list(run.metrics["sigma"]) == ["train", "val", ODD, "400K"]
    assert run.split["test_sets"] == {ODD: 12, "400K": 15}
    assert run.split["test"] == 0
    table = run.predictions
    for name, count in run.split["test_sets"].items():
        own = table[table["split"] == name]
        values = run.metrics["sigma"][name]
        assert len(own) == values["count"] == count
        errors = np.abs(own["sigma_predicted"] - own["sigma"])
        assert values["mae"] == pytest.approx(errors.mean())


def test_errors_are_a_table_too(run):
    table = run.table.set_index(["target", "split"])
    assert table.loc[("sigma", ODD), "mae_log10"] == run.metrics["sigma"][ODD]["mae_log10"]
    assert table.loc[("gap", "400K"), "mae"] == run.metrics["gap"]["400K"]["mae"]
    assert table["unit"].to_dict()["gap", "train"] == "eV"
    assert len(table) == 8


def test_a_model_file_has_the_same_errors_on_the_same_file(run):
    model = run.project / run.places.run / "model.safetensors"
    lines: list[str] = []
    again = compare_with_labels(Comparison(model, (str(run.project / "hot.csv"),)), lines.append)
    assert list(again.metrics) == ["sigma"]
    assert again.metrics["sigma"]["test"] == pytest.approx(run.metrics["sigma"][ODD], rel=1e-5)
    assert "no record has gap: it is not compared" in lines


def test_errors_of_a_learnt_logarithm_are_given_in_decades_too(run):
    own = run.predictions[run.predictions["split"] == "400K"]
    errors = np.log10(own["sigma_predicted"]) - np.log10(own["sigma"])
    values = run.metrics["sigma"]["400K"]
    assert values["mae_log10"] == pytest.approx(errors.abs().mean())
    assert values["rmse_log10"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert "mae_log10" not in run.metrics["gap"]["400K"]
    assert "MAE, log10" in run.page


def test_a_set_in_which_no_structure_has_a_target_stops_nothing(run):
    assert run.metrics["gap"][ODD] == dict.fromkeys(("mae", "rmse", "r2", "max_error", "mad")) | {
        "count": 0
    }


def test_no_structure_of_a_named_set_is_trained_on(run):
    found = run.guard.set_index("id")
    assert set(found["other_split"]) == {ODD}
    assert len(found) == run.split["removed_as_duplicates"] == 1  # of two; the other is in 400K
    assert found.index.tolist() == ["s04"]


def test_the_report_shows_each_set_by_its_name_and_as_text(run):
    assert "&lt;b&gt;600 K&lt;/b&gt; $T_1$, „heiß“" in run.page
    assert "<b>600 K" not in run.page
    assert "400K MAE" in run.page
    assert "belong to none of the splits" not in run.page
    assert "There is no test split" not in run.page


@pytest.mark.usefixtures("run")
def test_a_set_without_structures_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data()
    with pytest.raises(AtomloomError) as error:
        run_pipeline(settings({"cold": {"column": "T", "equals": 3}}), lambda _: None)
    assert str(error.value) == "split.test: no structure is in the test set cold (T = 3)"
    assert not Path("results/d/runs").exists()
