"""Files are written whole, with the mode of any other file, to the place that was meant."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from atomloom import load_config
from atomloom.cli import main
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import ModelCard, write_model
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.pipeline.paths import Layout
from atomloom.store.files import expand_home, write_atomically, write_json, write_text
from atomloom.store.shards import write_shard
from atomloom.training.checkpoint import save_state
from tests.workflow.project import CONFIG

SCALE = TargetScaler(np.zeros(1), np.ones(1), np.zeros(1, dtype=bool))
CARD = ModelCard.of(parse_config(CONFIG), SCALE, {})
ARRAY = np.random.default_rng(0).normal(size=20_000)
WRITERS = {
    "text": lambda path: write_text(path, "x" * 200_000),
    "json": lambda path: write_json(path, ARRAY.tolist()),
    "model": lambda path: write_model(path, {"weight": torch.tensor(ARRAY)}, CARD),
    "state": lambda path: save_state(path, "key", {"weight": torch.tensor(ARRAY)}),
    "shard": lambda path: write_shard(path, {"array": ARRAY}, {}),
    "parquet": lambda path: write_atomically(path, pd.DataFrame({"a": ARRAY}).to_parquet),
    "csv": lambda path: write_atomically(path, pd.DataFrame({"a": ARRAY}).to_csv),
}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path, writer, umask):
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_finds_no_room_is_one_line_and_leaves_what_was_there(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(AtomloomError, match=r"cannot be written: .*File too large") as caught:
            WRITERS[writer](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(caught.value)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- the home folder ---


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and a working folder beside it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_tilde_in_any_path_of_a_config_is_the_home_folder(home):
    content = {
        **CONFIG,
        "dataset": {
            **CONFIG["dataset"],
            "source": ["~/data"],
            "labels": {"file": "~/labels.csv"},
        },
        "teacher": {"calculator": "atomloom", "model": "~/model.safetensors"},
        "split": {"kind": "folds", "folds_file": "~/folds.json"},
        "paths": {"results": "~/results", "store": "~/store"},
    }
    (home / "data").mkdir()
    for name in ("labels.csv", "model.safetensors", "folds.json", "data/a.cif"):
        (home / name).write_text("")
    write_json(Path("c.yaml"), content)
    layout = Layout(load_config("c.yaml"))
    from atomloom.stages.sources import source_files, table_files

    assert layout.store == home / "store"
    assert layout.results == home / "results" / "tiny"
    assert source_files(layout) == [home / "data" / "a.cif"]
    assert table_files(layout) == [home / "labels.csv", home / "folds.json"]
    assert layout.teacher_spec["model"], "the model file was found"


def test_a_tilde_in_any_argument_is_the_home_folder(home, capsys):
    (home / "data").mkdir()
    (home / "store" / "structures").mkdir(parents=True)
    (home / "data" / "a.xyz").write_text("1\n\nH 0 0 0\n")
    for arguments in (["inspect", "~/data"], ["verify", "~/store"]):
        assert main(arguments) == 0
    assert main(["plan", "--config", "~/c.yaml", "--log=~/plan.log"]) == 1
    assert f"{home}/c.yaml" in capsys.readouterr().err
    assert (home / "plan.log").exists()
    assert not list(Path().iterdir()), "no folder of that name"


def test_nothing_is_written_to_a_folder_named_tilde(home):
    with pytest.raises(AtomloomError, match="whole path"):
        write_text(Path("~/x"), "")
    with pytest.raises(AtomloomError, match="home folder is not known"):
        expand_home("~nobody-of-this-name/x")
    Path("~notes.cif").write_text("")
    assert expand_home("~notes.cif") == "~notes.cif", "a file of such a name is what it is"
    assert [p.name for p in Path().iterdir()] == ["~notes.cif"]


def test_a_log_that_cannot_be_written_is_one_line(home, capsys):
    log = home / "blocked" / "plan.log"
    log.parent.write_text("a file")
    assert main(["plan", "--config", "none.yaml", "--log", str(log)]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_what_the_system_refuses_anywhere_is_one_line(home, capsys, monkeypatch):
    def refused(path):
        Path("blocked").write_text("a file")
        yield str(Path("blocked/folder").mkdir())

    monkeypatch.setattr("atomloom.commands.inspection.inspect_path", refused)
    assert main(["inspect", "."]) == 1
    assert capsys.readouterr().err == "atomloom inspect: blocked/folder: Not a directory\n"
    with pytest.raises(NotADirectoryError):
        main(["inspect", ".", "--debug"])
