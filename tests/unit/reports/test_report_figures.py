"""Figures say what they show: axes with units, points with names, nothing that leaks into the page."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from atomloom.errors import AtomloomError
from atomloom.reports import figures, tables
from atomloom.reports.figures import Course
from tests.unit.reports.conftest import predictions_frame


def predictions(count: int = 60, target: str = "band_gap", unit: str = "eV") -> tables.Predictions:
    return tables.predictions_of(predictions_frame(count, (target,)), target, unit)


def labels(figure) -> tuple[str, str]:
    return figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()


def all_figures():
    course = Course(np.arange(1.0, 9.0), "epoch", 5.0)
    curve = np.linspace(1.0, 0.1, 8)
    ((_, parity, _),) = figures.parity_figures(predictions())
    timings = (tables.StageTiming("train", 1, 12.0, 12.0, 100.0),)
    graphs = tables.GraphStatistics(1, 10, 120, 700, ((12, 9.0), (13, 1.0)))
    return {
        "parity": (parity, ("reference band_gap (eV)", "predicted band_gap (eV)")),
        "errors": (
            figures.error_figure(predictions())[0],
            ("error of band_gap, predicted \u2212 reference (eV)", "structures of the split (%)"),
        ),
        "loss": (
            figures.loss_figure(course, {"train": curve, "val": curve + 0.1}, "loss (mse)"),
            ("epoch", "loss (mse)"),
        ),
        "validation": (
            figures.validation_figure(course, {"band_gap": curve}, "eV"),
            ("epoch", "validation MAE of band_gap (eV)"),
        ),
        "rate": (figures.learning_rate_figure(course, curve), ("epoch", "learning rate")),
        "stages": (figures.stage_figure(timings), ("time of all jobs (s)", "stage")),
        "epoch times": (
            figures.epoch_time_figure(course, {"data": curve, "forward": curve}),
            ("epoch", "time per epoch (s)"),
        ),
        "neighbours": (figures.neighbor_figure(graphs), ("neighbours per atom", "atoms (%)")),
    }


@pytest.mark.parametrize("name", list(all_figures()))
def test_every_axis_has_a_label_and_its_unit(name):
    figure, expected = all_figures()[name]
    assert labels(figure) == expected


def test_one_slow_epoch_does_not_flatten_the_others():
    usual = np.full(40, 0.2)
    assert figures.longest_shown(usual) == 0.2
    first_compiles = np.concatenate(([14.0], usual))
    assert 0.2 < figures.longest_shown(first_compiles) < 0.3
    assert figures.longest_shown(np.concatenate(([0.5], usual))) == 0.5
    course = figures.Course(np.arange(1.0, 42.0), "epoch", None)
    (axes,) = figures.epoch_time_figure(course, {"forward": first_compiles}).axes
    assert axes.get_ylabel() == "time per epoch (ms)"
    assert axes.get_ylim()[1] < 400


@pytest.mark.parametrize("name", list(all_figures()))
def test_a_drawing_takes_colours_and_font_from_the_page_and_gives_it_nothing(name):
    figure, _ = all_figures()[name]
    text = figures.inline_svg(figure, name.replace(" ", "-"), "what is shown")
    assert text.startswith("<svg ")
    assert 'aria-label="what is shown"' in text
    assert "var(--ink)" in text
    assert not any(colour in text for colour in (figures.LIGHT.ink, figures.LIGHT.muted))
    assert "font-family" not in text
    assert "<style" not in text
    assert "<metadata" not in text


def test_a_drawing_is_the_same_each_time_and_shares_no_id_with_another():
    one, again, other = (
        figures.inline_svg(figures.parity_figures(predictions())[0][1], name, "alt")
        for name in ("one", "one", "other")
    )
    assert one == again
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_points_name_their_structure():
    found = predictions(30)
    _, figure, tips = figures.parity_figures(found)[0]
    text = figures.inline_svg(figure, "parity", "alt", tips)
    assert sum(map(len, tips.values())) == 30
    assert text.count("<title>") == 30
    row = int(np.flatnonzero(found.of("test"))[0])
    assert f"{found.formula[row]} {found.id[row]}: " in text


def test_a_name_with_markup_stays_text():
    frame = predictions_frame(10, ("gap",))
    frame["id"] = "<script>alert(1)</script>"
    _, figure, tips = figures.parity_figures(tables.predictions_of(frame, "gap"))[0]
    text = figures.inline_svg(figure, "parity", '"><b>', tips)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "<b>" not in text


def test_many_points_become_pixels_and_very_many_a_density_a_split():
    ((_, figure, tips),) = figures.parity_figures(predictions(figures.VECTOR_POINTS + 1))
    text = figures.inline_svg(figure, "many", "alt", tips)
    assert {name: len(texts) for name, texts in tips.items()} == {
        "points-largest": figures.OUTLIERS
    }
    assert text.count("<title>") == figures.OUTLIERS
    assert "data:image/png;base64," in text
    assert len(text) < 200_000
    panels = figures.parity_figures(predictions(figures.SCATTER_POINTS + 1))
    assert [what for what, _, _ in panels] == ["test", "validation", "training"]
    for what, figure, tips in panels:
        assert labels(figure) == ("reference band_gap (eV)", "predicted band_gap (eV)")
        assert len(tips["points-largest"]) == figures.OUTLIERS
        assert len(figures.inline_svg(figure, what, "alt")) < 100_000


def test_the_largest_errors_are_those_with_names():
    found = predictions(figures.VECTOR_POINTS + 1)
    ((_, _, tips),) = figures.parity_figures(found)
    worst = found.id[np.argmax(np.abs(found.error))]
    assert f" {worst}: " in tips["points-largest"][0]
    best = found.id[np.argmin(np.abs(found.error))]
    assert not any(f" {best}: " in tip for tip in tips["points-largest"])


def test_both_axes_of_a_parity_plot_are_alike():
    axes = figures.parity_figures(predictions())[0][1].axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1


def test_a_histogram_says_how_many_errors_it_leaves_out():
    frame = predictions_frame(400, ("gap",))
    figures_all = figures.error_figure(tables.predictions_of(frame, "gap"))
    assert figures_all[2] < 8
    frame.loc[3, "gap_predicted"] = 1e6
    _, reach, beyond = figures.error_figure(tables.predictions_of(frame, "gap"))
    assert reach < 1
    errors = np.abs(frame["gap_predicted"] - frame["gap"])
    assert beyond == (errors > reach).sum() >= 1


def test_the_legend_of_a_histogram_of_errors_is_above_its_bars():
    figure, _, _ = figures.error_figure(predictions())
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1 - 1
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.bbox.y1


def test_perfect_and_single_predictions_can_be_drawn():
    frame = predictions_frame(1, ("gap",))
    frame["gap_predicted"] = frame["gap"]
    found = tables.predictions_of(frame, "gap")
    assert figures.inline_svg(figures.parity_figures(found)[0][1], "one", "alt")
    assert figures.inline_svg(figures.error_figure(found)[0], "zero", "alt")


def test_long_names_are_shortened_and_units_go_to_the_next_line():
    figure = figures.validation_figure(
        Course(np.arange(1.0, 3.0), "epoch", None),
        {"cohesive_energy_per_atom": np.ones(2)},
        "eV/atom",
    )
    assert labels(figure)[1] == "validation MAE of cohesive_energy_per_atom\n(eV/atom)"
    assert "…" in figures._label("x" * 200, "eV", 3.0)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_parity_figure_is_written_in_the_format_of_its_ending(tmp_path, ending):
    frame = predictions_frame(50, ("gap",))
    path = figures.parity_figure(frame, "gap", "eV", tmp_path / f"parity{ending}")
    first = path.read_bytes()
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])
    assert figures.parity_figure(frame, "gap", "eV", path).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_parity_figure_has_a_panel_a_target_and_takes_a_temporary_name(tmp_path):
    frame = predictions_frame(50, ("gap", "bulk"))
    one = figures.parity_figure(frame, "gap", "eV", tmp_path / "one.png")
    two = figures.parity_figure(
        frame, ["gap", "bulk"], {"gap": "eV", "bulk": "GPa"}, tmp_path / ".two.png.1f.tmp"
    )
    with Image.open(one) as narrow, Image.open(two) as wide:
        assert narrow.format == wide.format == "PNG"
        assert wide.width > 1.8 * narrow.width
    many = predictions_frame(figures.SCATTER_POINTS + 1, ("gap",))
    with Image.open(figures.parity_figure(many, "gap", "eV", tmp_path / "many.png")) as image:
        assert image.width > 2.5 * narrow.width


def test_the_parity_figure_refuses_what_it_cannot_draw(tmp_path):
    frame = predictions_frame(5, ("gap",))
    with pytest.raises(AtomloomError, match=r"\.png, \.svg or \.pdf"):
        figures.parity_figure(frame, "gap", "eV", tmp_path / "parity.gif")
    with pytest.raises(AtomloomError, match="no finite predictions of 'bulk'"):
        figures.parity_figure(frame, "bulk", "eV", tmp_path / "parity.png")


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    figures.inline_svg(figures.parity_figures(predictions())[0][1], "settings", "alt")
    assert dict(matplotlib.rcParams) == before


def test_settings_of_the_caller_do_not_reach_the_figures():
    plain = figures.inline_svg(figures.parity_figures(predictions())[0][1], "plain", "alt")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "text.usetex": True}):
        figure = figures.parity_figures(predictions())[0][1]
        assert figures.inline_svg(figure, "plain", "alt") == plain
