"""Messages along edges: both backends give the same sums, and the same derivatives of both orders."""

from __future__ import annotations

import pytest
import torch

from atomloom.errors import AtomloomError
from atomloom.models.common import message_passing
from atomloom.models.common.message_passing import choose_backend, dgl_imports, messages

needs_dgl = pytest.mark.skipif(not dgl_imports(), reason="DGL is not installed")
BACKENDS = ["torch", pytest.param("dgl", marks=needs_dgl)]
SHAPES = [((5,), (5,)), ((5,), (1,)), ((3, 4), (1, 4)), ((), ())]
NODES, EDGES = 9, 40


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def ends() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random edges by dst; the last node has none."""
    dst = torch.sort(torch.randint(0, NODES - 1, (EDGES,))).values
    src = torch.randint(0, NODES, (EDGES,))
    return src, dst, torch.searchsorted(dst, torch.arange(NODES + 1))


def one_by_one(src, dst, nodes, weights):
    """Sums written as the words say it."""
    total = torch.zeros((NODES, *torch.broadcast_shapes(nodes.shape[1:], weights.shape[1:])))
    total = total.to(nodes.dtype)
    for edge in range(len(src)):
        total[dst[edge]] = total[dst[edge]] + nodes[src[edge]] * weights[edge]
    return total


def reals(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("pointers", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "weight_shape"), SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_are_those_of_one_edge_after_the_other(backend, shape, weight_shape, dtype, pointers):
    src, dst, ptr = ends()
    carrier = messages(src, dst, NODES, dst_ptr=ptr if pointers else None, backend=backend)
    nodes, weights = reals(NODES, *shape, dtype=dtype), reals(EDGES, *weight_shape, dtype=dtype)
    true = one_by_one(src, dst, nodes, weights)
    torch.testing.assert_close(carrier.weighted_sum(nodes, weights), true)
    ones = torch.ones_like(nodes)
    plain = one_by_one(src, dst, ones[(..., *[slice(1)] * len(shape))], weights)
    torch.testing.assert_close(carrier.sum(weights), plain)
    torch.testing.assert_close(carrier.add_ends(nodes, 2 * nodes), nodes[src] + 2 * nodes[dst])


@pytest.mark.parametrize(("shape", "weight_shape"), SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_and_second_derivatives(backend, shape, weight_shape):
    src, dst, ptr = ends()
    carrier = messages(src, dst, NODES, dst_ptr=ptr, backend=backend)
    nodes, other, weights = reals(NODES, *shape), reals(NODES, *shape), reals(EDGES, *weight_shape)

    def ends_squared(at_src, at_dst):  # of a linear function, second derivatives say nothing
        return carrier.add_ends(at_src, at_dst).square()

    def sum_of_squares(edges):
        return carrier.sum(edges.square())

    for function, inputs in (
        (carrier.weighted_sum, (nodes, weights)),
        (sum_of_squares, (weights,)),
        (ends_squared, (nodes, other)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_half_precision_are_made_and_kept_in_single(backend):
    src, dst, ptr = ends()
    carrier = messages(src, dst, NODES, dst_ptr=ptr, backend=backend)
    nodes, weights = torch.randn(NODES, 4).bfloat16(), torch.rand(EDGES, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = carrier.weighted_sum(nodes, weights), carrier.sum(weights)
    single = messages(src, dst, NODES, backend="torch")
    torch.testing.assert_close(found[0], single.weighted_sum(nodes.float(), weights.float()))
    torch.testing.assert_close(found[1], single.sum(weights.float()))
    assert found[0].dtype == found[1].dtype == torch.float32
    assert carrier.add_ends(nodes, nodes).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_edges_sum_to_zero(backend):
    none = torch.zeros(0, dtype=torch.int64)
    ptr = torch.zeros(4, dtype=torch.int64)
    carrier = messages(none, none, 3, dst_ptr=ptr, backend=backend)
    assert torch.equal(carrier.sum(torch.zeros(0, 2)), torch.zeros(3, 2))
    assert torch.equal(carrier.weighted_sum(torch.ones(3, 2), torch.zeros(0, 2)), torch.zeros(3, 2))
    assert carrier.add_ends(torch.ones(3, 2), torch.ones(3, 2)).shape == (0, 2)


@needs_dgl
def test_dgl_is_the_default_on_a_cpu_and_torch_elsewhere():
    assert choose_backend("auto", torch.device("cpu")) == "dgl"
    assert choose_backend("auto", torch.device("cuda")) == "torch"
    with pytest.raises(AtomloomError, match="only for the CPU"):
        choose_backend("dgl", torch.device("cuda"))


def test_without_dgl_torch_is_the_default_and_asking_for_dgl_an_error(monkeypatch):
    monkeypatch.setattr(message_passing, "dgl_imports", lambda: False)
    assert choose_backend("auto", torch.device("cpu")) == "torch"
    with pytest.raises(AtomloomError, match="not installed"):
        choose_backend("dgl", torch.device("cpu"))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_compiled_function_sums_by_torch_whatever_was_asked_for(backend):
    src, dst, ptr = ends()
    nodes, weights = torch.randn(NODES, 4), torch.rand(EDGES, 4)

    def function(nodes, weights):
        return messages(src, dst, NODES, dst_ptr=ptr, backend=backend).weighted_sum(nodes, weights)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(nodes, weights), function(nodes, weights))
