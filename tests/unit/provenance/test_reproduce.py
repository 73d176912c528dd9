"""`atomloom reproduce` makes a run again from its card, and says how close it came and why not closer."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from atomloom.api import prepare
from atomloom.cli import main
from atomloom.commands.compare import Agreement, Change
from atomloom.commands.reproduce import Request, Verdict, judge, level_between, reproduce_run
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import weights_digest
from atomloom.pipeline.evidence import Evidence, opened
from atomloom.pipeline.run_card import LEVELS
from atomloom.store.files import file_digest, read_json, write_sealed
from tests.unit.provenance.conftest import change_table, change_weights


def quiet(_):
    """Take no notice."""


@pytest.fixture(scope="module")
def again(original, tmp_path_factory):
    """Repetition of the run, from what lies in its project: folder and verdict."""
    output = tmp_path_factory.mktemp("again")
    before = snapshot(original.folder)
    verdict = reproduce_run(Request(str(original.run), output), prepare, quiet)
    assert snapshot(original.folder) == before, "the original is only read"
    return output, verdict


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evidence(folder: Path, **changes: object) -> Evidence:
    card = dict(read_json(folder / "run.json"))
    for place, value in changes.items():
        section, _, name = place.partition("__")
        card[section] = {**card.get(section, {}), name: value} if name else value
    return Evidence("x", folder, card, folder)


def test_a_run_is_made_again_to_the_bit(original, again):
    output, verdict = again
    assert (verdict.outcome, verdict.level.name) == ("bit-equal", "bit-equal")
    assert [item.kind for item in verdict.agreements] == ["weights", "errors", "predictions"]
    own = output / "results" / "copper" / "runs" / original.run.name
    assert (own / "model.safetensors").stat().st_ino != (
        original.run / "model.safetensors"
    ).stat().st_ino
    assert (
        read_json(own / "run.json")["started"] >= read_json(original.run / "run.json")["finished"]
    )
    assert read_json(output / "reproduction.json")["outcome"] == "bit-equal"
    assert not any(verdict.explanations.values())


def test_a_run_is_made_again_from_its_raw_files_alone(project, tmp_path):
    card = shutil.copy(project.run / "run.json", tmp_path / "card.json")
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / "store")
    os.chdir(project.folder)
    verdict = reproduce_run(Request(str(card), tmp_path / "out", from_raw=True), prepare, quiet)
    assert verdict.outcome == "bit-equal"
    assert all(item.count == 0 for item in verdict.agreements), "there are digests alone"
    assert not (project.folder / "store").exists()


@pytest.fixture(autouse=True)
def _back_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_what_was_made_again_is_compared_and_not_trained_twice(original, again):
    output, _ = again
    own = next(output.glob("results/copper/runs/*"))
    stamp, said = (own / "model.safetensors").stat().st_mtime_ns, []
    verdict = reproduce_run(Request(str(original.run), output), prepare, said.append)
    assert verdict.outcome == "bit-equal"
    assert (own / "model.safetensors").stat().st_mtime_ns == stamp
    assert any("compared without training" in line for line in said)


def test_a_repetition_by_other_options_is_not_taken_for_one_by_these(original, again, tmp_path):
    output = shutil.copytree(again[0], tmp_path / "copy")
    (run,) = output.glob("results/copper/runs/*")
    (tmp_path / "here.yaml").write_text("training: {prefetch: 0}\n")
    for options, named in (
        ({"threads": 2}, r"\(--threads\)"),
        ({"from_raw": True}, r"\(--from-raw\)"),
        ({"config": ["here.yaml"]}, r"\(--config\)"),
        ({"threads": 2, "from_raw": True}, r"\(--from-raw, --threads\)"),
    ):
        if "from_raw" in options:
            os.chdir(original.folder)
        with pytest.raises(AtomloomError, match=f"a repetition by other options {named}"):
            reproduce_run(Request(str(original.run), output, **options), prepare, quiet)
        os.chdir(tmp_path)
    same = Request(str(original.run), output, threads=1)  # as the run had
    assert reproduce_run(same, prepare, quiet).outcome == "bit-equal"
    (run / "repetition.json").unlink()
    with pytest.raises(AtomloomError, match="nothing tells by which options"):
        reproduce_run(Request(str(original.run), output), prepare, quiet)


def test_a_difference_is_told_with_its_place_and_size(original, again, tmp_path):
    output, _ = again
    own = next(output.glob("results/copper/runs/*"))
    changed = shutil.copytree(own, tmp_path / "changed")
    name = change_weights(changed / "model.safetensors")
    change_table(changed / "predictions.parquet")
    metrics = read_json(changed / "metrics.json")
    metrics["volume"]["test"]["mae"] *= 1.25
    (changed / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(AtomloomError, match="is not the one that the card records"):
        judge(evidence(original.run), evidence(changed))
    results = {
        "weights": weights_digest(load_file(changed / "model.safetensors")),
        **{n: file_digest(changed / n) for n in ("metrics.json", "predictions.parquet")},
    }
    verdict = judge(evidence(original.run), evidence(changed, results=results))
    weights, errors, predictions = verdict.agreements
    assert weights.changes[0].name == name
    assert 0.2 < weights.worst <= 0.5
    assert (errors.changes[0].name, errors.worst) == ("volume.test.mae", pytest.approx(0.2))
    table = pd.read_parquet(original.run / "predictions.parquet")
    (change,) = predictions.changes
    assert change.name == f"volume_predicted of {table['id'][0]}"
    assert (change.one, change.other) == (
        table["volume_predicted"][0],
        pytest.approx(0.5 * change.one, rel=1e-15),
    )
    assert predictions.worst == pytest.approx(
        0.5 * change.one / table["volume_predicted"].abs().max()
    )
    assert (verdict.outcome, verdict.success) == ("different", False)
    text = "\n".join(verdict.lines())
    assert name in text
    assert "nothing that the cards record of code, environment and data differs" in text


def test_the_verdict_is_by_the_level_that_holds():
    near = [Agreement("weights", 3, 0.01), Agreement("errors", 2, 0.0)]
    rounding, exact, unknown = (LEVELS[name] for name in ("rounding", "bit-equal", "unmeasured"))
    assert Verdict(rounding, near, {}).outcome == "equal within the level"
    assert Verdict(exact, near, {}).outcome == "different"
    assert Verdict(unknown, near, {}).outcome == "different"
    assert Verdict(unknown, [replace(item, worst=0.0) for item in near], {}).outcome == "bit-equal"
    assert Verdict(rounding, [Agreement("weights", 0, None)], {}).outcome == "different"
    assert Verdict(rounding, [Agreement("errors", 1, 9.0)], {}).outcome == "different"
    assert Verdict(rounding, [], {}).success is False, "nothing compared is nothing reproduced"


def test_the_level_follows_from_what_differs(original):
    run = original.run
    same = evidence(run)
    for changes, level in (
        ({}, "bit-equal"),
        ({"environment__threads": 2}, "rounding"),
        ({"environment__cpu": "another"}, "rounding"),
        ({"environment__torch": "1.0"}, "rounding"),
        ({"environment__snakemake": "1.0"}, "bit-equal"),
        ({"code__sources": "0" * 16}, "rounding"),
        ({"code__sources": "0" * 16, "code__trainer": 99}, "unmeasured"),
        ({"code__commit": "0" * 40, "code__dirty": True}, "bit-equal"),
        ({"environment__device": "NVIDIA H100"}, "unmeasured"),
        ({"loader__window": 1000}, "rounding"),
    ):
        assert level_between(same, evidence(run, **changes)).name == level, changes


def test_explanations_name_what_differs(original):
    verdict = judge(
        evidence(
            original.run, environment__numpy="1.0", code__sources="0" * 16, code__commit="abc"
        ),
        evidence(original.run),
    )
    assert (
        Change("numpy", "1.0", read_json(original.run / "run.json")["environment"]["numpy"])
        in (verdict.explanations["environment"])
    )
    assert {"sources", "commit"} <= {change.name for change in verdict.explanations["code"]}


def edited(run: Path, to: Path, **changes: object) -> str:
    """Card of a run with other entries, sealed."""
    write_sealed(to, evidence(run, **changes).card)
    return str(to)


def test_what_is_missing_in_the_project_is_made_again_from_the_raw_files(project, tmp_path):
    shutil.rmtree(project.folder / "store")
    said: list[str] = []
    verdict = reproduce_run(Request(str(project.run), tmp_path / "out"), prepare, said.append)
    assert verdict.outcome == "bit-equal"
    assert any("are made from the raw files" in line for line in said)


def test_other_data_are_refused_before_anything_is_trained(project, tmp_path):
    source = project.folder / "data" / "cells.extxyz"
    text = source.read_text()
    lines = text.splitlines(keepends=True)
    source.write_text("".join(lines).replace("3.4", "3.5", 1))
    os.chdir(project.folder)
    output = tmp_path / "out"
    with pytest.raises(AtomloomError, match="not those of the card: records differ"):
        reproduce_run(Request(str(project.run), output, from_raw=True), prepare, quiet)
    assert not list(output.glob("results/copper/runs/*"))
    assert not list(output.glob("store/*/*")), "it is refused as soon as there is a plan"
    said: list[str] = []
    verdict = reproduce_run(Request(str(project.run), output / "stored"), prepare, said.append)
    assert verdict.outcome == "bit-equal"
    assert any("data/cells.extxyz has changed" in line for line in said)


def test_missing_raw_files_are_named_with_their_digests(original, tmp_path):
    card = shutil.copy(original.run / "run.json", tmp_path / "card.json")
    with pytest.raises(
        AtomloomError, match=r"raw data are not here.*cells\.extxyz \(digest [0-9a-f]"
    ):
        reproduce_run(Request(str(card), tmp_path / "out"), prepare, quiet)
    tables = {"count": 2, "digest": "0", "listed": [["data/gaps.csv", "12ab"], ["b.csv", "3c"]]}
    labelled = edited(original.run, tmp_path / "labelled.json", data__tables=tables)
    with pytest.raises(
        AtomloomError,
        match=r"cells\.extxyz \(digest .*\), with labels of data/gaps\.csv \(digest 12ab\), b\.csv",
    ):
        reproduce_run(Request(labelled, tmp_path / "out"), prepare, quiet)
    (tmp_path / "here.yaml").write_text(
        f"dataset: {{source: {original.folder / 'data' / 'cells.extxyz'}}}\n"
    )
    request = Request(str(card), tmp_path / "out", config=["here.yaml"])
    assert reproduce_run(request, prepare, quiet).outcome == "bit-equal"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keys__dataset": "0" * 16}, "data or split are not those of the card"),
        ({"keys__run": "0" * 16}, "settings are not those of the card"),
        ({"data__labels": "0" * 16}, "labels differ"),
    ],
    ids=["data", "settings", "labels"],
)
def test_a_card_that_contradicts_what_is_here_is_refused(original, tmp_path, changes, reason):
    run = shutil.copytree(original.folder, tmp_path / "p") / original.run.relative_to(
        original.folder
    )
    edited(original.run, run / "run.json", **changes)
    with pytest.raises(AtomloomError, match=reason):
        reproduce_run(Request(str(run), tmp_path / "out"), prepare, quiet)


def test_a_card_by_a_stranger_runs_no_code_unasked(original, tmp_path):
    config = dict(read_json(original.run / "run.json")["config"])
    feature = {"source": "gamma_frequencies", "calculator": "os:system"}
    for section in (
        {"model": {"name": "os:system"}},
        {"teacher": {"calculator": "os:system"}},
        {"features": {"x": feature}},
    ):
        card = edited(original.run, tmp_path / "card.json", config={**config, **section})
        with pytest.raises(AtomloomError, match=r"os:system, whose code would be run.*--trust os"):
            reproduce_run(Request(card, tmp_path / "out"), prepare, quiet)


def test_a_card_of_before_and_a_run_without_evaluation_are_made_again(project, tmp_path):
    run = project.run
    card = dict(read_json(run / "run.json"))
    for name in ("data", "results", "determinism", "evaluated"):
        del card[name]
    card["code"] = {"commit": None, "dirty": None}
    (run / "run.json").write_text(json.dumps(card))
    alone = shutil.copy(run / "run.json", tmp_path / "card.json")
    with pytest.raises(AtomloomError, match="tells nothing of the results"):
        reproduce_run(Request(str(alone), tmp_path / "out"), prepare, quiet)
    for name in ("metrics.json", "predictions.parquet"):
        (run / name).unlink()
    verdict = reproduce_run(Request(str(run), tmp_path / "out"), prepare, quiet)
    assert [item.kind for item in verdict.agreements] == ["weights"]
    assert verdict.outcome == "bit-equal"
    assert "sources" not in {change.name for change in verdict.explanations["code"]}


def test_a_run_without_model_is_compared_by_digest(project, tmp_path):
    (project.run / "model.safetensors").unlink()
    verdict = reproduce_run(Request(str(project.run), tmp_path / "out"), prepare, quiet)
    assert verdict.outcome == "bit-equal"
    assert {item.kind: item.count for item in verdict.agreements}["weights"] == 0


def test_a_continued_run_is_made_again_from_its_parent(project, tmp_path):
    parent = project.run
    run = project.train(epochs=3, continue_from=parent.name)
    for from_raw in (False, True):
        request = Request(str(run), tmp_path / f"{from_raw}", from_raw=from_raw)
        os.chdir(project.folder)
        assert reproduce_run(request, prepare, quiet).outcome == "bit-equal", from_raw
    shutil.rmtree(parent)
    with pytest.raises(AtomloomError, match=r"continue_from: there is no run"):
        reproduce_run(Request(str(run), tmp_path / "none"), prepare, quiet)


def test_the_status_tells_whether_a_run_was_reproduced(
    original, again, tmp_path, capsys, monkeypatch
):
    output, _ = again
    assert main(["reproduce", str(original.run), "--output", str(output)]) == 0
    assert "verdict: bit-equal (level `bit-equal`)" in capsys.readouterr().out
    monkeypatch.setattr(
        "atomloom.commands.reproduce.compare_results",
        lambda one, other: [Agreement("weights", 3, 0.5)],
    )
    assert main(["reproduce", str(original.run), "--output", str(output), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["outcome"] == "different"
    assert "was not reproduced: different" in printed.err
    inside = str(original.run.parent)
    assert main(["reproduce", str(original.run), "--output", inside]) == 1
    assert "holds the run itself" in capsys.readouterr().err


def test_names_find_the_run_of_a_project(original, monkeypatch):
    monkeypatch.chdir(original.folder)
    for name in ("copper", "results/copper", original.run.name[:7], str(original.run / "run.json")):
        with opened(name, Path("results")) as found:
            assert found.folder == original.run.resolve()


def test_a_run_that_is_not_finished_or_damaged_is_refused_before_training(project, tmp_path):
    model, output = project.run / "model.safetensors", tmp_path / "out"
    model.write_bytes(model.read_bytes()[:3000])
    with pytest.raises(AtomloomError, match=r"model\.safetensors: cannot be read"):
        reproduce_run(Request(str(project.run), output), prepare, quiet)
    (project.run / "run.json").unlink()
    with pytest.raises(AtomloomError, match="the run is not finished"):
        reproduce_run(Request(str(project.run), output), prepare, quiet)
    assert not output.exists()


EDITS = {
    "model.safetensors": change_weights,
    "predictions.parquet": change_table,
    "predictions.csv": lambda path: path.write_text(path.read_text() + "\n"),
    "metrics.json": lambda path: path.write_text(path.read_text().replace("1", "2")),
    "history.csv": lambda path: path.write_text(path.read_text().replace("1", "2")),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_that_is_not_the_cards_is_named_before_anything_is_trained(
    project, original, name, tmp_path, capsys
):
    EDITS[name](project.run / name)
    run, output = str(project.run), str(tmp_path / "out")
    for command in (
        ["reproduce", run, "--output", output],
        ["diff", str(original.run), run],
        ["export-run", run, "-o", output],
    ):
        assert main(command) == 1, command
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name} is not the one that the card records" in line, command
        assert not Path(output).exists()


def test_a_repetition_that_was_edited_is_not_taken_for_equal(original, again, tmp_path):
    copy = shutil.copytree(again[0], tmp_path / "copy")
    (run,) = copy.glob("results/copper/runs/*")
    change_table(run / "predictions.parquet")
    with pytest.raises(AtomloomError, match=r"predictions\.parquet is not the one"):
        reproduce_run(Request(str(original.run), copy), prepare, quiet)
