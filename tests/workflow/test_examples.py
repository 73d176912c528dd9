"""The scripts and the notebook of examples/ run as they stand, and come to what they say they do."""

from __future__ import annotations

import json
import re
import runpy

import matplotlib
import pandas as pd
import pytest

from tests.workflow.project import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_steps.ipynb"


def run(name: str) -> dict:
    """What a script leaves behind."""
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go where a script is started, and figures to no screen."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")


def test_the_list_of_examples_is_whole():
    listed = set(re.findall(r"\| \[(.*?)\]", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


@pytest.mark.slow
def test_a_property_model_is_trained_judged_and_drawn(capsys):
    found = run("cohesive_energies.py")
    mae, guess = map(float, re.search(r"MAE (\S+) .* mean (\S+)", capsys.readouterr().out).groups())
    assert mae < guess
    assert (found["run"].folder / "parity.png").stat().st_size > 0
    assert found["run"].report.exists()


@pytest.mark.slow
def test_a_potential_has_true_forces_and_relaxes_to_the_lattice_of_its_labels():
    found = run("potential.py")
    assert found["forces"][0, 0] == pytest.approx(found["numerical"], abs=1e-4)
    assert found["lengths"]["potential"] == pytest.approx(found["lengths"]["EMT"], abs=0.03)


@pytest.mark.slow
def test_a_committee_ranks_candidates_with_uncertainties(tmp_path):
    found = run("screening.py")
    ranking = pd.read_csv(tmp_path / "ranking.csv")
    assert set(ranking["id"]) == {path.stem for path in (tmp_path / "candidates").iterdir()}
    assert ranking["predicted"].is_monotonic_increasing
    assert (ranking["uncertainty"] > 0).all()
    assert len(set(found["paths"])) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch):
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    matplotlib.pyplot.close("all")
    assert names["predicted"].shape == (3, 1)
    stores = list((tmp_path / "examples" / "store" / "graphs").rglob("*.zarr.zip"))
    assert len(stores) == 1, "another learning rate has built a graph"


def test_the_notebook_is_committed_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
