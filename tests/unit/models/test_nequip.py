"""NequIP couples as e3nn does, and its radial functions end smoothly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config.model import NequIPConfig
from atomloom.data.batch import GraphBatch
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.nequip import network
from atomloom.models.nequip.tables import EVEN_SCALAR, Irrep, Layout, Paths, coupling
from tests.unit.models.potentials import (
    crystal,
    everything,
    molecule,
    orthogonal,
    radius_batch,
    turned,
)

CUTOFF = 3.6


def config(**options) -> NequIPConfig:
    return NequIPConfig(cutoff=CUTOFF, features=(6, 4, 3), layers=3, **options)


def seeded(**options) -> network.NequIP:
    """In float64."""
    torch.manual_seed(0)
    return build_model(config(**options), 1).double()


def batch_of(structures) -> GraphBatch:
    return radius_batch(structures, CUTOFF)


# --- tables ---------------------------------------------------------------------------------------


def test_coupling_coefficients_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3")
    for first in range(5):
        for second in range(5):
            for third in range(abs(first - second), min(first + second, 4) + 1):
                theirs = o3.wigner_3j(first, second, third).double().numpy()  # stored in float32
                np.testing.assert_allclose(coupling(first, second, third), theirs, atol=1e-6)


def test_harmonics_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3")
    torch.manual_seed(0)
    vectors = torch.randn(20, 3, dtype=torch.float64)
    ours = network.SphericalHarmonics(4)(vectors)
    theirs = o3.spherical_harmonics(list(range(5)), vectors, False, "component")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_convolution_is_a_tensor_product_of_e3nn(compiled, monkeypatch):
    o3 = pytest.importorskip("e3nn.o3")
    monkeypatch.setattr(passes, "by_passes", lambda values: compiled)
    source = Layout.of([(EVEN_SCALAR, 3), (Irrep(0, -1), 2), (Irrep(1, -1), 2), (Irrep(2, 1), 2)])
    harmonics = [Irrep(0, 1), Irrep(1, -1), Irrep(2, 1)]
    wanted = [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1), Irrep(2, 1)]
    convolution = network.Convolution(Paths.of(source, harmonics, wanted))
    paths = convolution.paths
    batch = batch_of([molecule(), crystal()])
    edges, count = passes.Edges.of(batch), len(batch.numbers)
    torch.manual_seed(0)
    features = torch.randn(count, source.size, dtype=torch.float64)
    filters = torch.randn(len(edges.src), paths.filters, dtype=torch.float64)
    angular = network.SphericalHarmonics(2)(edges.directions)
    ours = convolution(features, angular, filters, edges)

    irreps = [
        o3.Irreps([(block.copies, (block.irrep.degree, block.irrep.parity))])
        for block in source.blocks
    ]
    ends = [
        (path.source.copies, (path.target.irrep.degree, path.target.irrep.parity))
        for path in paths.paths
    ]
    product = o3.TensorProduct(
        sum(irreps, o3.Irreps("")),
        o3.Irreps("0e + 1o + 2e"),
        o3.Irreps(ends),
        [
            (source.blocks.index(path.source), path.degree, place, "uvu", True)
            for place, path in enumerate(paths.paths)
        ],
        shared_weights=False,
        internal_weights=False,
    ).double()
    expected = torch.zeros(count, product.irreps_out.dim, dtype=torch.float64)
    sides = [(edges.src, edges.dst, angular)]
    if compiled:
        back = network.SphericalHarmonics(2)(-edges.directions)
        sides.append((edges.dst, edges.src, back))
    for src, dst, values in sides:
        rows = torch.cat([_copies_first(features, block)[src] for block in source.blocks], dim=1)
        expected.index_add_(0, dst, product(rows, values, filters))
    for place, path in enumerate(paths.paths):
        part = expected[:, product.irreps_out.slices()[place]]
        block = path.target
        own = ours[:, block.start : block.stop].unflatten(1, (-1, block.copies))
        own = own[:, :, path.first : path.first + path.source.copies]
        # e3nn keeps its coefficients in single precision
        torch.testing.assert_close(own.transpose(1, 2).flatten(1), part, rtol=1e-5, atol=1e-5)


def _copies_first(features, block):
    """Features of one irrep, in e3nn's order: components within copies."""
    values = features[:, block.start : block.stop].unflatten(1, (-1, block.copies))
    return values.transpose(1, 2).flatten(1)


# --- the network ----------------------------------------------------------------------------------


def test_without_parity_a_mirror_image_may_have_another_energy():
    model, matrix = seeded(parity=False), orthogonal(3, -1)
    before = evaluate_potential(model, batch_of(everything())).energy
    mirrored = [turned(one, matrix) for one in everything()]
    after = evaluate_potential(model, batch_of(mirrored)).energy
    assert (before - after).abs().max() > 1e-8


@pytest.mark.parametrize("envelope", ["polynomial", "xplor"])
def test_filters_go_to_zero_at_the_cutoff_with_two_derivatives(envelope):
    """The polynomial; the switch has one."""
    radial = seeded(envelope=envelope, envelope_start=2.0).radial
    lengths = torch.tensor([CUTOFF - 1e-5, CUTOFF, CUTOFF + 1.0], dtype=torch.float64)
    lengths.requires_grad_()
    values = radial(lengths)
    assert values.abs().max() < 1e-8
    (slope,) = torch.autograd.grad(values.sum(), lengths, create_graph=True)
    assert slope.abs().max() < 1e-3
    if envelope == "polynomial":
        (curvature,) = torch.autograd.grad(slope.sum(), lengths)
        assert curvature.abs().max() < 1e-2


def test_a_convolution_has_the_derivatives_of_finite_differences(way):
    batch = batch_of([crystal(), molecule(atoms=3)])
    edges, atoms = passes.Edges.of(batch), len(batch.numbers)
    source = Layout.of([(EVEN_SCALAR, 2), (Irrep(1, 1), 2)])
    degrees = [Irrep(degree, 1) for degree in range(3)]
    convolution = network.Convolution(Paths.of(source, degrees, degrees))
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    pairs = len(edges.src)
    given = [random(atoms, source.size), random(pairs, 9), random(pairs, convolution.paths.filters)]

    def summed(*inputs):
        return convolution(*inputs, edges)

    assert torch.autograd.gradcheck(summed, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(summed, given, fast_mode=True)


def test_a_late_switch_is_refused():
    with pytest.raises(ValueError, match="not below the cutoff"):
        config(envelope="xplor", envelope_start=CUTOFF)
