"""Shared layers: weighted statistics, tables, sums over edges, element features, the registry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from atomloom.config.model import IComFormerConfig
from atomloom.errors import AtomloomError
from atomloom.models import MODELS, build_model, model_class
from atomloom.models.common.features import cgcnn_features, require_cgcnn_features
from atomloom.models.common.layers import (
    BasisTable,
    EdgeBlocks,
    GaussianBasis,
    WeightedBatchNorm,
    centred_product,
    mean_over_structures,
    segment_sum,
    tabulated,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch_norms(features: int = 5) -> tuple[WeightedBatchNorm, nn.BatchNorm1d]:
    ours, theirs = WeightedBatchNorm(features).double(), nn.BatchNorm1d(features).double()
    for norm in (ours, theirs):
        torch.manual_seed(1)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return ours, theirs


def test_weighted_batch_norm_equals_batch_norm_of_repeated_rows():
    ours, theirs = batch_norms()
    counts = torch.randint(1, 4, (40,))
    values = (torch.randn(40, 5, dtype=torch.float64) * 3 + 7).requires_grad_()
    repeated = values.detach().repeat_interleave(counts, dim=0).requires_grad_()
    slopes = torch.randn(40, 5, dtype=torch.float64)

    found = ours(values, counts.double())
    (found * slopes * counts.unsqueeze(1)).sum().backward()
    true = theirs(repeated)
    (true * slopes.repeat_interleave(counts, dim=0)).sum().backward()

    torch.testing.assert_close(found.repeat_interleave(counts, dim=0), true, rtol=0, atol=1e-12)
    rows = torch.arange(40).repeat_interleave(counts)
    summed = torch.zeros(40, 5, dtype=torch.float64).index_add(0, rows, repeated.grad)
    torch.testing.assert_close(values.grad, summed, rtol=0, atol=1e-11)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


def test_batch_norm_without_weights_and_in_evaluation_equals_torch():
    ours, theirs = batch_norms()
    values = torch.randn(9, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(values), theirs(values))
    torch.testing.assert_close(ours.eval()(values), theirs.eval()(values))


def test_batch_norm_gradients_of_both_orders():
    norm, _ = batch_norms(3)
    values = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 2, 1, 1, 2, 2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: norm(x, weights), values)
    assert torch.autograd.gradgradcheck(lambda x: norm(x, weights), values)


def test_batch_statistics_stay_in_single_precision_under_autocast():
    norm, _ = batch_norms()
    norm = norm.float()
    values = torch.randn(4000, 5) * 0.01 + 3.0
    weights = torch.randint(1, 3, (4000,)).float()
    expected = norm(values, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(values, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_batch_norm_of_one_row_is_its_bias_and_of_none_leaves_statistics_alone():
    norm, _ = batch_norms()
    torch.testing.assert_close(norm(torch.randn(1, 5).double())[0], norm.bias)
    before = norm.running_mean.clone(), norm.running_var.clone()
    assert norm(torch.zeros(0, 5).double()).shape == (0, 5)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


@pytest.mark.parametrize("centers", [32, 256])
def test_table_is_as_exact_as_single_precision(centers):
    basis = GaussianBasis(-4.0, 0.0, centers).double()
    layer = nn.Sequential(basis, nn.Linear(centers, 24), nn.Softplus()).double()
    table = BasisTable(basis, -4.0 - BasisTable.REACH * basis.width, 0.0)
    x = torch.cat((torch.linspace(-6, 0, 4001), torch.tensor([-4.0, 0.0, -1e4]))).double()
    with torch.no_grad():
        true, found = layer(x), table.interpolate(layer(table.grid(x)), x)
    assert float((found - true).abs().max() / true.abs().max()) < 2e-7


def test_table_passes_gradients_on():
    basis = GaussianBasis(-1.0, 1.0, 16)
    layers = [nn.Sequential(basis, nn.Linear(16, 8), nn.Softplus()) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    table = BasisTable(basis, -1.0, 1.0)
    x = torch.rand(3 * table.rows) * 2 - 1
    slopes = torch.randn(len(x), 8)
    for layer, how in zip(layers, (None, table), strict=True):
        (tabulated(layer, how, x) * slopes).sum().backward()
    for exact, found in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert float((found.grad - exact.grad).norm() / exact.grad.norm()) < 1e-5


def test_double_precision_and_differentiable_lengths_use_no_table():
    basis = GaussianBasis(-1.0, 1.0, 16)
    table = BasisTable(basis, -1.0, 1.0)
    x = torch.rand(3 * table.rows) * 2 - 1
    assert torch.equal(tabulated(basis, table, x.double()), basis(x.double()))
    x.requires_grad_()
    assert torch.equal(tabulated(basis, table, x), basis(x))


def test_centred_product_loses_less_where_rows_differ_little():
    values = 5.0 + 0.01 * torch.randn(300, 64)
    linear = nn.Linear(64, 64)
    true = linear(values)
    centred = centred_product(values, linear.weight, linear.bias, torch.bfloat16)
    plain = linear.bfloat16()(values.bfloat16()).float()
    assert (centred - true).norm() < 0.02 * (plain - true).norm()
    linear = linear.float()
    torch.testing.assert_close(
        centred_product(values, linear.weight, linear.bias, None), linear(values)
    )


def test_segment_sum_and_mean():
    values = torch.randn(7, 3)
    index = torch.tensor([0, 0, 2, 2, 2, 3, 3])
    expected = torch.stack([values[index == k].sum(0) for k in range(5)])
    torch.testing.assert_close(segment_sum(values, index, 5), expected)
    ptr = torch.tensor([0, 2, 2, 5, 7])
    mean = mean_over_structures(values, index, ptr)
    counts = torch.tensor([2.0, 1.0, 3.0, 2.0])
    torch.testing.assert_close(mean, expected[:4] / counts[:, None])
    assert segment_sum(values.bfloat16(), index, 5).dtype == torch.float32


@pytest.mark.parametrize("edges", [0, 1, 31, 32, 33, 500])
def test_edge_blocks_hold_each_edge_once(edges):
    atoms = 9
    index = torch.randint(0, atoms - 1, (edges,))  # the last atom has none
    values = torch.randn(edges, 4)
    blocks = EdgeBlocks(index, atoms)
    packed = blocks.pack(values)
    torch.testing.assert_close(blocks.unpack(packed), values)
    torch.testing.assert_close(blocks.collect(packed.sum(1)), segment_sum(values, index, atoms))
    atom_values = torch.randn(atoms, 2)
    spread = blocks.unpack(blocks.spread(atom_values).unsqueeze(1).expand(-1, blocks.LENGTH, -1))
    torch.testing.assert_close(spread, atom_values[index])


def test_element_features_equal_jarvis():
    from jarvis.core.specie import get_node_attributes

    table = cgcnn_features()
    assert table.shape == (119, 92)
    for number, symbol in ((1, "H"), (8, "O"), (38, "Sr"), (83, "Bi")):
        np.testing.assert_array_equal(table[number], get_node_attributes(symbol, "cgcnn"))


def test_elements_without_features_are_named():
    require_cgcnn_features(np.array([1, 8, 100]))
    with pytest.raises(AtomloomError, match=r"mine\.cif: .*\[0, 104, 300\]"):
        require_cgcnn_features(np.array([8, 104, 0, 300]), where="mine.cif")
    assert np.isnan(cgcnn_features()[104]).all()


def test_registry_finds_every_model_and_names_the_choice():
    for name in MODELS:
        assert issubclass(model_class(name), nn.Module)
    with pytest.raises(AtomloomError, match="icomformer"):
        model_class("nonsense")
    with pytest.raises(AtomloomError, match="at least one output"):
        build_model(IComFormerConfig(width=4), 0)
