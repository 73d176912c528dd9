"""Errors against size, label and distance to the training set; drawings of the worst structures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from atomloom.reports import breakdown, drawings, trends
from atomloom.reports.tables import predictions_of, worst_predictions
from atomloom.structures.structure import Structure
from tests.unit.reports.conftest import predictions_frame
from tests.unit.reports.test_report_page import page_of

ROCKSALT = 5.6 * (np.ones((3, 3)) - np.eye(3)) / 2


def structure(numbers=(11, 17), positions=((0, 0, 0), (2.8, 0, 0)), cell=ROCKSALT, pbc=(1, 1, 1)):
    pbc = np.array(pbc, dtype=bool)
    return Structure(np.array(numbers), np.array(positions, float), cell * pbc[:, None], pbc)


def balls(svg: str) -> list[tuple[float, float, str]]:
    found = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)" r="[\d.]+" fill="(#\w+)"', svg)
    return [(float(x), float(y), colour) for x, y, colour in found]


def test_bins_hold_equal_values_together_and_their_means():
    values = np.repeat([1.0, 2.0, 8.0], [10, 30, 10])
    errors = np.arange(50.0)
    found = trends.binned(values, errors, None)
    assert [(one.low, one.high, one.count) for one in found] == [(1, 1, 10), (2, 2, 30), (8, 8, 10)]
    assert found[1].mae == errors[10:40].mean()
    assert found[1].uncertainty == pytest.approx(errors[10:40].std(ddof=1) / np.sqrt(30))
    (one,) = trends.binned(np.arange(3.0), np.ones(3), None)
    assert (one.count, one.middle) == (3, 1.0)
    assert trends.binned(np.zeros(0), np.zeros(0), None) == ()


def test_the_uncertainty_of_a_bin_counts_groups_and_not_their_members():
    errors = np.repeat([1.0, 3.0, 2.0, 6.0], 25)
    (alone,) = trends.binned(np.ones(100), errors, None)
    (grouped,) = trends.binned(np.ones(100), errors, np.repeat(["a", "b", "c", "d"], 25))
    assert grouped.uncertainty == pytest.approx(np.std([1, 3, 2, 6], ddof=1) / 2)
    assert alone.uncertainty == pytest.approx(errors.std(ddof=1) / 10)
    (one,) = trends.binned(np.ones(100), errors, np.repeat("a", 100))
    assert one.uncertainty is None


@pytest.mark.parametrize(
    ("formula", "shares"),
    [
        ("NaCl", {11: 0.5, 17: 0.5}),
        ("Ca(OH)2", {20: 0.2, 8: 0.4, 1: 0.4}),
        ("Li0.5CoO2", {3: 1 / 7, 27: 2 / 7, 8: 4 / 7}),
        ("Fe2(SO4)3", {26: 2 / 17, 16: 3 / 17, 8: 12 / 17}),
    ],
)
def test_a_formula_is_read_as_shares_of_elements(formula, shares):
    found = trends.composition(formula)
    assert {number: share for number, share in enumerate(found) if share} == pytest.approx(shares)


@pytest.mark.parametrize("text", ["", "Qq2", "Na-Cl", "(NaCl", "NaCl)", "x"])
def test_text_that_is_no_formula_has_no_composition(text):
    assert trends.composition(text) is None


def test_the_distance_is_the_share_of_atoms_to_be_exchanged():
    wanted = np.array(["NaCl", "KCl", "Na3Cl", "MgO", "NaCl"])
    found = trends.composition_distances(wanted, np.array(["NaCl", "LiF", "NaCl"]))
    assert found == pytest.approx([0, 0.5, 0.25, 1, 0])
    assert trends.composition_distances(wanted, np.array(["NaCl", ""])) is None


def test_errors_of_components_are_averaged_by_structure():
    frame = pd.DataFrame({
        "id": ["a", "a", "b", "b"], "split": "test", "formula": "NaCl", "elements": "Na,Cl",
        "n_atoms": 2, "component": [0, 1, 0, 1],
        "dipole": 0.0, "dipole_predicted": [1.0, -3.0, 0.0, 1.0],
    })  # fmt: skip
    found = trends.structure_errors(predictions_of(frame, "dipole"), "test")
    assert found.error.tolist() == [2.0, 0.5]
    assert found.row.tolist() == [0, 2]


def test_figures_say_how_many_points_of_how_many_are_drawn(monkeypatch):
    frame = predictions_frame(3000, ("band_gap",))
    frame.loc[(frame["split"] == "test") & (frame["formula"] == "NaCl"), "formula"] = "NaBr"
    found = predictions_of(frame, "band_gap")
    monkeypatch.setattr(trends, "JUDGED", 200)
    size, label, distance = breakdown.break_down(0, found, (), 100, {}).trends
    count = int(found.of("test").sum())
    assert f"100 of {count} are drawn, evenly chosen; bins are of all." in size.caption
    assert size.svg.count("<title>") == 100
    assert label.caption.startswith("Error by quantile of the label on test: 10 bins of ")
    assert "200 structures, evenly chosen. 100 of 200 are drawn" in distance.caption
    assert "NaBr made-up-" in distance.svg
    assert re.search(r"NaBr made-up-\d+: [\d.]+ at 0\.500<", distance.svg)


def test_where_all_compositions_are_known_the_page_says_so_and_draws_no_distance():
    found = predictions_of(predictions_frame(400, ("band_gap",)), "band_gap")
    drawn = breakdown.break_down(0, found, (), 100, {})
    assert len(drawn.trends) == 2
    assert any("all distances between compositions are 0" in note for note in drawn.notes)


def test_a_primitive_cell_is_drawn_with_the_images_on_its_faces():
    svg = drawings.draw_structure(structure())
    found = balls(svg)
    sodium = drawings.element_colour(11)
    assert [colour for *_, colour in found].count(sodium) == 8  # one per corner
    assert len(found) == 9
    assert svg.count('class="cell"') == 9
    assert svg.count('class="behind"') == 3
    assert svg.count("<title>Na, atom 1</title>") == 8
    assert all(0 < x < drawings.WIDTH and 0 < y < drawings.HEIGHT for x, y, _ in found)


def test_a_drawing_does_not_depend_on_the_images_that_a_file_chose():
    moved = structure(
        positions=np.array([[0, 0, 0], [2.8, 0, 0]]) + [[2, -1, 3], [0, 5, 1]] @ ROCKSALT
    )
    assert drawings.draw_structure(moved) == drawings.draw_structure(structure())


@pytest.mark.parametrize(
    ("pbc", "edges"), [((0, 0, 0), 0), ((1, 0, 0), 1), ((1, 1, 0), 4), ((1, 1, 1), 12)]
)
def test_edges_are_those_of_the_periodic_directions(pbc, edges):
    svg = drawings.draw_structure(structure(pbc=pbc))
    assert svg.count('class="cell"') + svg.count('class="behind"') == edges


def test_bonds_join_near_atoms_and_not_large_cations():
    water = structure(
        (8, 1, 1), ((0, 0, 0), (0.76, 0.59, 0), (-0.76, 0.59, 0)), np.eye(3), (0, 0, 0)
    )
    assert drawings.draw_structure(water).count("<path d=") == 2
    # 3.96 A between potassium atoms is within their radii, but F is nearer
    salt = structure((19, 19, 9), ((0, 0, 0), (3.96, 0, 0), (1.98, 1.98, 0)), np.eye(3), (0, 0, 0))
    assert drawings.draw_structure(salt).count("<path d=") == 2
    alone = structure((18,), ((0, 0, 0),), np.eye(3), (0, 0, 0))
    assert drawings.draw_structure(alone).count("<path d=") == 0


def test_a_ring_marks_an_atom_and_too_many_atoms_are_not_drawn():
    assert drawings.draw_structure(structure(), {1}).count('class="marked"') == 1
    many = np.random.default_rng(0).uniform(0, 30, (drawings.DRAWN_ATOMS + 1, 3))
    assert drawings.draw_structure(structure([6] * len(many), many, 30 * np.eye(3))) is None
    half = np.random.default_rng(0).uniform(0, 30, (drawings.NAMED_ATOMS + 1, 3))
    svg = drawings.draw_structure(structure([6] * len(half), half, 30 * np.eye(3)))
    assert "<title>" not in svg
    assert "named" not in svg


def test_the_worst_structures_are_drawn_with_a_legend(make_run):
    run = make_run()
    found = predictions_of(pd.read_parquet(run.folder / "predictions.parquet"), "band_gap")
    worst = worst_predictions(found, "test")
    known = {one.id: structure() for one in worst[:-1]}
    asked = []

    def find(ids):
        asked.extend(ids)
        return known

    page, text = page_of(run, replace(run.inputs, structures=find))
    assert asked == [one.id for one in worst]
    assert text.count('<svg class="named" viewBox="0 0 200 170"') == len(known)
    assert "not drawn: the store no longer has it" in page.text
    assert (
        f'<span class="swatch" style="background: {drawings.element_colour(17)}"></span>Cl' in text
    )
    without, _ = page_of(run)
    assert "not drawn" not in without.text


def test_drawings_of_a_page_have_a_limit(monkeypatch):
    found = predictions_of(predictions_frame(400, ("band_gap",)), "band_gap")
    worst = worst_predictions(found, "test")
    one = len(drawings.draw_structure(structure()))
    monkeypatch.setattr(breakdown, "DRAWINGS_SIZE", int(2.5 * one))
    structures = {one.id: structure() for one in worst}
    cards = breakdown.break_down(0, found, worst, 100, structures).cards
    assert [card.svg is not None for card in cards] == [True] * 2 + [False] * 8
    assert {card.reason for card in cards[2:]} == {"not drawn: the page would be too large"}
