"""The plan says how many files a data set will have, and warns where a quota of files may be too small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from atomloom.cli import main
from atomloom.stages import plan
from tests.unit.eight_structures import write_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of eight structures in small chunks."""
    monkeypatch.chdir(write_project(tmp_path))
    config = yaml.safe_load(Path("my.yaml").read_text())
    config["dataset"]["chunks"] = {"mean": 2, "min": 1, "max": 4}
    Path("my.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_as_many_files_come_as_the_plan_says(project, capsys):
    assert main(["plan", "--config", "my.yaml"]) == 0
    line = re.search(
        r"files of chunks: (\d+) shards in the store; (\d+) times", capsys.readouterr().err
    )
    assert line is not None
    shards, times = map(int, line.groups())
    for stage in ("convert", "graphs"):
        assert main([stage, "--config", "my.yaml", "--workers", "1"]) == 0
    assert shards == len(list(project.glob("store/**/*.zarr.zip"))) > 2
    made = [path.parent.name for path in project.glob("results/*/timings/*/*.tsv")]
    assert times == made.count("convert") + made.count("graphs")
    assert "warning" not in capsys.readouterr().err


def test_very_many_files_are_warned_of_with_the_key_to_change(project, capsys, monkeypatch):
    monkeypatch.setattr(plan, "MANY_FILES", 5)
    assert main(["plan", "--config", "my.yaml"]) == 0
    assert re.search(
        r"warning: \d+ files may be more .*dataset\.chunks\.mean \(now 2\)", capsys.readouterr().err
    )
