"""Exported programs: the same numbers, for any sizes, in a process that knows only the file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

import atomloom
from atomloom.cli import main
from atomloom.config.graph import GraphSpec
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.potentials.evaluation import calculate_batch, plain_structure, structure_table
from atomloom.potentials.export import POTENTIAL_OUTPUTS, export_model, load_exported
from tests.unit.potentials.models import write_potential, write_property_model


def structures_of(kind: str) -> list[list[Atoms]]:
    """Lists of other sizes than any the program was traced with, down to one structure of two atoms."""
    if kind in ("painn", "tensornet", "nequip"):
        lists = [[molecule("H2")], [molecule(n) for n in ("CH4", "C6H6", "H2O", "CH3CH2OH")]]
        lists.append([bulk("C", "diamond", 3.6) * (2, 1, 1)])
    else:
        lists = [[bulk("Cu")], [bulk("Cu", cubic=True), bulk("Cu") * (2, 2, 2), bulk("Cu")]]
    for place, structure in enumerate(s for found in lists for s in found):
        structure.rattle(0.05, seed=place)
    return lists


def without_atomloom(program, batch, inputs, folder):
    """Outputs of a program in a fresh process, elsewhere, that imports torch alone."""
    torch.save([getattr(batch, name).clone() for name in inputs], folder / "inputs.pt")
    code = (
        "import sys, torch\n"
        "arrays = torch.load('inputs.pt', weights_only=True)\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "torch.save([out.detach() for out in program(*arrays)], 'outputs.pt')\n"
        "assert not any(name.startswith('atomloom') for name in sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code, program], cwd=folder, check=True
    )
    return torch.load(folder / "outputs.pt", weights_only=True)


@pytest.fixture(scope="module", params=["chebyshev", "painn", "tensornet", "nequip"])
def exported(request, tmp_path_factory):
    """Kind, model file and program."""
    folder = tmp_path_factory.mktemp("exported")
    elements = ("Cu",) if request.param == "chebyshev" else ("H", "C", "O")
    path = write_potential(folder / "model.safetensors", elements, kind=request.param)
    program = folder / "model.pt2"
    words = ["export", "--model", str(path), "--output", str(program), "--dtype", "float64"]
    assert main(words) == 0
    return request.param, path, program


@pytest.mark.slow
def test_a_potential_with_its_forces_is_one_program(exported, tmp_path):
    kind, path, file = exported
    program = load_exported(file)
    assert program.card["outputs"] == list(POTENTIAL_OUTPUTS)
    for found in structures_of(kind):
        said = program.calculate(found)
        wanted = calculate_batch(path, found, stress=True, dtype="float64")
        assert np.abs(said["energy"] - wanted.energy).max() < 1e-9
        assert np.abs(said["atom_energies"] - wanted.atom_energies).max() < 1e-9
        assert np.abs(said["forces"] - wanted.forces).max() < 1e-9
        assert np.abs(said["stress"] - wanted.stress).max() < 1e-9
    assert np.abs(said["forces"]).max() > 1e-4
    graphs = build_graphs(structure_table([plain_structure(s) for s in found]), program.graph)
    rows = np.arange(len(graphs))
    batch = GraphLoader(graphs, rows, dtype=torch.float64).slice(rows)
    outputs = without_atomloom(str(file), batch, program.card["inputs"], tmp_path)
    with pytest.raises(AtomloomError, match="at least one edge"):
        program.calculate([Atoms(found[0].symbols[:1])])
    for name, value in zip(POTENTIAL_OUTPUTS, outputs, strict=True):
        assert np.abs(value.numpy() - said[name]).max() < 1e-12


@pytest.mark.slow
def test_the_file_holds_no_pickle(exported):
    with zipfile.ZipFile(exported[2]) as archive:
        for entry in archive.namelist():
            content = archive.read(entry)
            assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), entry
        (card,) = (name for name in archive.namelist() if name.endswith("atomloom.json"))
        assert json.loads(archive.read(card))["kind"] == "potential"


@pytest.mark.slow
def test_a_property_model_is_one_program(tmp_path):
    path = write_property_model(tmp_path / "gap.safetensors")
    program = load_exported(export_model(path, tmp_path / "gap.pt2"))
    assert {"multiplicity", "lattice"} <= set(program.card["inputs"])
    scale = program.card["scale"]
    for found in structures_of("crystals"):
        (said,) = program.calculate(found).values()
        real = said * np.array(scale["std"]) + np.array(scale["mean"])
        assert np.allclose(real, atomloom.load_model(path).predict(found), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_program_gives_the_same_numbers(tmp_path):
    path = write_potential(tmp_path / "model.safetensors")
    exported = export_model(path, tmp_path / "model.pt2", compiled=True)
    code = (
        "import sys, numpy as np\n"
        "from ase.build import bulk\n"
        "from atomloom.potentials.export import load_exported\n"
        "program = load_exported(sys.argv[1])\n"
        "for found in ([bulk('Cu')], [bulk('Cu', cubic=True), bulk('Cu') * (2, 2, 2)]):\n"
        "    for place, structure in enumerate(found):\n"
        "        structure.rattle(0.05, seed=place)\n"
        "    said = program.calculate(found)\n"
        "np.savez('said.npz', **said)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(exported)], cwd=tmp_path, check=True)
    found = [bulk("Cu", cubic=True), bulk("Cu") * (2, 2, 2)]
    for place, structure in enumerate(found):
        structure.rattle(0.05, seed=place)
    wanted = calculate_batch(path, found, stress=True)
    with np.load(tmp_path / "said.npz") as said:
        assert np.abs(said["energy"] - wanted.energy).max() < 1e-5
        assert np.abs(said["forces"] - wanted.forces).max() < 1e-5
        assert np.abs(said["stress"] - wanted.stress).max() < 1e-5


@pytest.mark.slow
def test_a_model_file_gives_the_same_numbers_in_a_fresh_process_elsewhere(tmp_path, oxide):
    found = bulk("TiO", "rocksalt", 4.2, cubic=True)
    found.rattle(0.1, seed=1)
    wanted = calculate_batch(oxide, [found], stress=True)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    copy = folder / "renamed.safetensors"
    copy.write_bytes(oxide.read_bytes())
    code = (
        "import numpy as np, torch, atomloom\n"
        "from ase.build import bulk\n"
        "torch.set_num_threads(1)\n"
        "found = bulk('TiO', 'rocksalt', 4.2, cubic=True)\n"
        "found.rattle(0.1, seed=1)\n"
        "found.calc = atomloom.AtomloomCalculator('renamed.safetensors')\n"
        "np.savez('said.npz', energy=found.get_potential_energy(), forces=found.get_forces())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    with np.load(folder / "said.npz") as said:
        assert said["energy"] == wanted.energy[0]
        assert np.array_equal(said["forces"], wanted.forces)


def test_what_cannot_be_exported_is_said_in_one_line(copper, tmp_path, capsys):
    assert main(["export", "--model", str(copper), "--output", str(tmp_path / "m.onnx")]) == 1
    assert capsys.readouterr().err.startswith("atomloom export: ")
    with pytest.raises(AtomloomError, match=r"a \.pt2 file"):
        export_model(copper, tmp_path / "model.onnx")
    with pytest.raises(AtomloomError, match="no program here"):
        load_exported(tmp_path / "none.pt2")
    (tmp_path / "other.pt2").write_bytes(b"not a zip")
    with pytest.raises(AtomloomError, match="cannot be read"):
        load_exported(tmp_path / "other.pt2")
    loaded = atomloom.load_model(copper)
    spec = GraphSpec(neighbors="radius", cutoff=4.5, triplets=3.0)
    with pytest.raises(AtomloomError, match="no triplets"):
        export_model(replace(loaded, card=replace(loaded.card, graph=spec)), tmp_path / "m.pt2")
