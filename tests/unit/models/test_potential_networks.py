"""Networks of potentials have the symmetries and derivatives of an energy, whichever way they compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from atomloom.config.model import NequIPConfig, PaiNNConfig, TensorNetConfig
from atomloom.errors import AtomloomError
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.common.kernels import find_pairs
from atomloom.models.derivatives import evaluate_potential
from tests.unit.models.potentials import (
    crystal,
    everything,
    lone_atom,
    molecule,
    moved,
    orthogonal,
    radius_batch,
    structure,
    turned,
    wire,
)

PARTS = ("atom_energies", "forces", "stress")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@dataclass(frozen=True)
class Potential:
    """A network, and how close it keeps to what it promises."""

    config: Callable[..., Any]
    variants: dict[str, dict]
    """Options by what they stand for; the first is the default."""
    narrow: dict
    wide: dict
    between_ways: float = 1e-12
    """Max difference of energies, forces and stress between passes and plain operations."""
    of_gradients: float = 1e-11
    """Max difference of gradients between ways and threads, beside a relative one."""
    second_derivatives: float = 1e-6
    """Relative, against finite differences."""
    elements_alone: int = 118
    """Number of energies that atoms without neighbours have."""

    def seeded(self, **options) -> torch.nn.Module:
        """In float64, with biases that are not zero."""
        torch.manual_seed(0)
        model = build_model(self.config(**options), 1).double()
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
        return model

    @property
    def cutoff(self) -> float:
        return self.config().cutoff

    def batch(self, structures, dtype=torch.float64):
        return radius_batch(structures, self.cutoff, dtype)

    def evaluated(self, model, structures, dtype=torch.float64):
        return evaluate_potential(model, self.batch(structures, dtype), stress=True)


POTENTIALS = {
    "painn": Potential(
        partial(PaiNNConfig, width=8, rbf=8, cutoff=4.0),
        {"default": {}, "shared filters": {"shared_filters": True}, "one layer": {"layers": 1}},
        narrow={"width": 4},
        wide={"width": 32},
        second_derivatives=1e-7,
    ),
    "tensornet": Potential(
        partial(TensorNetConfig, width=8, rbf=8, cutoff=4.0),
        {"paper": {}, "no layers": {"layers": 0}, "matgl": {"variant": "matgl"}},
        narrow={"width": 4},
        wide={"width": 32},
        elements_alone=1,  # its first matrices are of pairs of elements
    ),
    "nequip": Potential(
        partial(
            NequIPConfig,
            features=(6, 4, 3),
            layers=3,
            rbf=5,
            filter_hidden=(7,),
            neighbors=6.0,
            cutoff=3.6,
        ),
        {
            "parity": {},
            "no parity": {"parity": False},
            "biases, one layer": {"bias": True, "layers": 1},
            "scalars alone": {"features": (6,)},
            "degree 3": {"features": (4, 3, 2, 2), "layers": 2},
            "lengths in harmonics": {
                "unit_directions": False,
                "envelope": "xplor",
                "envelope_start": 2.0,
            },
        },
        narrow={"layers": 2},
        wide={},
        between_ways=1e-11,
        of_gradients=1e-10,
    ),
}
VARIANTS = [
    pytest.param(potential, options, id=f"{name}-{variant}")
    for name, potential in POTENTIALS.items()
    for variant, options in potential.variants.items()
]
TURNS = [
    pytest.param(*case.values, determinant, id=f"{case.id}-{determinant}")
    for case in VARIANTS
    for determinant in (1, -1)
    if determinant > 0 or case.id != "nequip-no parity"  # whose mirror images are other structures
]


@pytest.fixture(params=POTENTIALS)
def potential(request) -> Potential:
    return POTENTIALS[request.param]


# --- symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("potential", "options", "determinant"), TURNS)
def test_rotation_and_reflection_turn_forces_and_stress(
    potential, options, determinant, dtype, way
):
    matrix = orthogonal(3, determinant)
    model = potential.seeded(**options).to(dtype)
    before = potential.evaluated(model, everything(), dtype)
    after = potential.evaluated(model, [turned(one, matrix) for one in everything()], dtype)
    turn = torch.tensor(matrix, dtype=dtype)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(after.atom_energies, before.atom_energies, **close)
    torch.testing.assert_close(after.forces, before.forces @ turn, **close)
    torch.testing.assert_close(after.stress, turn.T @ before.stress @ turn, **close)
    assert before.forces.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_translation_and_moving_atoms_by_lattice_vectors_change_nothing(potential, dtype, way):
    model = potential.seeded().to(dtype)
    rng = np.random.default_rng(0)
    others = []
    for one in everything():
        cells = rng.integers(-2, 3, size=(len(one.numbers), 3)) * one.pbc
        others.append(moved(one, rng.normal(size=3) + cells @ one.cell))
    before = potential.evaluated(model, everything(), dtype)
    after = potential.evaluated(model, others, dtype)
    for name in PARTS:
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_permuting_atoms_permutes_forces(potential, dtype, way):
    model, given = potential.seeded().to(dtype), molecule()
    order = np.random.default_rng(1).permutation(len(given.numbers))
    other = dataclasses.replace(
        given, numbers=given.numbers[order], positions=given.positions[order]
    )
    before = potential.evaluated(model, [given], dtype)
    after = potential.evaluated(model, [other], dtype)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(after.energy, before.energy, **close)
    torch.testing.assert_close(after.forces, before.forces[torch.from_numpy(order)], **close)


def test_a_supercell_has_the_same_atoms_more_often(potential, way):
    given = crystal()
    offsets = np.stack(np.meshgrid([0, 1], [0, 1], [0], indexing="ij"), -1).reshape(-1, 3)
    repeated = structure(
        np.tile(given.numbers, 4),
        np.concatenate([given.positions + offset @ given.cell for offset in offsets]),
        given.cell * np.array([[2.0], [2.0], [1.0]]),
        True,
    )
    model = potential.seeded()
    one, four = potential.evaluated(model, [given]), potential.evaluated(model, [repeated])
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(four.energy, 4.0 * one.energy, **close)
    torch.testing.assert_close(four.forces, one.forces.repeat(4, 1), **close)
    torch.testing.assert_close(four.stress, one.stress, **close)


def test_batched_equals_one_by_one(potential, way):
    model = potential.seeded()
    together = potential.evaluated(model, everything())
    alone = [potential.evaluated(model, [one]) for one in everything()]
    for name in ("energy", *PARTS):
        parts = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), parts, rtol=0, atol=1e-12)


# --- the two ways ---------------------------------------------------------------------------------


def training_step(model, batch):
    """Energies, forces, stress, and gradients of a loss of all three."""
    model.zero_grad()
    found = evaluate_potential(model, batch, stress=True, create_graph=True)
    loss = found.energy.square().mean() + found.forces.square().sum() + found.stress.square().sum()
    loss.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    return found, gradients


def without_some_reverses(batch):
    """The batch with some of its edges: graphs from elsewhere need not be symmetric."""
    keep = torch.from_numpy(np.random.default_rng(0).random(len(batch.src)) < 0.6)
    counts = torch.bincount(batch.dst[keep], minlength=len(batch.numbers))
    return dataclasses.replace(
        batch,
        src=batch.src[keep],
        dst=batch.dst[keep],
        shift=batch.shift[keep],
        vectors=batch.vectors[keep],
        dst_ptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
    )


def test_every_edge_of_a_radius_graph_has_its_pair_and_others_need_not():
    batch = radius_batch(everything(), 4.0)

    def pairs(given):
        arrays = (given.src, given.dst, given.dst_ptr, given.shift)
        return find_pairs(*(array.numpy() for array in arrays))

    edges, mutual = pairs(batch)
    assert mutual.all()
    assert 2 * len(edges) == len(batch.src)
    _, mutual = pairs(without_some_reverses(batch))
    assert 0 < mutual.sum() < len(mutual)


@pytest.mark.parametrize("reverses", ["all", "some"])
@pytest.mark.parametrize(("potential", "options"), VARIANTS)
def test_compiled_passes_equal_plain_operations(potential, options, reverses, monkeypatch):
    batch, model = potential.batch(everything()), potential.seeded(**options)
    if reverses == "some":
        batch = without_some_reverses(batch)
    ours, our_gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    plain, gradients = training_step(model, batch)
    for name in PARTS:
        torch.testing.assert_close(
            getattr(ours, name), getattr(plain, name), rtol=0, atol=potential.between_ways
        )
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            our_gradients[name], gradient, rtol=1e-9, atol=potential.of_gradients
        )


def test_threads_share_a_pass(potential, monkeypatch):
    batch, model = potential.batch(everything()), potential.seeded()
    one, gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several, others = training_step(model, batch)
    torch.testing.assert_close(several.forces, one.forces, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=potential.of_gradients)


# --- derivatives ----------------------------------------------------------------------------------


def test_training_on_forces_has_the_gradient_of_finite_differences(potential, way):
    """Second derivatives: by a random direction in the space of all weights."""
    batch = potential.batch([molecule(atoms=4), crystal(), lone_atom()])
    model = potential.seeded(**potential.narrow)
    weights = list(model.parameters())

    def loss():
        found = evaluate_potential(model, batch, stress=True, create_graph=True)
        terms = found.energy, found.forces, found.stress
        return sum((term - 0.1).square().sum() for term in terms)

    gradients = torch.autograd.grad(loss(), weights)
    torch.manual_seed(0)
    direction = [torch.randn_like(weight) for weight in weights]
    expected = sum((a * b).sum() for a, b in zip(gradients, direction, strict=True))
    step, ends = 1e-5, []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for weight, way_to_go in zip(weights, direction, strict=True):
                weight.add_(way_to_go, alpha=sign * step)
        ends.append(loss().detach())
    found = (ends[0] - ends[1]) / (2.0 * step)
    assert float(found) == pytest.approx(float(expected), rel=potential.second_derivatives)


def test_forces_and_stress_are_the_derivatives_of_finite_differences(potential, way):
    model, given, step = potential.seeded(), crystal(), 1e-5
    found = potential.evaluated(model, [given])

    def energy(positions, cell):
        moved_one = dataclasses.replace(given, positions=positions, cell=cell)
        return float(potential.evaluated(model, [moved_one]).energy)

    direction = np.random.default_rng(0).normal(size=given.positions.shape)
    ends = [energy(given.positions + s * step * direction, given.cell) for s in (1, -1)]
    along = float((found.forces * torch.from_numpy(direction)).sum())
    assert -(ends[0] - ends[1]) / (2 * step) == pytest.approx(along, rel=1e-6)
    strain = np.random.default_rng(1).normal(size=(3, 3))
    strain += strain.T
    ends = []
    for sign in (1, -1):
        matrix = np.eye(3) + sign * step * strain
        ends.append(energy(given.positions @ matrix, given.cell @ matrix))
    along = float((found.stress[0] * torch.from_numpy(strain)).sum())
    slope = (ends[0] - ends[1]) / (2 * step) / abs(np.linalg.det(given.cell))
    assert slope == pytest.approx(along, rel=1e-6)


def test_an_atom_leaves_without_a_jump(potential, way):
    """Energy and force are those of the atoms apart, and the force's slope is bounded."""
    model, cutoff = potential.seeded(), potential.cutoff

    def pair(distance):
        found = potential.evaluated(model, [structure([6, 8], [[0, 0, 0], [0, 0, distance]])])
        return float(found.energy), float(found.forces[1, 2])

    apart, none = pair(cutoff + 0.1)
    assert none == 0.0
    inside, force = pair(cutoff - 1e-4)
    assert inside == pytest.approx(apart, abs=1e-7)
    assert abs(force) < 1e-3
    distances = np.linspace(cutoff - 0.02, cutoff + 0.02, 81)
    slopes = np.diff([pair(distance)[1] for distance in distances]) / np.diff(distances)
    assert np.abs(slopes).max() < 3.0 * np.abs(slopes[:20]).max()


# --- robustness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "structures",
    [
        pytest.param([lone_atom()], id="no edges at all"),
        pytest.param([lone_atom(), lone_atom(118)], id="isolated atoms"),
        pytest.param([wire()], id="one atom and its images"),
        pytest.param(everything(), id="everything together"),
        pytest.param([structure([6, 8], [[0, 0, 0], [0, 0, 0]])], id="two atoms in one place"),
    ],
)
def test_force_training_gives_finite_numbers(potential, structures, bf16, way):
    model = potential.seeded().float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found, gradients = training_step(model, potential.batch(structures, torch.float32))
    assert found.energy.dtype == found.forces.dtype == torch.float32
    for values in (found.energy, found.forces, found.stress, *gradients.values()):
        assert torch.isfinite(values).all()


def test_single_and_mixed_precision_keep_to_double_precision(potential, way):
    """Of energies, forces and the loss gradient. Measured: 9e-7 and 1.7e-2 at most."""
    structures = [molecule(seed, 8) for seed in range(3)] + [crystal(seed) for seed in range(3)]
    structures += everything()
    model = potential.seeded(**potential.wide)
    true, true_gradients = training_step(model, potential.batch(structures))

    def relative(found, gradients):
        pairs = [
            (found.energy, true.energy),
            (found.forces, true.forces),
            tuple(
                torch.cat([part[name].flatten() for name in true_gradients])
                for part in (gradients, true_gradients)
            ),
        ]
        largest = (found.forces - true.forces).abs().max() / true.forces.abs().max()
        return [
            float(largest.detach()),
            *(float((a - b).norm().detach() / b.norm().detach()) for a, b in pairs),
        ]

    model = model.float()
    batch = potential.batch(structures, torch.float32)
    single = relative(*training_step(model, batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = relative(*training_step(model, batch))
    assert max(single) < 1e-5
    assert max(mixed) < 0.05


def test_every_parameter_has_a_gradient(potential):
    """Data-parallel training waits for each of them."""
    model = potential.seeded()
    training_step(model, potential.batch(everything()))
    assert all(weight.grad is not None for weight in model.parameters())


def test_forward_is_one_graph_that_never_waits_for_the_device(potential):
    """The compiler stops where a value is asked for; the whole must pass through it."""
    model = potential.seeded(**potential.narrow)
    batch = potential.batch([crystal(), lone_atom()])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, true = evaluate_potential(compiled, batch), evaluate_potential(model, batch)
    close = {"rtol": 0, "atol": potential.between_ways}
    torch.testing.assert_close(found.energy, true.energy, **close)
    torch.testing.assert_close(found.forces, true.forces, **close)


def test_all_elements_are_known(potential):
    model, numbers = potential.seeded(), range(1, 119)
    alone = potential.evaluated(model, [lone_atom(number) for number in numbers])
    assert len(torch.unique(alone.energy)) == potential.elements_alone
    pairs = [structure([number, 1], [[0, 0, 0], [0, 0, 1.3]]) for number in numbers]
    assert len(torch.unique(potential.evaluated(model, pairs).energy)) == 118


def test_a_potential_has_one_output(potential):
    with pytest.raises(AtomloomError, match="one number per atom"):
        build_model(potential.config(), 2)
