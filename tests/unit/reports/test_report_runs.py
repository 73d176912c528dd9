"""The report lists the other runs as they were when it was written, with links that can be moved."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from atomloom.pipeline.paths import own_report
from atomloom.pipeline.runs import short_name
from atomloom.reports import relinked, write_report
from atomloom.reports.runs import SHOWN, runs_part

PRESENT = "0123456789abcdef"
KEYS = [f"{place:016x}" for place in range(3)]


def add_run(
    results: Path, key: str, mae: float | None = 0.5, page: bool = True, **training
) -> None:
    """A run with a card, and perhaps errors and a page of its own."""
    run = results / "runs" / key
    run.mkdir(parents=True)
    card = {
        "config": {"training": {"epochs": 3, **training}},
        "epochs_run": 3,
        "target": ["gap"],
        "unit": "eV",
        "seconds": 61.0,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    (run / "run.json").write_text(json.dumps(card))
    (run / "model.safetensors").touch()
    if mae is not None:
        errors = {"gap": {"val": {"mae": mae}, "test": {"mae": 2 * mae}}}
        (run / "metrics.json").write_text(json.dumps(errors))
    if page:
        path = own_report(results, key)
        path.parent.mkdir(exist_ok=True)
        path.write_text("")


@pytest.fixture
def results(tmp_path) -> Path:
    """Results of three runs, the last without a page."""
    folder = tmp_path / "results" / "tiny"
    add_run(folder, KEYS[0], 0.5, seed=0)
    add_run(folder, KEYS[1], 0.25, seed=1)
    add_run(folder, KEYS[2], None, page=False, seed=2)
    return folder


def test_the_present_run_is_marked_and_others_with_pages_are_linked(results):
    part = runs_part(results, KEYS[0], results)
    assert [(row.key, row.present, row.link) for row in part.rows] == [
        (KEYS[1], False, f"reports/{KEYS[1]}.html"),
        (KEYS[0], True, ""),
        (KEYS[2], False, ""),
    ]
    assert part.fields == ("seed",)
    assert [row.values for row in part.rows] == [("1",), ("0",), ("2",)]
    assert part.errors == (("gap", "val", "eV"), ("gap", "test", "eV"))
    assert [row.errors for row in part.rows] == [(0.25, 0.5), (0.5, 1.0), (None, None)]
    assert (part.rows[0].seconds, part.rows[0].when) == (61.0, "2026-01-02 03:04")


def test_classes_have_accuracies(results):
    scores = {"gap": {"val": {"mae": 0.5, "accuracy": 0.75}}}
    (results / "runs" / KEYS[0] / "metrics.json").write_text(json.dumps(scores))
    part = runs_part(results, KEYS[0], results)
    assert part.classes == ("gap",)
    assert [row.errors[0] for row in part.rows] == [0.75, None, None]


def test_the_present_run_is_shown_where_there_are_many_better(results):
    for place in range(SHOWN + 5):
        add_run(results, f"{place:015x}a", 0.01)
    part = runs_part(results, KEYS[0], results)
    assert part.count == SHOWN + 8
    assert len(part.rows) == SHOWN + 1
    assert [row.key for row in part.rows if row.present] == [KEYS[0]]


def test_a_run_in_training_is_unfinished_on_a_page_that_is_read_later(results):
    run = results / "runs" / ("f" * 16)
    (run / "state").mkdir(parents=True)
    (run / "state" / "attempt.json").write_text("{}")
    (run / "state" / "progress.json").write_text('{"epoch": 2, "epochs": 9, "val_mae": {"gap": 3}}')
    part = runs_part(results, KEYS[0], results)
    assert [row.state for row in part.rows if row.key == run.name] == ["unfinished 2/9"]


def test_the_page_holds_the_table_and_says_when_it_was_true(make_run, results, tmp_path):
    run, page = make_run(), results / "report.html"
    add_run(results, PRESENT, 0.3, seed=9)
    write_report(replace(run.inputs, results=results), page)
    text = page.read_text()
    section = text[text.index('<section id="runs">') : text.index('<section id="timing">')]
    assert section.count("<tr") == 5
    assert section.index(short_name(KEYS[1])) < section.index("(this run)")
    assert f'<a href="reports/{KEYS[1]}.html">{short_name(KEYS[1])}</a>' in section
    assert f"{short_name(PRESENT)} (this run)" in section
    assert "runs that were there when this page was written" in section
    before = page.read_bytes()
    write_report(replace(run.inputs, results=results), page)
    assert page.read_bytes() == before, "the same runs give the same bytes"


def test_a_page_without_other_runs_says_so(make_run, tmp_path):
    run, page = make_run(), tmp_path / "report.html"
    write_report(run.inputs, page)
    assert "no other run of this data set was there" in page.read_text()


def test_names_and_values_are_text_and_not_markup(make_run, results):
    add_run(results, PRESENT, 0.3, seed="<script>1</script>")
    run, page = make_run(), results / "report.html"
    write_report(replace(run.inputs, results=results), page)
    assert "&lt;script&gt;1" in page.read_text()


def test_links_lead_to_the_same_files_from_another_folder(tmp_path):
    page = (
        '<a href="#runs">x</a><a href="runs/a/q%20&amp;r.csv">x</a><a href="reports/b.html">x</a>'
        '<a href="https://x.org/y">x</a><link href="data:,"><use xlink:href="#mark"/>'
    )
    moved = relinked(page, tmp_path, tmp_path / "reports")
    assert re.findall(r'href="([^"]*)"', moved) == [
        "#runs", "../runs/a/q%20&amp;r.csv", "b.html", "https://x.org/y", "data:,", "#mark",
    ]  # fmt: skip
    assert relinked(moved, tmp_path / "reports", tmp_path) == page


def test_links_hold_where_the_folder_is_moved_as_a_whole(make_run, results, tmp_path):
    run, page = make_run(), results / "report.html"
    add_run(results, PRESENT, 0.3)
    write_report(replace(run.inputs, results=results), page)
    shutil.move(results, tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere" / "report.html").read_text()
    links = re.findall(r'<th title="[0-9a-f]{16}"><a href="([^"]*)">', text)
    assert len(links) == 2
    assert all((tmp_path / "elsewhere" / link).is_file() for link in links)
