"""What kind a target is, which kinds a model learns, and what each is weighed by."""

from __future__ import annotations

import pytest

from atomloom.config import parse_config
from atomloom.config.root import direct_kinds
from atomloom.errors import AtomloomError


def config(targets, model="painn", dataset=None, **training):
    return parse_config(
        {
            "dataset": {"name": "t", "source": ["none"], "target": targets} | (dataset or {}),
            "model": {"name": model} if isinstance(model, str) else model,
            "training": training,
        }
    )


def kinds(found) -> list[str]:
    return [spec.kind for spec in found.targets]


def test_a_potential_knows_the_usual_names():
    assert kinds(config(["energy", "forces", "dipole", "magmoms"])) == [
        "energy",
        "forces",
        "vector",
        "per_atom",
    ]
    assert kinds(config(["dipole"])) == ["vector"]
    found = config(["mu", "bader"], dataset={"target_kinds": {"mu": "vector", "bader": "per_atom"}})
    assert kinds(found) == ["vector", "per_atom"]


def test_names_mean_nothing_to_a_property_model():
    """A column of a table may be called dipole, magmoms or energy, and is a scalar."""
    names = ["dipole", "magmoms", "energy", "forces"]
    found = config(names, "icomformer", {"labels": {"file": "labels.csv"}})
    assert kinds(found) == ["scalar"] * 4
    found = config(["gap", "charges"], "alignn", {"target_kinds": {"charges": "per_atom"}})
    assert kinds(found) == ["scalar", "per_atom"]


def test_units_are_the_config_s_but_for_kinds_that_have_their_own():
    found = config(["energy", "dipole"], dataset={"unit": {"dipole": "D", "energy": "Ha"}})
    assert [(spec.unit, spec.reported_unit) for spec in found.targets] == [
        ("eV", "eV/atom"),
        ("D", "D"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["gap"],), "learns the targets energy, forces, stress .* and dipole, magmoms, charges"),
        ((["gap"],), "target_kinds"),
        ((["energy", "dipole"], {"name": "chebyshev", "species": ["H"]}), "not dipole"),
        ((["mu"], "icomformer", {"target_kinds": {"mu": "vector"}}), "may be scalar, per_atom"),
        ((["forces", "dipole"],), "energy first"),
        (
            (["energy", "forces"], "icomformer"),
            "not forces: the models chebyshev, painn, tensornet, ",
        ),
        ((["stress"], "tensornet_property"), "target_kinds: {stress: scalar}"),
        ((["dipole"], "painn", {"target_kinds": {"mu": "vector"}}), "not a target"),
        ((["dipole"], "painn", {"target_kinds": {"dipole": "tensor"}}), "not a kind of targets"),
        (
            (["E"], "painn", {"target_kinds": {"E": "energy"}}),
            "only the kind of the target `energy`",
        ),
        ((["my mu"], "painn", {"target_kinds": {"my mu": "vector"}}), "cannot be called"),
        ((["refused"], "painn", {"target_kinds": {"refused": "per_atom"}}), "cannot be called"),
    ],
)
def test_what_cannot_be_learnt_is_said_in_one_line(arguments, said):
    with pytest.raises(AtomloomError, match=said) as caught:
        config(*arguments)
    assert "\n" not in str(caught.value)


PER_ATOM = {"target_kinds": {"charges": "per_atom"}}


@pytest.mark.parametrize(
    ("arguments", "training", "said"),
    [
        ((["energy", "dipole"],), {"loss_weights": {"energy": 2.0}}, "potential.energy_weight"),
        ((["dipole"],), {"loss_weights": {"dipole": 0.0}}, "weights of all targets are 0"),
        ((["dipole"],), {"loss_weights": {"mu": 1.0}}, "mu is not a target"),
        ((["dipole"],), {"potential": {"sampling": "energy"}}, "need the target energy"),
        ((["dipole"],), {"log_targets": ["dipole"]}, "not a scalar"),
        ((["energy", "forces"],), {"strategy": "fsdp", "devices": 2}, "use ddp"),
        ((["gap", "charges"], "icomformer", PER_ATOM), {"loss": "bce"}, "is for classes"),
        (
            (["a", "b"], "icomformer"),
            {"loss": "bce", "loss_weights": {"a": 2}},
            "exclude each other",
        ),
    ],
)
def test_options_that_do_not_go_with_a_kind_are_refused(arguments, training, said):
    with pytest.raises(AtomloomError, match=said):
        config(*arguments, **training)


def test_primitive_cells_have_other_atoms():
    with pytest.raises(AtomloomError, match="belongs to those given"):
        parse_config(
            {
                "dataset": {"name": "t", "source": ["none"], "target": ["charges"]} | PER_ATOM,
                "graph": {"primitive": True},
            }
        )


def test_kinds_and_weights_are_in_a_key_only_where_they_are_set():
    plain = config(["gap"], "icomformer")
    assert "target_kinds" not in plain.dataset.key_content()
    assert "loss_weights" not in plain.training.key_content()
    told = config(["gap"], "icomformer", loss_weights={"gap": 2.0})
    assert told.training.key_content()["loss_weights"] == {"gap": 2.0}
    assert told.loss_weight(told.targets[0]) == 2.0


def test_forces_of_a_property_model_are_another_data_set_than_those_of_a_potential():
    """A split of one would not have what the other needs."""
    potential = config(["energy", "forces"])
    scalar = config(["energy", "forces"], "icomformer", {"target_kinds": {"forces": "scalar"}})
    table = config(["energy", "forces"], "icomformer", {"labels": {"file": "labels.csv"}})
    assert direct_kinds(potential) == direct_kinds(config(["energy"], "icomformer")) == {}
    assert direct_kinds(scalar) == direct_kinds(table) == {"kinds": {"forces": "scalar"}}
