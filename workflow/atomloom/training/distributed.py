"""Sharding of weights, gradients and optimiser state among processes (FSDP), and its inverse.

Every process holds its part of each weight, and full weights only while a batch passes the network.
Full tensors (in files, in a state) are the same as without sharding. Functions that say so must be
called by all processes; if nothing is sharded they return their input. It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard_model(model: nn.Module, fabric: Fabric) -> None:
    """Leave each process its part of the weights; to be called before the optimiser is created."""
    strategy = fabric.strategy
    assert isinstance(strategy, ModelParallelStrategy)  # `open_fabric` chooses it for fsdp
    mesh = strategy.device_mesh
    assert mesh is not None
    fully_shard(model, mesh=mesh["data_parallel"])


def summed(tensor: Tensor, fabric: Fabric) -> Tensor:
    """Sum over all processes, possibly in place; to be called by all."""
    total = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def own_part(tensor: Tensor) -> Tensor:
    """Part of a tensor held by this process, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(content: Any) -> Any:
    """Nested dicts and lists with full tensors; to be called by all processes."""
    if isinstance(content, DTensor):
        return content.full_tensor()
    if isinstance(content, Mapping):
        return {key: full_state(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(full_state(value) for value in content)
    return content


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set weights and buffers from full tensors; to be called by all processes."""
    if not isinstance(model, FSDPModule):
        model.load_state_dict(weights)
        return
    for name, tensor in model.state_dict(keep_vars=True).items():
        own_part(tensor.detach()).copy_(_part_of(weights[name], tensor))


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Set an optimiser's state from a full one; to be called by all processes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        index: {
            name: _shared_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather the full network inside the block, where each process may call it as often as it likes."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def _shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _part_of(value: Tensor, like: Tensor) -> Tensor:
    return own_part(_shared_like(value, like))
