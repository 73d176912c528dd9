"""The page of a sweep."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from atomloom.reports.sweep import SweepPage, write_sweep_page


def page(**changes) -> SweepPage:
    table = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "status": ["finished", "stopped", "failed"],
            "value": [0.2, 0.5, np.nan],
            "std": [np.nan] * 3,
            "runs": [1, 1, 1],
            "epochs": [3, 1, 0],
            "best_epoch": [3, 1, 0],
            "training.learning_rate": [1e-3, 1e-4, 1e-1],
            "model.name": ["alignn", "icomformer", "alignn"],
            "run": ["a" * 16, "b" * 16, ""],
            "reason": ["", "", "the loss is <not> a number"],
        }
    )
    content = {
        "title": "Sweep of gaps",
        "metric": "val_mae",
        "table": table,
        "curves": {0: [0.6, 0.3, 0.2], 1: [0.5], 2: []},
        "importance": {"training.learning_rate": 0.9, "model.name": 0.1},
        "best": 0,
        "full_epochs": 9,
        "facts": [("method", "grid")],
    }
    return SweepPage(**(content | changes))


def test_the_page_says_which_trial_is_best_and_why_one_failed(tmp_path):
    write_sweep_page(page(), tmp_path)
    text = (tmp_path / "sweep.html").read_text()
    assert "3 trials (1 finished, 1 stopped, 1 failed), 4 epochs in all, 44%" in text
    assert "0 ★" in text
    assert "failed: the loss is &lt;not&gt; a number" in text
    assert f'href="../../runs/{"a" * 16}/"' in text
    assert len(re.findall("<svg", text)) == 3


def test_each_figure_is_a_png_and_an_svg_beside_the_page(tmp_path):
    write_sweep_page(page(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    figures = ("learning-curves", "parallel-coordinates", "importance")
    assert names == {"sweep.html"} | {f"{name}.{end}" for name in figures for end in ("png", "svg")}


def test_the_same_sweep_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_sweep_page(page(), tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_sweep_of_which_every_trial_failed_has_a_page_with_the_reasons(tmp_path):
    failed = page().table.assign(value=np.nan, status="failed", reason="no such device")
    write_sweep_page(page(table=failed, best=None, importance={}, curves={}), tmp_path)
    assert (tmp_path / "sweep.html").read_text().count("no such device") == 3


def test_a_key_that_only_failed_trials_set_has_no_axis(tmp_path):
    table = page().table
    table["training.weight_decay"] = [np.nan, np.nan, 0.1]
    write_sweep_page(page(table=table), tmp_path)
    drawn = (tmp_path / "parallel-coordinates.svg").read_text()
    assert "learning_rate" in drawn
    assert "weight_decay" not in drawn
    assert "training.weight_decay" in (tmp_path / "sweep.html").read_text()
