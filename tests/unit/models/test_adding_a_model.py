"""The example of docs/adding-a-model.md works as it stands, in a package that atomloom knows nothing of."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import sys
from importlib import import_module, invalidate_caches
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import atomloom
from atomloom import cli
from atomloom.config import GraphSpec, dump_config, load_config, parse_config
from atomloom.config.teacher import Teacher
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model, write_model
from atomloom.inference.predict import load_model
from atomloom.models import build_model
from atomloom.potentials.teachers import ase_calculator, teach
from atomloom.structures import StructureTable, to_structure
from tests.unit.models.batches import batch_from_graphs, random_crystal
from tests.unit.potentials.models import write_potential

DOCUMENT = Path(__file__).parents[3] / "docs" / "adding-a-model.md"
NAME = "mymodels.shells:Shells"


def forget() -> None:
    """Make Python forget the package, as in a new process."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mymodels"]:
        del sys.modules[name]
    invalidate_caches()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The documented modules, where they say they belong; the folder of the package."""
    module, potential = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    folder = tmp_path / "elsewhere" / "mymodels"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "shells.py").write_text(module)
    (folder / "potential.py").write_text(potential)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # which knows a source by its second and size
    yield folder
    forget()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    return batch_from_graphs([random_crystal(rng, 3), random_crystal(rng, 4)])


def model_file(folder: Path) -> Path:
    """A model file of atomloom's own, a small potential."""
    path = folder / "model.safetensors"
    return path if path.exists() else write_potential(path)


def config_of(**model):
    dataset = {"name": "x", "source": "s", "target": "energy"}
    return parse_config({"dataset": dataset, "model": {"name": NAME} | model})


def raise_version(package, version: str) -> None:
    path = package / "shells.py"
    path.write_text(path.read_text().replace("VERSION = 1", f"VERSION = {version}"))


def test_the_line_of_the_guide_names_the_network_and_its_graph(package):
    (line,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = package / "config.yaml"
    path.write_text("dataset: {name: x, source: s, target: energy}\n" + line)
    config = load_config(path)
    assert config.model.width == 32
    assert config.model.layers == 2
    assert config.model.shown_name == "Shells"
    assert config.graph.neighbors == "radius"
    assert config.graph.cutoff == 5.0


def test_what_is_written_of_a_config_is_read_again(package, tmp_path):
    config = config_of(width=8)
    (tmp_path / "merged.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "merged.yaml") == config
    assert pickle.loads(pickle.dumps(config)) == config  # as processes of `convert` are given it


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"widht": 8}, "model.widht: unknown key, did you mean `width`?"),
        ({"width": 3}, "model.width: Input should be greater than or equal to 4, not 3"),
        ({"width": True}, "model.width: Input should not be true or false"),
        ({"name": "mymodels.shells:Shell"}, "mymodels.shells has no class Shell"),
        ({"name": "mymodels.shells:Tensor"}, "mymodels.shells:Tensor has no attribute `Config`"),
        ({"name": "mymodels.shell:Shells"}, "cannot be imported: No module named 'mymodels.shell'"),
        ({"name": "mymodels.broken:A"}, "mymodels.broken cannot be imported: two lines, no less"),
        ({"name": "mymodels/shells:A"}, "'mymodels/shells:A' is not `module:Class`"),
        ({"name": "nothing"}, " or `module:Class`, not 'nothing'"),
    ],
)
def test_a_mistake_is_one_line(package, model, says):
    (package / "broken.py").write_text("raise OSError('two lines,\\nno less')")
    invalidate_caches()
    with pytest.raises(AtomloomError) as error:
        config_of(**model)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_holds_the_options_and_the_version_of_the_module(package):
    keys = [config_of(width=width).model.key_content() for width in (8, 16)]
    assert keys[0] == {"name": NAME, "width": 8, "layers": 2, "module VERSION": 1}
    assert keys[1] == keys[0] | {"width": 16}
    raise_version(package, "2")
    forget()
    assert config_of(width=8).model.key_content() == keys[0] | {"module VERSION": 2}


def test_a_version_that_is_no_number_is_refused(package):
    raise_version(package, "'2'")
    with pytest.raises(AtomloomError, match=r"VERSION of mymodels\.shells is not a whole number"):
        config_of()


def test_the_documented_model_learns_and_is_reported(package, tmp_path):
    labels = np.linspace(3.4, 4.0, 12)
    structures = [bulk("Cu", a=length) for length in labels]
    run = atomloom.train(
        structures,
        labels,
        model={"name": NAME, "width": 8},
        epochs=1,
        folder=tmp_path,
        log=lambda _: None,
    )
    assert run.metrics["target"]["train"]["count"] > 0
    assert "Shells on notebook" in run.report.read_text()
    file = run.folder / "model.safetensors"
    predicted = run.predict(structures)

    forget()
    with pytest.raises(AtomloomError, match="is a model of the module mymodels"):
        load_model(file)
    with pytest.raises(AtomloomError, match="is a model of the module"):
        load_model(file, trust=["mymodel", "shells", "mymodels.shells.more"])
    assert "mymodels" not in sys.modules
    for trust in ("mymodels", ["other", "mymodels.shells"]):
        np.testing.assert_array_equal(load_model(file, trust=trust).predict(structures), predicted)
        forget()
    command = ["predict", "--model", str(file), "--source", str(tmp_path / "store" / "given")]
    command += ["--output", str(tmp_path / "table.parquet")]
    assert cli.main(command) == 1
    assert cli.main([*command, "--trust", "mymodels"]) == 0
    forget()
    import_module("mymodels.shells")
    np.testing.assert_array_equal(load_model(file).predict(structures), predicted)

    forget()
    raise_version(package, "2")
    with pytest.raises(AtomloomError, match="VERSION of its module was 1 and is 2"):
        load_model(file, trust="mymodels")
    forget()
    (package / "shells.py").unlink()
    with pytest.raises(AtomloomError, match=r"mymodels\.shells cannot be imported") as error:
        load_model(file, trust="mymodels")
    assert "\n" not in str(error.value)


def test_a_teacher_is_trusted_by_its_options(package, tmp_path):
    documented = import_module("mymodels.potential")
    card = read_model(model_file(tmp_path))[1]
    section = documented.Potential.Config(width=8)
    graph = GraphSpec(**section.graph_needs())
    path = tmp_path / "own.safetensors"
    card = dataclasses.replace(card, model=section, graph=graph)
    write_model(path, build_model(section, 1).state_dict(), card)
    structures = StructureTable.from_structures([to_structure(bulk("Cu"))])
    (wanted,) = teach(Teacher(calculator="atomloom", model=str(path)), structures)

    forget()
    with pytest.raises(AtomloomError, match="is a model of the module mymodels"):
        next(teach(Teacher(calculator="atomloom", model=str(path)), structures))
    trusting = Teacher(calculator="atomloom", model=str(path), options={"trust": "mymodels"})
    (found,) = teach(trusting, structures)
    assert found.energy == wanted.energy
    calculator = ase_calculator(trusting)
    assert calculator.get_potential_energy(bulk("Cu")) == pytest.approx(wanted.energy)


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:Popen", "atomloom.structures:read", "posix:system", ":", 7]
)
def test_a_model_file_runs_nothing_that_is_no_model(package, tmp_path, name):
    config_of()
    with safe_open(model_file(tmp_path), framework="pt") as file:
        card = json.loads(file.metadata()["atomloom"])
    del card["digest"]
    card["model"]["name"] = name
    path = tmp_path / "other.safetensors"
    save_file(load_file(model_file(tmp_path)), path, metadata={"atomloom": json.dumps(card)})
    with pytest.raises(AtomloomError, match=r"describes a model that is not known|whose code"):
        load_model(path)


def test_the_documented_model_has_gradients_everywhere(package, batch):
    model = build_model(config_of().model, 2).double()
    output = model(batch)
    assert output.shape == (2, 2)
    output.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_documented_potential_has_the_forces_of_finite_differences(package, batch):
    documented = import_module("mymodels.potential")
    section = documented.Potential.Config(width=8)
    assert section.name == "mymodels.potential:Potential"
    assert section.kind == "potential"
    model = build_model(section, 1).double()
    energy, forces, stress = documented.forces_and_stress(model, batch)
    assert stress.shape == (2, 3, 3)
    step = torch.zeros_like(batch.positions)
    step[1, 2] = 1e-5
    moved = [
        documented.forces_and_stress(
            model, dataclasses.replace(batch, positions=batch.positions + sign * step, vectors=None)
        )[0]
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]).sum() / 2e-5
    assert energy.shape == (2,)
    assert float(forces[1, 2]) == pytest.approx(-float(slope), rel=1e-6, abs=1e-9)
