"""The script of the pages, run by a browser without a window: sorting, names of points, no complaint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from atomloom.reports import html, write_report
from atomloom.reports.formats import NONE, byte_size, duration, fixed, number

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"needs a browser to run the script of the report: none of {NAMES}"
)
SCRIPT = Path(html.__file__).with_name("report.js")
CELLS = (
    *("0.5", fixed(-1234.5, 1), NONE, number(3.1e-5, 2)),
    *(duration(125), duration(12), byte_size(1.3e9)),
)
RATES = ("0.0001826", "0.001415", NONE, "0.01", "0.005612", number(3.1e-5, 2), "0.1")
PROBE = """
const told = {};
const column = () => [...document.querySelectorAll("#one tbody tr")].map((row) => row.cells[0].textContent);
const button = document.querySelector("#one th button");
button.click(); told.up = column();
told.state = button.parentNode.getAttribute("aria-sort");
button.click(); told.down = column();
button.click(); told.first = column();
document.querySelectorAll("#one th button")[1].click();
told.names = [...document.querySelectorAll("#one tbody tr")].map((row) => row.cells[1].textContent);
document.querySelectorAll("#one th button")[2].click();
told.rates = [...document.querySelectorAll("#one tbody tr")].map((row) => row.cells[2].textContent);
const tip = document.getElementById("tip");
const svg = document.querySelector("svg.named");
const at = new DOMPoint(42, 31).matrixTransform(svg.getScreenCTM());
const point = (target, x, y, kind) => target.dispatchEvent(new PointerEvent(kind,
  { bubbles: true, clientX: x, clientY: y, pointerType: kind === "pointerdown" ? "touch" : "mouse" }));
point(svg, at.x, at.y, "pointermove"); told.tip = tip.textContent; told.hidden = tip.hidden;
told.ring = svg.querySelectorAll(".ring").length;
point(svg, at.x + 40, at.y + 40, "pointermove"); told.away = tip.hidden;
point(svg, at.x + 16, at.y, "pointermove"); told.apart = tip.hidden;
point(svg, at.x + 16, at.y, "pointerdown"); told.touched = tip.textContent;
point(document.querySelector("abbr"), 5, 5, "pointerdown"); told.abbr = tip.textContent;
told.plain = document.querySelectorAll("#two button").length;
document.getElementById("told").textContent = JSON.stringify(told);
"""


def seen_by_the_browser(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the browser complains of."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--virtual-time-budget=1000"),
            *(f"--user-data-dir={folder / 'profile'}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_tables_are_sorted_and_points_named(tmp_path):
    rows = "".join(
        f"<tr><td class='n'>{cell}</td><td>m-{place * 7 % 10}</td><td>{RATES[place]}</td></tr>"
        for place, cell in enumerate(CELLS)
    )
    page = tmp_path / "page.html"
    page.write_text(
        f"""<!DOCTYPE html><meta charset="utf-8"><title>page</title><link rel="icon" href="data:,">
<table id="one" class="sortable"><thead><tr><th class="n">value</th><th>name</th><th>rate</th></tr></thead>
<tbody>{rows}</tbody></table>
<table id="two"><thead><tr><th>value</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
<abbr title="mean absolute error">MAE</abbr>
<svg class="named" viewBox="0 0 100 100" width="100" height="100">
<circle cx="40" cy="30" r="2"><title>NaCl a-1: 0.5</title></circle>
<circle cx="41" cy="38" r="2"><title>KCl a-2: 0.7</title></circle></svg>
<p id="told"></p><script>{SCRIPT.read_text(encoding="utf-8")}</script><script>{PROBE}</script>""",
        encoding="utf-8",
    )
    text, complaints = seen_by_the_browser(page, tmp_path)
    assert complaints == []
    found = re.search(r'<p id="told">(.*?)</p>', text, re.DOTALL)
    assert found is not None
    told = json.loads(unescape(found[1]))
    ascending = [CELLS[place] for place in (1, 3, 0, 5, 4, 6, 2)]
    assert told["up"] == ascending
    assert told["state"] == "ascending"
    assert told["down"] == [*ascending[-2::-1], NONE]  # what has no value stays last
    assert told["first"] == list(CELLS)
    assert told["names"] == [f"m-{n}" for n in (0, 1, 2, 4, 5, 7, 8)]
    assert told["rates"] == [
        RATES[place] for place in (5, 0, 1, 4, 3, 6, 2)
    ]  # numbers, though not marked
    assert (told["tip"], told["hidden"], told["ring"]) == ("NaCl a-1: 0.5", False, 1)
    assert told["away"]
    assert told["apart"]  # beyond the reach of a mouse, within that of a finger
    assert told["touched"] == "NaCl a-1: 0.5"
    assert told["abbr"] == "mean absolute error"
    assert told["plain"] == 0


def test_the_browser_has_nothing_to_complain_of_in_a_report(make_run, tmp_path):
    run = make_run(targets=("bulk", "poisson"), unit={"bulk": "GPa", "poisson": ""})
    page = write_report(run.inputs, run.folder / "report.html")
    text, complaints = seen_by_the_browser(page, tmp_path)
    assert complaints == []
    assert '<div id="tip"' in text  # the policy of the page lets its own script run
    assert text.count("<th><button") + text.count('<th class="n"><button') > 10
