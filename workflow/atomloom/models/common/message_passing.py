"""Message passing: sums over edges at their ends, in one interface with two backends.

`torch` works on every device and under torch.compile. `dgl` uses the fused kernels of DGL (g-SpMM and
g-SDDMM), which never write messages to memory and are faster on a CPU; they cannot be traced, so a
model that is being compiled gets `torch` whatever was requested. Both agree to rounding, in values and in first
and second derivatives. It knows nothing of particular models.

Legend: N nodes, E edges; features of a node or an edge may have any shape.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from atomloom.errors import AtomloomError
from atomloom.models.common.layers import at_least_single, full_precision, gather, segment_sum

Backend = Literal["auto", "dgl", "torch"]


class Messages(Protocol):
    """Edges of a graph, ready to carry values from sources to destinations."""

    def sum(self, edges: Tensor) -> Tensor:
        """Sum of edge values [E, ...] at the destinations: [N, ...], in at least float32."""
        ...

    def weighted_sum(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """Sum of source values [N, ...] times edge weights [E, ...], at the destinations.

        The shapes after N and E are broadcast. [N, ...], in at least float32.
        """
        ...

    def add_ends(self, at_src: Tensor, at_dst: Tensor) -> Tensor:
        """Source value plus destination value on every edge: [E, ...] from two of [N, ...]."""
        ...


def messages(
    src: Tensor,
    dst: Tensor,
    nodes: int,
    *,
    dst_ptr: Tensor | None = None,
    backend: Backend = "auto",
) -> Messages:
    """Edges src -> dst, by the chosen backend.

    Args:
        src: [E] int64.
        dst: [E] int64.
        nodes: N.
        dst_ptr: [N+1] int64, first edge of each destination, where `dst` ascends; saves DGL a sort.
        backend: `auto` takes `dgl` on a CPU where it can be imported, otherwise `torch`.

    Raises:
        AtomloomError: if `dgl` is requested and cannot be imported, or has no kernels for the device.
    """
    if choose_backend(backend, src.device) == "dgl":
        return _DGLMessages(src, dst, nodes, dst_ptr)
    return _TorchMessages(src, dst, nodes)


def choose_backend(wanted: Backend, device: torch.device) -> str:
    """Backend to use, `dgl` or `torch`; AtomloomError where the requested one is missing."""
    if wanted == "torch" or torch.compiler.is_compiling():
        return "torch"
    if wanted == "auto":
        return "dgl" if device.type == "cpu" and dgl_imports() else "torch"
    if not dgl_imports():
        raise AtomloomError(
            "DGL is not installed, or does not load",
            where="backend dgl",
            todo="pip install 'atomloom[dgl]', or choose torch",
        )
    if device.type != "cpu":
        raise AtomloomError(
            "the DGL that loads with this torch has kernels only for the CPU",
            where="backend dgl",
            todo="choose auto or torch",
        )
    return "dgl"


@lru_cache(maxsize=1)
def dgl_imports() -> bool:
    """Whether DGL is installed and loads."""
    # By default it writes its backend to a file in the home folder, and fails without a home folder.
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        import dgl  # noqa: F401
    except (ImportError, OSError):  # absent; or built for another torch
        return False
    return True


class _TorchMessages:
    def __init__(self, src: Tensor, dst: Tensor, nodes: int) -> None:
        self.src, self.dst, self.nodes = src, dst, nodes

    def sum(self, edges: Tensor) -> Tensor:
        with full_precision(edges):
            return segment_sum(edges, self.dst, self.nodes)

    def weighted_sum(self, nodes: Tensor, weights: Tensor) -> Tensor:
        with full_precision(nodes):
            carried = gather(at_least_single(nodes), self.src) * at_least_single(weights)
            return segment_sum(carried, self.dst, self.nodes)

    def add_ends(self, at_src: Tensor, at_dst: Tensor) -> Tensor:
        return gather(at_src, self.src) + gather(at_dst, self.dst)


class _DGLMessages:
    def __init__(self, src: Tensor, dst: Tensor, nodes: int, dst_ptr: Tensor | None) -> None:
        import dgl

        self.ops = dgl.ops
        if dst_ptr is None:
            self.graph = dgl.graph((src, dst), num_nodes=nodes)
        else:
            # Edges are numbered in order; without numbers, kernels for float32 refuse.
            ids = torch.arange(len(src))
            self.graph = dgl.graph(("csc", (dst_ptr, src, ids)), num_nodes=nodes)

    def sum(self, edges: Tensor) -> Tensor:
        return self.ops.copy_e_sum(self.graph, at_least_single(edges))

    def weighted_sum(self, nodes: Tensor, weights: Tensor) -> Tensor:
        return self.ops.u_mul_e_sum(self.graph, at_least_single(nodes), at_least_single(weights))

    def add_ends(self, at_src: Tensor, at_dst: Tensor) -> Tensor:
        dtype = torch.promote_types(at_src.dtype, at_dst.dtype)
        summed = self.ops.u_add_v(self.graph, at_least_single(at_src), at_least_single(at_dst))
        return summed.to(dtype)
