"""`atomloom predict`: tables by models of both kinds, in chunks, and the same after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

import atomloom
from atomloom.cli import main
from atomloom.commands import predict as stage
from atomloom.config.model import CrystalTransformerConfig
from atomloom.config.training import Batching
from atomloom.errors import AtomloomError
from atomloom.models.crystal_transformer import CrystalTransformer
from atomloom.potentials.evaluation import calculate_batch
from tests.unit.potentials.models import write_potential, write_property_model


def crystals(count: int) -> list:
    found = []
    for place in range(count):
        crystal = bulk("Cu", cubic=True) * (1, 1, 1 + place % 3)
        crystal.rattle(0.05, seed=place)
        found.append(crystal)
    return found


@pytest.fixture
def frames(tmp_path):
    """A file of 23 crystals, of which two cannot be predicted, and one has atoms too close for the
    model."""
    found = crystals(23)
    found[4] = bulk("Al")
    found[7].positions[1] = found[7].positions[0] + 0.05
    path = tmp_path / "frames.extxyz"
    write(path, found)
    return path


def call(*arguments) -> int:
    return main(["predict", *map(str, arguments)])


def test_energies_and_forces_are_those_of_the_calculator(copper, frames, tmp_path):
    output = tmp_path / "out" / "table.parquet"
    assert call("--model", copper, "--source", frames, "--output", output, "--forces", "--chunk", 5,
                "--batch-atoms", 20) == 0  # fmt: skip
    table = pd.read_parquet(output)
    forces = pd.read_parquet(output.with_name("table.forces.parquet"))
    good = [crystal for place, crystal in enumerate(crystals(23)) if place not in (4, 7)]
    assert table["record"].tolist() == [place for place in range(23) if place not in (4, 7)]
    assert table["n_atoms"].tolist() == [len(crystal) for crystal in good]
    assert set(table["source"]) == {str(frames)}
    wanted = calculate_batch(copper, good)
    assert np.allclose(table["energy"], wanted.energy, atol=1e-5)
    assert np.allclose(table["energy_per_atom"], table["energy"] / table["n_atoms"], rtol=1e-12)
    assert forces["row"].tolist() == np.repeat(np.arange(21), table["n_atoms"]).tolist()
    assert forces["atom"].tolist() == [i for crystal in good for i in range(len(crystal))]
    assert set(forces["element"]) == {"Cu"}
    found = forces[["force_x", "force_y", "force_z"]].to_numpy()
    # Coordinates in the file have eight decimals.
    assert np.allclose(found, wanted.forces, atol=1e-5)
    refused = pd.read_csv(output.with_name("table.quarantine.csv"))
    assert refused["record"].tolist() == [4, 7]
    assert "not trained on Al" in refused["reason"][0]
    assert "apart" in refused["reason"][1]
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "table.forces.parquet",
        "table.parquet",
        "table.quarantine.csv",
    ]


def test_structures_that_only_the_model_refuses_go_to_quarantine(copper, tmp_path):
    """Farther apart than the checks want, closer than the model knows."""
    found = crystals(6)
    found[2].positions[1] = found[2].positions[0] + [0.0, 0.0, 0.45]
    source, output = tmp_path / "frames.extxyz", tmp_path / "table.parquet"
    write(source, found)
    strict = write_potential(tmp_path / "strict.safetensors", min_distance=0.5)
    assert call("--model", strict, "--source", source, "--output", output) == 0
    assert pd.read_parquet(output)["record"].tolist() == [0, 1, 3, 4, 5]
    assert "0.450 A apart" in pd.read_csv(tmp_path / "table.quarantine.csv")["reason"][0]


def test_property_models_predict_their_targets(tmp_path, frames):
    models = [write_property_model(tmp_path / f"{s}.safetensors", s) for s in (0, 1)]
    output = tmp_path / "gaps.parquet"
    assert call("--model", models[0], "--source", frames, "--output", output) == 0
    table = pd.read_parquet(output)
    # It knows aluminium, too: only the overlapping atoms are refused.
    assert len(table) == 22
    wanted = np.stack(
        [atomloom.load_model(path).predict(atomloom.read(frames)[:4])[:, 0] for path in models]
    )
    assert np.allclose(table["gap"][:4], wanted[0], atol=1e-5)
    assert call("--model", *models, "--source", frames, "--output", output) == 0
    table = pd.read_parquet(output)
    assert np.allclose(table["gap"][:4], wanted.mean(axis=0), atol=1e-5)
    assert np.allclose(table["gap_std"][:4], wanted.std(axis=0, ddof=1), atol=1e-5)
    assert call("--model", models[0], "--source", frames, "--output", output, "--forces") == 1


def refusals(output) -> list[str]:
    return pd.read_csv(output.with_name(f"{output.stem}.quarantine.csv"))["reason"].tolist()


def test_what_the_model_was_trained_under_is_what_structures_are_checked_by(tmp_path):
    sparse = bulk("Cu", cubic=True)
    sparse.set_cell([40, 40, 40])
    close = bulk("Cu", cubic=True)
    close.positions[1] = close.positions[0] + [0, 0, 0.9]
    source, output = tmp_path / "frames.extxyz", tmp_path / "table.parquet"
    write(source, [bulk("Cu"), sparse, close])
    usual = write_property_model(tmp_path / "usual.safetensors")
    loose = write_property_model(tmp_path / "loose.safetensors", max_volume_per_atom=1e5)
    strict = write_property_model(tmp_path / "strict.safetensors", min_distance=1.0)
    for models, kept in (
        ([usual], [0, 2]),
        ([loose], [0, 1, 2]),
        ([strict], [0]),
        ([usual, strict], [0]),
    ):
        assert call("--model", *models, "--source", source, "--output", output) == 0
        assert pd.read_parquet(output)["record"].tolist() == kept
    assert call("--model", usual, "--source", source, "--output", output) == 0
    assert refusals(output) == [
        "a volume of 16000 A^3 per atom, more than 10000; a molecule in a box? set --option box=molecule"
    ]


def test_what_is_refused_is_said_without_hashes_or_keys_that_nobody_can_set_here(tmp_path, frames):
    source, output = tmp_path / "frames.extxyz", tmp_path / "table.parquet"
    far = bulk("Cu")
    far.positions += 2e6
    write(source, [bulk("Cu"), Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]]), far, bulk("Cu")])
    model = write_property_model(tmp_path / "model.safetensors")
    assert call("--model", model, "--source", source, "--output", output) == 0
    molecule, other = refusals(output)
    assert (
        molecule == "is periodic in 0 directions; the model takes only crystals, periodic in three"
    )
    assert other == "atom 0 is more than 1e+06 A from the origin; wrap the atoms into the cell"
    with pytest.raises(
        AtomloomError, match="structures: structure 1 is periodic in 0 directions; the"
    ):
        atomloom.load_model(model).predict([bulk("Cu"), Atoms("H")])


def test_structures_with_more_atoms_than_a_model_takes_go_to_quarantine(tmp_path):
    config = CrystalTransformerConfig(width=8, layers=1, max_atoms=4)
    model = write_property_model(tmp_path / "model.safetensors", config=config)
    source, output = tmp_path / "frames.extxyz", tmp_path / "table.parquet"
    write(source, [bulk("Cu"), bulk("Cu", cubic=True) * (1, 1, 2), bulk("Cu", cubic=True)])
    assert call("--model", model, "--source", source, "--output", output) == 0
    assert pd.read_parquet(output)["n_atoms"].tolist() == [1, 4]
    (reason,) = refusals(output)
    assert reason == (
        "a structure has 8 atoms, and dense attention takes at most 4: memory grows with the square"
    )
    with pytest.raises(AtomloomError, match="8 atoms, and dense attention takes at most 4"):
        atomloom.load_model(model).predict([bulk("Cu", cubic=True) * (1, 1, 2)])


def test_a_model_whose_memory_grows_with_the_square_predicts_in_smaller_batches(
    tmp_path, monkeypatch
):
    """Bounded as in training, unless told otherwise."""
    taken = []

    def take(self, batch):
        taken.append(batch.size)
        return forward(self, batch)

    forward = CrystalTransformer.forward
    monkeypatch.setattr(CrystalTransformer, "forward", take)
    config = CrystalTransformerConfig(width=8, layers=1)
    model = atomloom.load_model(write_property_model(tmp_path / "m.safetensors", config=config))
    found = [bulk("Cu", cubic=True)] * 5
    usual = {"batch": {"atom_pairs": 40}}
    plain = model.predict(found)
    monkeypatch.setattr(CrystalTransformerConfig, "usual_training", usual)
    np.testing.assert_allclose(model.predict(found), plain, rtol=1e-6)
    model.predict(found, bounds=Batching(atom_pairs=64))
    assert taken == [5, 2, 2, 1, 4, 1]


def test_a_committee_says_how_sure_it_is(committee, frames, tmp_path):
    output = tmp_path / "table.parquet"
    assert call("--model", *committee, "--source", frames, "--output", output) == 0
    good = [crystal for place, crystal in enumerate(crystals(23)) if place not in (4, 7)]
    wanted = calculate_batch(committee, good)
    table = pd.read_parquet(output)
    assert np.allclose(table["energy_std"], wanted.deviation.energy, atol=1e-5)


def test_interrupted_in_any_chunk_it_goes_on_and_ends_with_the_same_bytes(
    copper, frames, tmp_path, monkeypatch
):
    options = ["--model", copper, "--source", frames, "--forces", "--chunk", 4]
    whole, broken = tmp_path / "a" / "t.parquet", tmp_path / "b" / "t.parquet"
    assert call(*options, "--output", whole) == 0
    done = []
    predict_chunk = stage._predict_chunk

    def counted(*arguments):
        if len(done) % 2:
            done.append("broken")
            raise KeyboardInterrupt
        done.append("done")
        return predict_chunk(*arguments)

    monkeypatch.setattr(stage, "_predict_chunk", counted)
    calls = 0
    while call(*options, "--output", broken) == 130:
        calls += 1
        assert not broken.exists()
    assert calls == 5
    assert done.count("done") == 6  # 23 records in chunks of 4, each computed once
    for path in whole.parent.iterdir():
        assert path.read_bytes() == (broken.parent / path.name).read_bytes(), path.name


def test_a_part_that_is_damaged_is_predicted_again(copper, frames, tmp_path, monkeypatch):
    options = ["--model", copper, "--source", frames, "--chunk", 12]
    whole, broken = tmp_path / "a" / "t.parquet", tmp_path / "b" / "t.parquet"
    assert call(*options, "--output", whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stage._Parts, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*options, "--output", broken) == 130
    (part,) = broken.parent.glob(".t.*.parts/00000001.predictions.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    assert call(*options, "--output", broken) == 0
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_killed_it_goes_on(copper, tmp_path, monkeypatch):
    source, output = tmp_path / "frames.extxyz", tmp_path / "out" / "table.parquet"
    write(source, crystals(240))
    options = ["--model", copper, "--source", source, "--chunk", 10, "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "atomloom", "predict", "--output", output, *map(str, options)],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(output.parent.glob(".*/0000000[2-9].predictions*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = 24 if output.exists() else len(list(output.parent.glob(".*/*.predictions.parquet")))
    assert done >= 3
    # In another process the rest is done, and nothing twice.
    written = []
    write_part = stage._Parts.write
    monkeypatch.setattr(
        stage._Parts, "write", lambda *given: (written.append(given[1]), write_part(*given))
    )
    assert call(*options, "--output", output) == 0
    assert written == list(range(done, 24))
    fresh = tmp_path / "fresh" / "table.parquet"
    assert call(*options, "--output", fresh) == 0
    assert len(written) == 24 - done + 24
    assert fresh.read_bytes() == output.read_bytes()
    assert call(*options, "--output", output) == 0  # is there already
    assert len(written) == 24 - done + 24


def test_records_of_files_of_one_name_are_told_apart(copper, tmp_path):
    output = tmp_path / "table.parquet"
    for folder in "xy":
        (tmp_path / "in" / folder).mkdir(parents=True)
        write(tmp_path / "in" / folder / "same.extxyz", crystals(2))
        write(tmp_path / "in" / folder / "bad.extxyz", bulk("Al"))
    assert (
        call("--model", copper, "--source", tmp_path / "in", "--output", output, "--chunk", 1) == 0
    )
    ids = [f"{folder}/same-{frame:06d}" for folder in "xy" for frame in (0, 1)]
    assert pd.read_parquet(output)["id"].tolist() == ids
    refused = pd.read_csv(tmp_path / "table.quarantine.csv")
    assert refused["id"].tolist() == ["x/bad", "y/bad"]


def test_other_structures_make_another_table(copper, tmp_path):
    source, output = tmp_path / "frames.extxyz", tmp_path / "table.parquet"
    for count in (3, 5):
        write(source, crystals(count))
        os.utime(source, ns=(count, count))
        assert call("--model", copper, "--source", source, "--output", output) == 0
        assert len(pd.read_parquet(output)) == count


def test_what_cannot_be_done_is_said_in_one_line(copper, frames, tmp_path, capsys):
    output = tmp_path / "table.parquet"
    empty = tmp_path / "empty"
    empty.mkdir()
    aluminium = tmp_path / "al.extxyz"
    write(aluminium, [bulk("Al"), bulk("Al")])
    cases = {
        "no model here": ("--model", tmp_path / "none", "--source", frames, "--output", output),
        "no file that a reader": ("--model", copper, "--source", empty, "--output", output),
        "check --source": ("--model", copper, "--source", tmp_path / "x", "--output", output),
        "ends in .parquet": ("--model", copper, "--source", frames, "--output", tmp_path / "t.csv"),
        "not one of 2 records": ("--model", copper, "--source", aluminium, "--output", output),
        "--option: unknown option `bx`": ("--model", copper, "--source", frames, "--output", output,
                                "--option", "bx=1"),
        "is not NAME=VALUE": ("--model", copper, "--source", frames, "--output", output,
                              "--option", "box"),
    }  # fmt: skip
    for message, arguments in cases.items():
        assert call(*arguments) == 1, message
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("atomloom predict: "), said
        assert message in said
