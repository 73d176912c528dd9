"""The report's numbers, on inputs small enough to work out by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from atomloom.errors import AtomloomError
from atomloom.pipeline.quarantine import reason_kind
from atomloom.reports import tables
from atomloom.reports.formats import measured, unit_name


def small_frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "split": ["train", "test", "test", "test"],
            "gap": [1.0, 2.0, 3.0, 4.0],
            "gap_predicted": [1.5, 2.1, 2.7, 4.0],
            "formula": ["NaCl", "NaCl", "Na2O", "MgO"],
            "elements": ["Na,Cl", "Na,Cl", "Na,O", "Mg,O"],
            "n_atoms": [8, 8, 3, 2],
        }
        | columns
    )


def test_element_errors_are_means_over_the_structures_that_contain_the_element():
    errors = tables.element_errors(tables.predictions_of(small_frame(), "gap"), "test")
    found = {e.symbol: (e.count, e.mae) for e in errors}
    assert found["Na"] == (2, pytest.approx(0.2))
    assert found["O"] == (2, pytest.approx(0.15))
    assert found["Cl"] == (1, pytest.approx(0.1))
    assert found["Mg"] == (1, 0)


def test_rare_elements_rank_after_those_with_enough_structures():
    count = tables.RELIABLE
    frame = pd.DataFrame(
        {
            "split": ["test"] * (count + 1),
            "gap": np.zeros(count + 1),
            "gap_predicted": [0.1] * count + [9.0],
            "elements": [["Na"]] * count + [["Xe"]],
        }
    )
    errors = tables.element_errors(tables.predictions_of(frame, "gap"), "test")
    assert [e.symbol for e in errors] == ["Na", "Xe"]


@pytest.mark.parametrize(
    "elements",
    [
        ["Na,Cl", "Na,Cl", "O,Na", "O Mg"],
        [["Na", "Cl"], ("Na", "Cl"), np.array(["Na", "O"]), ["Mg", "O"]],
        None,
    ],
)
def test_elements_come_as_text_as_lists_or_from_the_formula(elements):
    frame = small_frame()
    if elements is None:
        frame = frame.drop(columns="elements")
    else:
        frame["elements"] = pd.Series(elements, dtype=object)
    found = tables.predictions_of(frame, "gap").elements
    assert [set(names) for names in found] == [{"Na", "Cl"}, {"Na", "Cl"}, {"Na", "O"}, {"Mg", "O"}]


def test_worst_predictions_come_largest_error_first():
    worst = tables.worst_predictions(tables.predictions_of(small_frame(), "gap"), "test", 2)
    assert [(w.id, w.n_atoms, round(w.error, 6)) for w in worst] == [("c", 3, -0.3), ("b", 8, 0.1)]


def test_rows_that_cannot_be_compared_are_counted_by_why():
    frame = small_frame(
        gap=[1.0, np.nan, 3.0, 4.0],
        gap_predicted=[1.0, 2.0, np.nan, np.inf],
    )
    found = tables.predictions_of(frame, "gap")
    assert (len(found), found.unlabelled, found.failed) == (1, 1, 2)
    odd = small_frame(split=["train", "test", "holdout", None])
    assert (len(tables.predictions_of(odd, "gap")), tables.strangers(odd)) == (2, 2)


def test_uncertainty_is_the_standard_error_of_the_absolute_errors():
    found = tables.predictions_of(small_frame(), "gap")
    assert found.mae("test") == pytest.approx(0.4 / 3)
    expected = np.std([0.1, 0.3, 0.0], ddof=1) / np.sqrt(3)
    assert found.mae_uncertainty("test") == pytest.approx(expected)
    assert found.mae_uncertainty("train") is None
    assert found.mae("val") is None


def test_uncertainty_follows_what_the_split_kept_together():
    """Two structures of one group say no more than one, where they err alike."""
    frame = small_frame(gap_predicted=[1.5, 2.1, 3.1, 4.5])  # absolute errors 0.1, 0.1, 0.5
    alone = tables.predictions_of(frame, "gap").mae_uncertainty("test")
    found = tables.predictions_of(frame, "gap", groups={"b": "1", "c": "1", "d": "2"})
    assert found.independent("test") == 2
    mean = 0.7 / 3
    sums = np.array([0.2 - 2 * mean, 0.5 - mean])
    assert found.mae_uncertainty("test") == pytest.approx(np.sqrt(2 * (sums**2).sum()) / 3)
    assert found.mae_uncertainty("test") > alone
    one = tables.predictions_of(frame, "gap", groups=dict.fromkeys("bcd", "1"))
    assert one.mae_uncertainty("test") is None


def test_components_are_no_structures_and_those_of_one_structure_err_together():
    rows = pd.DataFrame(
        {
            "id": ["a"] * 6 + ["b"] * 3,
            "split": "test",
            "elements": ["Ti"] * 3 + ["O"] * 6,
            "atom": [0] * 3 + [1] * 3 + [0] * 3,
            "component": [0, 1, 2] * 3,
            "forces": 0.0,
            "forces_predicted": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.4, 0.4],
        }
    )
    found = tables.predictions_of(rows, "forces", "eV/A")
    assert (found.noun, found.of_atoms, found.unit) == ("component", True, "eV/Å")
    assert (found.structures("test"), found.independent("test")) == (2, 2)
    sums = np.array([6 * (0.1 - 0.2), 3 * (0.4 - 0.2)])
    assert found.mae_uncertainty("test") == pytest.approx(np.sqrt(2 * (sums**2).sum()) / 9)
    by_element = {e.symbol: (e.count, e.mae) for e in tables.element_errors(found, "test")}
    assert by_element == {"Ti": (3, pytest.approx(0.1)), "O": (6, pytest.approx(0.25))}


def test_structures_of_the_same_elements_have_no_errors_by_element():
    same = small_frame(elements=["Ti,O"] * 4, formula="TiO2")
    assert tables.element_errors(tables.predictions_of(same, "gap"), "test") == ()


@pytest.mark.parametrize(
    ("group", "column", "expected"),
    [
        ("family", "text:family", {"a": "x", "b": "y"}),
        ("formula", "formula", {"a": "x", "b": "y"}),
        (None, "formula", {}),
        ("family", "other", {}),
    ],
)
def test_groups_are_those_that_the_config_names(tmp_path, group, column, expected):
    pd.DataFrame({"id": ["a", "b"], column: ["x", "y"]}).to_parquet(tmp_path / "dataset.parquet")
    card = tables.RunCard({"config": {"split": {"group": group}}})
    assert tables.read_groups(tmp_path / "dataset.parquet", card) == expected
    assert tables.read_groups(tmp_path / "none.parquet", card) == {}


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("eV/A", "eV/Å"), ("eV/A^3", "eV/Å³"), ("eV/Ang", "eV/Å"), ("A", "Å"), ("A^2", "Å²"),
        ("cm^-1", "cm⁻¹"), ("meV/atom", "meV/atom"), ("A/m", "A/m"), ("mA", "mA"), ("eV", "eV"),
        ("", ""), ("eV/Å", "eV/Å"), ("kJ/mol/A", "kJ/mol/Å"), ("A/m^2", "A/m²"), ("AU", "AU"),
    ],
)  # fmt: skip
def test_units_are_printed_as_the_field_prints_them(written, printed):
    assert unit_name(written) == printed


def test_small_errors_of_energies_per_atom_are_told_in_mev():
    assert measured(0.01234, "eV/atom") == ("12.3", "meV/atom")
    assert measured(0.1234, "eV/atom") == ("0.123", "eV/atom")
    assert measured(0.01234, "eV") == ("0.0123", "eV")
    assert measured(None, "eV/atom")[1] == "eV/atom"


def test_reasons_are_grouped_without_numbers_names_and_advice():
    def kind(reason: str) -> str:
        return reason_kind(reason, ("raw/x.cif", "mp-1"))

    assert kind("atoms 3 and 17 are 0.12 A apart; raise it") == kind(
        "atoms 1 and 2 are 0.3 A apart"
    )
    assert kind("raw/x.cif: lattice is singular") == "lattice is singular"
    assert kind("mp-1: no label") == kind("mp-77: no label") == "no label"
    assert kind("") == "no reason given"


def test_timings_are_summed_by_stage_in_the_order_of_the_pipeline(tmp_path):
    def table(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    table("train/run.tsv", "s\tmax_rss\n100.5\t2048\n")
    table("convert/a.tsv", "s\tmax_rss\n2.0\t300\n")
    table("convert/deep/b.tsv", "s\tmax_rss\n3.0\t-\n")
    table("own_stage/x.tsv", "s\n1.0\n")
    table("convert/killed.tsv", "")
    table("convert/other.tsv", "not\ta benchmark\n1\t2\n")
    found = tables.read_timings(tmp_path)
    assert [(t.stage, t.jobs, t.seconds, t.longest, t.max_memory) for t in found] == [
        ("convert", 2, 5.0, 3.0, 300.0),
        ("train", 1, 100.5, 100.5, 2048.0),
        ("own_stage", 1, 1.0, 1.0, None),
    ]


@pytest.mark.parametrize("histogram", [[0, 0, 5, 0, 7], {"2": 5, "4": 7}])
def test_neighbour_histogram_comes_as_counts_or_pairs(tmp_path, histogram):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"structures": 2, "atoms": 12, "neighbors_histogram": histogram}))
    found = tables.read_graph_statistics(path)
    assert found.neighbors == ((2, 5.0), (4, 7.0))
    assert found.edges is None


def test_units_are_one_for_all_or_one_a_target():
    def unit(value: object) -> str:
        return tables.RunCard({"target": ["gap", "bulk"], "unit": value}).unit("bulk")

    assert unit("eV") == "eV"
    assert unit({"gap": "eV", "bulk": "GPa"}) == "GPa"
    assert unit(["eV", "GPa"]) == "GPa"
    assert unit(None) == unit({"gap": "eV"}) == ""


def test_every_element_has_its_own_place_in_the_periodic_table():
    assert len(tables.POSITIONS) == 118
    assert len(set(tables.POSITIONS.values())) == 118
    assert tables.POSITIONS["Fe"] == (4, 8)
    assert tables.POSITIONS["I"] == (5, 17)
    assert all(1 <= column <= 18 for _, column in tables.POSITIONS.values())


def test_damaged_files_are_named(tmp_path):
    broken = tmp_path / "predictions.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(AtomloomError, match=r"predictions\.parquet.*cannot be read as a table"):
        tables.read_frame(broken)
    listed = tmp_path / "run.json"
    listed.write_text("[1]")
    with pytest.raises(AtomloomError, match="not a JSON object"):
        tables.read_run_card(listed)
    with pytest.raises(AtomloomError, match="no column `split`"):
        tables.predictions_of(small_frame().drop(columns="split"), "gap")
