"""The Chebyshev potential: reference tables, derivatives of all orders, invariances, networks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from atomloom.config.graph import GraphSpec
from atomloom.config.model import ChebyshevConfig
from atomloom.config.root import parse_config
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.chebyshev.network import (
    ACTIVATIONS,
    Chebyshev,
    ElementNetworks,
    species_weights,
    torch_features,
)
from atomloom.models.derivatives import evaluate_potential
from atomloom.readers.formats import xsf
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

SMALL = {
    "species": ("Ti", "O", "Sr"),
    "radial_order": 5,
    "radial_cutoff": 4.0,
    "angular_order": 4,
    "angular_cutoff": 3.2,
    "hidden": (4, 3),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small_model(**changes) -> Chebyshev:
    return Chebyshev(ChebyshevConfig(**{**SMALL, **changes})).double()


def batch_of(structures, cutoff=4.0, dtype=torch.float64):
    table = StructureTable.from_structures(list(structures))
    graphs = build_graphs(table, GraphSpec(neighbors="radius", cutoff=cutoff))
    loader = GraphLoader(graphs, np.arange(len(graphs)), dtype=dtype, prefetch=0)
    (batch,) = list(loader)
    return batch


def crystal(rng, atoms=5, length=4.2, elements=(22, 8, 38)) -> Structure:
    """Random atoms, none close to another, in a skewed cell; some outside of it."""
    cell = np.eye(3) * length + rng.normal(scale=0.3, size=(3, 3))
    places: list[np.ndarray] = []
    offsets = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    while len(places) < atoms:
        place = rng.uniform(size=3) @ cell
        if all(np.linalg.norm(place - q + offsets, axis=1).min() > 1.3 for q in places):
            places.append(place)
    positions = np.array(places) + rng.integers(-1, 2, (atoms, 3)) @ cell
    return Structure(rng.choice(elements, atoms), positions, cell, [True] * 3)


def molecule(numbers, positions) -> Structure:
    return Structure(np.array(numbers), np.array(positions), np.zeros((3, 3)), [False] * 3)


def triplet_features(batch, model: Chebyshev, vectors=None) -> torch.Tensor:
    """[N, F] by the published sums over pairs of neighbours, one atom at a time."""
    basis = model.basis
    vectors = batch.vectors if vectors is None else vectors
    weights = torch.tensor(basis.weights, dtype=vectors.dtype)
    kinds = [model.numbers.index(z) for z in batch.numbers.tolist()]

    def cutoff(r, length):
        return torch.where(r <= length, 0.5 * (torch.cos(torch.pi * r / length) + 1), 0.0)

    rows = []
    for atom in range(len(kinds)):
        edges = range(int(batch.dst_ptr[atom]), int(batch.dst_ptr[atom + 1]))
        radial = vectors.new_zeros(basis.sets, basis.radial_order + 1)
        angular = vectors.new_zeros(basis.sets, basis.angular_order + 1)
        sets = [torch.ones_like(weights), weights][: basis.sets]
        n = torch.arange(basis.radial_order + 1)
        for e in edges:
            r = vectors[e].norm()
            if r > basis.radial_cutoff:
                continue
            x = (2 * r / basis.radial_cutoff - 1).clamp(-1 + 1e-15, 1 - 1e-15)
            term = torch.cos(n * torch.acos(x)) * cutoff(r, basis.radial_cutoff)
            kind = kinds[int(batch.src[e])]
            radial = radial + torch.stack([w[kind] * term for w in sets])
        for j, k in itertools.combinations(edges, 2):
            rj, rk = vectors[j].norm(), vectors[k].norm()
            if max(rj, rk) > basis.angular_cutoff:
                continue
            cosine = vectors[j] @ vectors[k] / (rj * rk)
            terms = [torch.ones_like(cosine), cosine]
            while len(terms) <= basis.angular_order:
                terms.append(2 * cosine * terms[-1] - terms[-2])
            both = cutoff(rj, basis.angular_cutoff) * cutoff(rk, basis.angular_cutoff)
            term = torch.stack(terms[: basis.angular_order + 1]) * both
            pair = kinds[int(batch.src[j])], kinds[int(batch.src[k])]
            angular = angular + torch.stack([w[pair[0]] * w[pair[1]] * term for w in sets])
        rows.append(torch.cat((radial, angular), dim=1).flatten())
    return torch.stack(rows)


@pytest.fixture
def mixed_batch():
    """Three crystals, a molecule with an atom that has no neighbours, and a lone atom."""
    rng = np.random.default_rng(1)
    crystals = [crystal(rng, atoms, length) for atoms, length in ((4, 3.6), (3, 3.3), (1, 2.9))]
    far = molecule([22, 8, 38], [[0, 0, 0], [1.9, 0.1, 0.3], [30.0, 0, 0]])
    return batch_of([*crystals, far, molecule([8], [[1.0, 2, 3]])])


# --- reference tables ---


@pytest.mark.parametrize(
    ("name", "species", "radial", "angular"),
    [
        ("water", ("O", "H"), (10, 4.0), (3, 1.5)),
        ("lmnto", ("Li", "Mo", "Ni", "Ti", "O"), (10, 4.0), (3, 1.5)),
        ("aucu", ("Au", "Cu"), (5, 3.5), (5, 3.5)),
    ],
)
def test_features_equal_the_oracle_of_aenet(oracle_folder, name, species, radial, angular):
    folder = oracle_folder / "chebyshev"
    if name == "water":
        rows = [line.split() for line in (folder / "water.xyz").read_text().splitlines()[2:]]
        structure = molecule(
            atomic_numbers(row[0] for row in rows), [[float(x) for x in row[1:]] for row in rows]
        )
    else:
        file = {"lmnto": "lmnto_structure001.xsf", "aucu": "aucu.xsf"}[name]
        structure = xsf.parse((folder / file).read_bytes(), {})
    true = np.loadtxt(folder / f"{name}_ref.csv", delimiter=",")
    model = small_model(
        species=species,
        radial_order=radial[0],
        radial_cutoff=radial[1],
        angular_order=angular[0],
        angular_cutoff=angular[1],
    )
    batch = batch_of([structure, structure], cutoff=model.basis.cutoff)
    neighbour = model.place[batch.numbers[batch.src]]
    for found in (
        model.features(batch),
        torch_features(batch.vectors, neighbour, batch.dst, len(batch.numbers), model.basis),
    ):
        np.testing.assert_allclose(found.numpy(), np.tile(true, (2, 1)), rtol=0, atol=1e-12)


# --- against the sums over triplets ---


@pytest.mark.parametrize("cutoffs", [(4.0, 3.2), (3.0, 4.0)])
@pytest.mark.parametrize("orders", [(5, 4), (0, 0), (8, 1), (1, 9)])
def test_features_are_sums_over_triplets(mixed_batch, cutoffs, orders):
    model = small_model(
        radial_order=orders[0],
        radial_cutoff=cutoffs[0],
        angular_order=orders[1],
        angular_cutoff=cutoffs[1],
    )
    expected = triplet_features(mixed_batch, model)
    found = model.features(mixed_batch)
    neighbour = model.place[mixed_batch.numbers[mixed_batch.src]]
    plain = torch_features(
        mixed_batch.vectors, neighbour, mixed_batch.dst, len(expected), model.basis
    )
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-11)


def test_one_element_has_one_set_of_features():
    rng = np.random.default_rng(3)
    batch = batch_of([crystal(rng, 4, 3.6, elements=(22,))])
    model = small_model(species=("Ti",))
    assert model.basis.features == 6 + 5
    torch.testing.assert_close(
        model.features(batch), triplet_features(batch, model), rtol=0, atol=1e-11
    )


def test_derivatives_of_both_orders_are_those_of_the_triplet_sums():
    rng = np.random.default_rng(5)
    batch = batch_of([crystal(rng, 2, 3.1), molecule([8], [[0.0, 0, 0]])])
    model = small_model(radial_cutoff=3.4, angular_cutoff=3.0)
    slopes = torch.randn(3, model.basis.features, dtype=torch.float64)
    changes = torch.randn(len(batch.vectors), 3, dtype=torch.float64)
    found = []
    for describe in (
        lambda v: model.features(replace(batch, vectors=v)),
        lambda v: triplet_features(batch, model, v),
    ):
        vectors = batch.vectors.clone().requires_grad_()
        g = slopes.clone().requires_grad_()
        (first,) = torch.autograd.grad(describe(vectors), vectors, g, create_graph=True)
        second = torch.autograd.grad(first, (g, vectors), changes, retain_graph=True)
        alone = torch.autograd.grad(first, g, changes)
        found.append((first.detach(), *second, *alone))
    for ours, true in zip(*found, strict=True):
        assert float(true.abs().max()) > 0.1
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-10)


def test_gradients_pass_the_checks_of_torch_up_to_third_order():
    rng = np.random.default_rng(7)
    batch = batch_of([crystal(rng, 2, 3.3)], cutoff=3.0)
    model = small_model(radial_order=3, radial_cutoff=3.0, angular_order=2, angular_cutoff=2.8)
    vectors = batch.vectors.clone().requires_grad_()

    def describe(v):
        return model.features(replace(batch, vectors=v))

    assert torch.autograd.gradcheck(describe, vectors)
    assert torch.autograd.gradgradcheck(describe, vectors)

    def curvature(v):
        (first,) = torch.autograd.grad(describe(v).square().sum(), v, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), v, create_graph=True)
        return second

    assert torch.autograd.gradcheck(curvature, vectors)


def test_single_precision_reaches_its_rounding():
    rng = np.random.default_rng(2)
    structures = [crystal(rng, 5, 4.2) for _ in range(3)]
    model = small_model()
    batches = {dtype: batch_of(structures, dtype=dtype) for dtype in (torch.float64, torch.float32)}
    results = {}
    for dtype, batch in batches.items():
        model = model.to(dtype)
        output = evaluate_potential(model, batch, stress=True)
        results[dtype] = model.features(batch), output.energy, output.forces, output.stress
    for found, true in zip(results[torch.float32], results[torch.float64], strict=True):
        assert found.dtype == torch.float32
        scale = float(true.abs().max())
        torch.testing.assert_close(found.double(), true, rtol=0, atol=3e-6 * scale)


def test_half_precision_is_kept_out_of_the_descriptor(mixed_batch):
    model = small_model().float()
    batch = replace(mixed_batch, vectors=mixed_batch.vectors.float())
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- forces and stress ---


def fitted_model(batch, **changes) -> Chebyshev:
    model = small_model(**changes)
    with torch.no_grad():
        model.fit_features(model.features(batch), batch.numbers)
        for bias in model.networks.biases:
            bias.normal_()
    return model


def energy_of(model, structure) -> float:
    return float(model(batch_of([structure])).sum().detach())


def test_forces_and_stress_are_slopes_of_the_energy():
    rng = np.random.default_rng(11)
    structure = crystal(rng, 4, 3.6)
    model = fitted_model(batch_of([structure, crystal(rng, 5, 4.0)]))
    output = evaluate_potential(model, batch_of([structure]), stress=True)
    step = 1e-5

    def slope(move) -> float:
        return (energy_of(model, move(step)) - energy_of(model, move(-step))) / (2 * step)

    for atom, axis in itertools.product(range(len(structure)), range(3)):

        def moved(by, atom=atom, axis=axis):
            positions = structure.positions.copy()
            positions[atom, axis] += by
            return replace(structure, positions=positions)

        assert float(output.forces[atom, axis]) == pytest.approx(-slope(moved), abs=1e-7)
    for a, b in itertools.product(range(3), range(3)):

        def strained(by, a=a, b=b):
            strain = np.eye(3)
            strain[a, b] += by / 2
            strain[b, a] += by / 2
            return replace(
                structure, positions=structure.positions @ strain, cell=structure.cell @ strain
            )

        expected = slope(strained) / structure.volume
        assert float(output.stress[0, a, b]) == pytest.approx(expected, abs=1e-7)
    assert float(output.forces.abs().max()) > 0.05


def test_training_on_forces_moves_weights_as_finite_differences_say():
    rng = np.random.default_rng(13)
    structures = [crystal(rng, 3, 3.4), crystal(rng, 4, 3.7)]
    batch = batch_of(structures)
    model = fitted_model(batch)
    wanted = torch.randn(len(batch.numbers), 3, dtype=torch.float64)
    weights = list(model.parameters())

    def loss() -> torch.Tensor:
        output = evaluate_potential(model, batch, create_graph=True)
        return output.energy.square().sum() + (output.forces - wanted).square().sum()

    loss().backward(inputs=weights)
    for weight in weights:
        direction = torch.randn_like(weight)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-5 * direction
            values.append(float(loss().detach()))
            with torch.no_grad():
                weight -= sign * 1e-5 * direction
        expected = (values[0] - values[1]) / 2e-5
        assert float((weight.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_plain_backward_gives_weights_the_same_gradients():
    rng = np.random.default_rng(13)
    batch = batch_of([crystal(rng, 3, 3.4)])
    model = fitted_model(batch)
    weights = list(model.parameters())
    grads = []
    for inputs in (weights, None):
        model.zero_grad()
        output = evaluate_potential(model, batch, create_graph=True)
        loss = output.energy.sum() + output.forces.square().sum()
        loss.backward(inputs=inputs)
        grads.append([weight.grad.clone() for weight in weights])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# --- invariances ---


def described(model, structure):
    batch = batch_of([structure])
    output = evaluate_potential(model, batch, stress=True)
    return model.features(batch), output.energy, output.forces, output.stress


def test_atoms_outside_the_cell_change_nothing():
    rng = np.random.default_rng(17)
    structure = crystal(rng, 5, 4.0)
    model = fitted_model(batch_of([structure]))
    before = described(model, structure)
    shifts = rng.integers(-4, 5, (5, 3)) @ structure.cell
    after = described(model, replace(structure, positions=structure.positions + shifts))
    for found, true in zip(after, before, strict=True):
        torch.testing.assert_close(found, true, rtol=0, atol=1e-9)


def test_rotation_reflection_and_order_of_atoms():
    rng = np.random.default_rng(19)
    structure = crystal(rng, 5, 4.0)
    model = fitted_model(batch_of([structure]))
    features, energy, forces, stress = described(model, structure)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for matrix in (turn, -turn):
        order = rng.permutation(5)
        moved = Structure(
            structure.numbers[order],
            (structure.positions[order] + 0.3) @ matrix,
            structure.cell @ matrix,
            structure.pbc,
        )
        found = described(model, moved)
        matrix = torch.from_numpy(matrix)
        for a, b in zip(
            found,
            (features[order], energy, forces[order] @ matrix, matrix.T @ stress @ matrix),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_features_fade_out_at_the_cutoffs():
    model = small_model(species=("O",))
    values = []
    for distance in (4.0 - 1e-7, 4.0 + 1e-7):
        batch = batch_of([molecule([8, 8, 8], [[0, 0, 0], [1.2, 0, 0], [0, distance, 0]])], 5.0)
        values.append(model.features(batch)[0])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-12)


def test_a_batch_is_its_structures_one_by_one(mixed_batch):
    model = fitted_model(mixed_batch)
    rng = np.random.default_rng(1)
    structures = [crystal(rng, atoms, length) for atoms, length in ((4, 3.6), (3, 3.3), (1, 2.9))]
    together = evaluate_potential(model, batch_of(structures), stress=True)
    alone = [evaluate_potential(model, batch_of([s]), stress=True) for s in structures]
    for name in ("atom_energies", "energy", "forces", "stress"):
        expected = torch.cat([getattr(output, name) for output in alone])
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-12)


def test_order_of_species_is_that_of_their_weights():
    assert [species_weights(n) for n in (1, 2, 3, 4, 5)] == [
        (0.0,),
        (-1.0, 1.0),
        (-1.0, 0.0, 1.0),
        (-2.0, -1.0, 1.0, 2.0),
        (-2.0, -1.0, 0.0, 1.0, 2.0),
    ]
    batch = batch_of([crystal(np.random.default_rng(1), 5, 4.0, elements=(22, 8))])
    first, second = (small_model(species=s).features(batch) for s in (("Ti", "O"), ("O", "Ti")))
    half = first.shape[1] // 2
    torch.testing.assert_close(first[:, :half], second[:, :half])
    radial = slice(half, half + 6)
    torch.testing.assert_close(first[:, radial], -second[:, radial])
    torch.testing.assert_close(first[:, half + 6 :], second[:, half + 6 :])


def test_atoms_without_neighbours_have_energies_and_no_forces():
    model = small_model()
    batch = batch_of([molecule([8], [[0.0, 0, 0]]), molecule([22, 38], [[0, 0, 0], [9.0, 0, 0]])])
    assert len(batch.src) == 0
    assert not model.features(batch).any()
    output = evaluate_potential(model, batch, create_graph=True)
    assert torch.isfinite(output.energy).all()
    assert not output.forces.any()


# --- cached features ---


def test_cached_features_take_the_place_of_edges(mixed_batch):
    model = fitted_model(mixed_batch)
    cached = model.features(mixed_batch)
    expected = model(mixed_batch)
    bare = replace(mixed_batch, vectors=torch.full_like(mixed_batch.vectors, torch.nan), extras={})
    bare.extras["features"] = cached
    torch.testing.assert_close(model(bare), expected, rtol=0, atol=0)


def test_only_computed_atoms_need_edges():
    rng = np.random.default_rng(23)
    structures = [crystal(rng, n, 3.8) for n in (3, 5, 4, 2)]
    whole = batch_of(structures)
    model = fitted_model(whole)
    complete = evaluate_potential(model, whole, create_graph=True)
    selected = torch.tensor([True, False, True, False])
    computed = selected[whole.node_graph]
    keep = computed[whole.dst]
    counts = whole.dst_ptr.diff() * computed
    part = replace(
        whole,
        src=whole.src[keep],
        dst=whole.dst[keep],
        shift=whole.shift[keep],
        vectors=whole.vectors[keep],
        dst_ptr=torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))),
        extras={"features": model.features(whole), "computed": computed},
    )
    output = evaluate_potential(model, part, create_graph=True)
    torch.testing.assert_close(output.energy, complete.energy)
    torch.testing.assert_close(output.forces[computed], complete.forces[computed])
    assert not output.forces[~computed].any()
    gradients = []
    for result in (output, complete):
        model.zero_grad()
        loss = result.energy.square().sum() + result.forces[computed].square().sum()
        loss.backward(inputs=list(model.parameters()))
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for found, true in zip(*gradients, strict=True):
        torch.testing.assert_close(found, true)


def test_members_of_a_committee_share_features(mixed_batch):
    members = [fitted_model(mixed_batch) for _ in range(2)]
    features = members[0].features(mixed_batch)
    for member in members:
        torch.testing.assert_close(
            member.energies(features, mixed_batch.numbers), member(mixed_batch)
        )


# --- standardised features and networks ---


def test_features_are_standardised_element_by_element(mixed_batch):
    model = small_model()
    features = model.features(mixed_batch)
    features[:, 2] = 7.0  # tells nothing
    model.fit_features(features, mixed_batch.numbers)
    element = model.place[mixed_batch.numbers]
    seen = {}
    model.networks.forward = lambda values, element: seen.update(values=values) or values[:, 0]
    model.energies(features, mixed_batch.numbers)
    for index in range(3):
        own = seen["values"][element == index]
        assert int(model.feature_atoms[index]) == len(own) > 1
        torch.testing.assert_close(own.mean(0), torch.zeros_like(own[0]), rtol=0, atol=1e-10)
        spread = own.square().mean(0).sqrt()
        expected = torch.ones_like(spread)
        expected[2] = 0.0
        torch.testing.assert_close(spread, expected)


def test_statistics_and_weights_travel_with_the_state(mixed_batch):
    model = fitted_model(mixed_batch)
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(mixed_batch), model(mixed_batch), rtol=0, atol=0)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_networks_are_those_of_torch(activation):
    hidden = [(4, 3), (4, 3), (4, 3)]
    networks = ElementNetworks(6, hidden, [(activation,) * 2] * 3).double()
    features = torch.randn(20, 6, dtype=torch.float64)
    element = torch.randint(0, 3, (20,))
    expected = torch.empty(20, dtype=torch.float64)
    for atom in range(20):
        value = features[atom]
        *inner, last = networks.layers(int(element[atom]))
        for weight, bias in inner:
            value = ACTIVATIONS[activation](weight @ value + bias)
        expected[atom] = (last[0] @ value + last[1])[0]
    torch.testing.assert_close(networks(features, element), expected)


def test_activations_are_aenets():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    twisted = 1.7159 * torch.tanh(0.666666666666667 * x)
    torch.testing.assert_close(ACTIVATIONS["mtanh"](x), twisted)
    torch.testing.assert_close(ACTIVATIONS["twist"](x), twisted + 0.1 * x)
    torch.testing.assert_close(ACTIVATIONS["sigmoid"](x), 1 / (1 + torch.exp(-x)))


def test_both_ways_to_run_networks_of_one_shape_agree(monkeypatch):
    networks = ElementNetworks(6, [(4,)] * 3, [("tanh",)] * 3).double()
    features = torch.randn(20, 6, dtype=torch.float64)
    element = torch.randint(0, 2, (20,))  # no atom of the third
    together = networks(features, element)
    monkeypatch.setattr("atomloom.models.chebyshev.network.TOGETHER", -1)
    torch.testing.assert_close(networks(features, element), together)


def test_networks_may_differ_by_element(mixed_batch):
    hidden = {"Ti": (3,), "O": (5, 4), "Sr": ()}
    model = fitted_model(
        mixed_batch, hidden=hidden, activation={"Ti": "tanh", "O": "silu", "Sr": "relu"}
    )
    features = model.features(mixed_batch)
    energies = model(mixed_batch)
    for index, symbol in enumerate(("Ti", "O", "Sr")):
        chosen = mixed_batch.numbers == model.numbers[index]
        own = features[chosen]
        values = (own - model.feature_mean[index]) * model.feature_scale[index]
        layers = []
        for weight, bias in model.networks.layers(index):
            linear = nn.Linear(weight.shape[1], weight.shape[0]).double()
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, (nn.Tanh(), nn.SiLU(), nn.ReLU())[index]]
        assert [m.out_features for m in layers[::2]] == [*hidden[symbol], 1]
        expected = nn.Sequential(*layers[:-1])(values).squeeze(1)
        torch.testing.assert_close(energies[chosen], expected)


# --- what is refused ---


def test_unknown_elements_are_named():
    model = small_model()
    model.require_elements(np.array([8, 22, 38]))
    with pytest.raises(AtomloomError, match=r"no networks for Al, Cu.*model\.species"):
        model.require_elements(np.array([8, 29, 13]))


def test_atoms_that_are_too_close_are_refused():
    batch = batch_of([molecule([8, 8], [[0, 0, 0], [0.5, 0, 0]])])
    for call in (small_model(), small_model().features):
        with pytest.raises(AtomloomError, match=r"0\.500 A apart, closer than 0\.55"):
            call(batch)
    assert torch.isfinite(small_model(min_distance=0.4)(batch)).all()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="'Xx' is not a chemical element"):
        small_model(species=("Xx", "O"))
    with pytest.raises(AtomloomError, match=r"model\.hidden: has entries for O"):
        small_model(hidden={"O": (3,)})
    with pytest.raises(AtomloomError, match="one output"):
        build_model(ChebyshevConfig(**SMALL), 2)
    with pytest.raises(ValueError, match="occurs twice"):
        ChebyshevConfig(species=("O", "O"))


def test_the_graph_is_what_the_model_needs():
    config = parse_config(
        {
            "dataset": {"name": "x", "source": "x", "target": "energy"},
            "model": {"name": "chebyshev", "species": ["O"], "angular_cutoff": 7.0},
        }
    )
    assert config.graph.neighbors == "radius"
    assert config.graph.cutoff == 7.0
    assert config.model.kind == "potential"


@pytest.mark.parametrize("hidden", [(4, 3), {"Ti": (4, 3), "O": (5,), "Sr": (2, 2)}])
def test_decorrelated_features_vary_independently(mixed_batch, hidden):
    model = small_model(decorrelate=True, hidden=hidden)
    rng = torch.Generator().manual_seed(1)
    numbers = torch.tensor([22, 8, 38]).repeat(200)
    count = model.basis.features
    mixing = torch.randn(count, count, generator=rng, dtype=torch.float64)
    features = torch.randn(600, count, generator=rng, dtype=torch.float64) @ mixing + 3.0
    model.fit_features(features, numbers)
    element = model.place[numbers]
    for index in range(3):
        z = (features - model.feature_mean[index]) * model.feature_scale[index]
        own = z[element == index]
        mixed = own @ model.networks.mixing[index]
        before = torch.linalg.eigvalsh(own.T @ own / len(own))
        after = torch.linalg.eigvalsh(mixed.T @ mixed / len(mixed))
        expected = before / (before + 1e-3 * before[-1])
        torch.testing.assert_close(after, expected.sort().values, rtol=1e-8, atol=1e-10)
        assert before[-1] / before[0] > 100
        assert after[-1] / after[-len(after) // 2] < 1.1
        # What a network of torch makes of the mixed features is what ours makes of the plain ones.
        values = mixed
        sizes = model.networks.sizes[index]
        for place, (weight, bias) in enumerate(model.networks.layers(index)):
            if place == 0:
                weight = torch.linalg.solve(model.networks.mixing[index], weight.T).T
            values = values @ weight.T + bias
            values = torch.tanh(values) if place < len(sizes) - 2 else values
        ours = model.energies(features, numbers)[element == index]
        torch.testing.assert_close(values[:, 0], ours, rtol=1e-8, atol=1e-8)
