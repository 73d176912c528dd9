"""Every benchmark starts, knows the options that docs/measured.md shows, and looks nowhere outside by itself."""

from __future__ import annotations

import ast
import importlib
import json
import shlex
from pathlib import Path

import pytest

from benchmarks.common import results, timing
from benchmarks.common.results import Parser
from tests.unit.test_measured import MEASURED

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    f"benchmarks.{folder}.{path.stem}"
    for folder in ("speed", "accuracy", "agreement")
    for path in (ROOT / "benchmarks" / folder).glob("*.py")
)
PEERS = sorted((ROOT / "benchmarks" / "peers").glob("*.py"))


class Started(Exception):
    """A benchmark has come as far as its options."""


@pytest.fixture(scope="module")
def parsers():
    """The parser of each script, as its `main` makes it."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ATOMLOOM_DATA", raising=False)
        for name in SCRIPTS:

            def take(parser, *_, name=name, **__):
                found[name] = parser
                raise Started

            patch.setattr(Parser, "parse_args", take)
            with pytest.raises(Started):
                importlib.import_module(name).main()
    return found


def test_every_benchmark_starts_and_its_help_names_its_command(parsers):
    assert len(parsers) == len(SCRIPTS) > 15
    for name, parser in parsers.items():
        assert f"python -m {name}" in parser.format_help()


def test_every_command_shown_is_one_that_its_benchmark_takes(parsers):
    for *_, command in MEASURED:
        python, module, name, *options = shlex.split(command.strip("`"))
        assert (python, module) == ("python", "-m")
        assert parsers[name].parse_known_args(options)[1] == [], command


def test_no_default_points_outside_the_repository(parsers):
    for name, parser in parsers.items():
        module = vars(importlib.import_module(name)).values()
        for value in (*module, *(action.default for action in parser._actions)):
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
                assert Path(value).is_relative_to(ROOT), (name, value)


def test_without_a_named_folder_there_are_no_data_and_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("ATOMLOOM_DATA", raising=False)
    assert results.find_data("perov5") is None
    with pytest.raises(SystemExit, match="--data or ATOMLOOM_DATA"):
        results.data_path("perov5")
    (tmp_path / "perov5").mkdir()
    monkeypatch.setenv("ATOMLOOM_DATA", "")  # restores what parsing sets
    Parser("Doc.").parse_args(["--data", str(tmp_path)])
    assert results.data_path("perov5") == tmp_path / "perov5"


def test_peers_know_nothing_of_atomloom():
    assert PEERS
    for path in PEERS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("atomloom", "benchmarks")], path


def test_a_result_keeps_the_parts_that_are_not_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    assert results.read_result("some") == {}
    results.write_result("some", {"first": 1} | results.read_result("some"))
    results.write_result("some", results.read_result("some") | {"second": results.machine("numpy")})
    found = json.loads((tmp_path / "results" / "some.json").read_text())
    assert found["first"] == 1
    assert set(found["second"]["versions"]) == {"python", "numpy"}


def test_variants_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []
    told = timing.Seconds(2.0, 1.0)

    def other():
        calls.append("other")
        return told

    times = timing.in_turns({"ours": lambda: calls.append("ours"), "other": other}, rounds=2)
    assert calls == ["ours", "other"] * 3
    assert times["other"] == [told, told]
    assert len(times["ours"]) == 2
    assert timing.clock(times["other"]) == 2.0
    assert timing.processor(times["other"]) == 1.0
