"""A run card holds what a run was made of and what came of it, as digests that can be checked."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atomloom.api import prepare
from atomloom.config import load_config
from atomloom.inference.model_file import weights_digest
from atomloom.pipeline import run_card
from atomloom.pipeline.run_card import (
    code_state,
    history_digest,
    level_of,
    lock_digest,
    record_results,
    sources_digest,
)
from atomloom.pipeline.stage_table import STAGES
from atomloom.store.files import file_digest, read_json, write_sealed

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def card(original) -> dict:
    return read_json(original.run / "run.json")


def test_the_card_holds_digests_of_all_results(original, card):
    run = original.run
    assert card["results"] == {
        "weights": weights_digest(load_file(run / "model.safetensors")),
        "history": history_digest(run / "history.csv"),
        **{
            name: file_digest(run / name)
            for name in ("metrics.json", "metrics.csv", "predictions.csv", "predictions.parquet")
        },
    }
    assert card["evaluated"] == {"device": "cpu", "threads": 1}


def test_the_card_holds_the_data_by_digest_and_the_raw_files_by_name(original, card):
    data, source = card["data"], original.folder / "data" / "cells.extxyz"
    assert data["files"]["listed"] == [["data/cells.extxyz", file_digest(source)]]
    plan = read_json(next(original.folder.glob("results/copper/plan/*/plan.json")))
    assert (data["members"], data["labels"]) == (plan["members_digest"], plan["labels_digest"])
    assert data["index"] == card["keys"]["index"]


def test_a_long_list_of_raw_files_is_in_the_card_by_its_digest_alone():
    few, many = (
        run_card._list_of([[f"{n}.cif", f"{n:032x}"] for n in range(count)])
        for count in (run_card.LISTED, run_card.LISTED + 1)
    )
    assert len(few["listed"]) == run_card.LISTED
    assert "listed" not in many
    assert (many["count"], many["digest"] == few["digest"]) == (run_card.LISTED + 1, False)


def test_the_card_names_code_lock_file_and_level(card):
    assert card["code"] == code_state()
    assert (
        card["environment"]["lock"]
        == lock_digest()
        == file_digest(ROOT / "envs" / "requirements.lock")
    )
    assert card["determinism"]["level"] == "bit-equal"


def test_only_one_cpu_process_without_a_compiler_is_promised_bits():
    assert level_of("cpu").name == "bit-equal"
    assert level_of("cpu", processes=2).name == level_of("cpu", compiled=True).name == "rounding"
    assert level_of("NVIDIA H100").name == "unmeasured"


def test_a_history_digest_knows_no_times(tmp_path):
    one, other, third = (tmp_path / name for name in "abc")
    one.write_text("epoch,val_mae,seconds,data_seconds\n1,0.5,1.0,0.1\n")
    other.write_text("epoch,val_mae,seconds,data_seconds\n1,0.5,2.0,0.3\n")
    third.write_text("epoch,val_mae,seconds,data_seconds\n1,0.6,2.0,0.3\n")
    assert history_digest(one) == history_digest(other) != history_digest(third)


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_code_is_known_by_its_digest_with_and_without_git(tmp_path, monkeypatch):
    package = tmp_path / "project" / "workflow" / "atomloom"
    shutil.copytree(
        ROOT / "workflow" / "atomloom", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(run_card, "__file__", str(package / "pipeline" / "run_card.py"))
    plain = code_state()
    assert plain["sources"] == sources_digest(ROOT / "workflow" / "atomloom")
    assert (plain["commit"], plain["dirty"]) == (None, None)
    git(package, "init", "-q")
    git(package, "commit", "-q", "--allow-empty", "-m", "x")
    assert code_state() == plain, "a repository that the package is not part of says nothing"
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "x")
    committed = code_state()
    assert (len(committed["commit"]), committed["dirty"]) == (40, False)
    (package / "new.py").write_text("x = 1\n")
    sources_digest.cache_clear()
    changed = code_state()
    assert changed["dirty"] is True
    assert changed["sources"] != plain["sources"]
    sources_digest.cache_clear()


def test_a_finished_run_that_is_trained_again_keeps_the_digests_of_its_evaluation(
    project, monkeypatch
):
    monkeypatch.chdir(project.folder)
    places = prepare(load_config("mine.yaml"), lambda _: None)
    card = project.run / "run.json"
    before = read_json(card)
    STAGES["train"].run(places, lambda _: None)
    after = read_json(card)
    assert after["started"] != before["started"], "the card was written again"
    assert after["results"] == before["results"]
    assert after["evaluated"] == before["evaluated"]
    write_sealed(card, before | {"results": before["results"] | {"weights": "of another training"}})
    STAGES["train"].run(places, lambda _: None)
    assert set(read_json(card)["results"]) == {"weights", "history"}


def test_results_are_added_to_a_card_and_to_none_where_there_is_none(tmp_path):
    record_results(tmp_path, {"metrics.json": "a"})
    assert not any(tmp_path.iterdir())
    (tmp_path / "run.json").write_text(json.dumps({"results": {"weights": "w"}}))
    record_results(tmp_path, {"metrics.json": "a"}, evaluated={"threads": 1})
    assert read_json(tmp_path / "run.json") == {
        "results": {"weights": "w", "metrics.json": "a"},
        "evaluated": {"threads": 1},
    }
