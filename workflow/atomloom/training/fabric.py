"""Lightning Fabric, set up for devices and a precision that are really available, or an error.

It knows nothing of data or losses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn

from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError, LostProcess
from atomloom.inference.devices import choose_device
from atomloom.training.processes import launched_by

Content = TypeVar("Content")

FABRIC_PRECISION: dict[str, Literal["64-true", "32-true", "bf16-mixed", "16-mixed"]] = {
    "64": "64-true",
    "32": "32-true",
    "tf32": "32-true",
    "bf16-mixed": "bf16-mixed",
    "fp16-mixed": "16-mixed",
}


class Sealed(Generic[Content]):
    """Wrapper that carries a batch past Fabric, and the prediction back.

    Under mixed precision Fabric rounds every float of a network's arguments to 16 bits, including edge
    vectors, before autocast applies; and every output to 32 bits, even of a network in 64 bits. It
    converts lists, dicts and dataclasses, but not this class.
    """

    __slots__ = ("content",)

    def __init__(self, content: Content) -> None:
        self.content = content


class Network(nn.Module):
    """Model as passed to Fabric."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sealed: Sealed[GraphBatch]) -> Sealed[Tensor]:
        return Sealed(self.model(sealed.content))


def check_precision(precision: str, device: str, log: Callable[[str], None]) -> None:
    """Check that a precision is available on this device; warn if it is only slow.

    Raises:
        AtomloomError: when it is not available.
    """
    where = "training.precision"
    if precision == "tf32" and not (
        device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    ):
        raise AtomloomError(
            "tf32 needs an NVIDIA GPU of compute capability 8.0", where=where, todo="use 32"
        )
    if precision == "fp16-mixed" and device != "cuda":
        raise AtomloomError(
            "fp16-mixed needs a CUDA device", where=where, todo="use bf16-mixed or 32"
        )
    if precision != "bf16-mixed":
        return
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise AtomloomError("this GPU has no bf16", where=where, todo="use fp16-mixed or 32")
    if device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        log("warning: this CPU has no bf16 instructions; bf16-mixed is correct, but slower than 32")


def open_fabric(settings: Training, log: Callable[[str], None]) -> Fabric:
    """Open Fabric for the device and precision of the config.

    Raises:
        AtomloomError: when the devices or the precision are not available.
    """
    launcher = launched_by(settings.devices, settings.nodes)
    device = choose_device(settings.device)
    check_precision(settings.precision, device, log)
    if device == "cuda" and settings.devices > torch.cuda.device_count():
        raise AtomloomError(
            f"there are {torch.cuda.device_count()} CUDA devices here, not {settings.devices}",
            where="training.devices",
        )
    shared_64 = settings.strategy == "fsdp" and settings.precision == "64"
    with _quiet_fabric():
        fabric = Fabric(
            accelerator=device,
            devices=settings.devices,
            strategy=_strategy(settings),
            # Fabric's names for weights that keep their precision; sharded ones are of 64 bits.
            precision="32-true" if shared_64 else FABRIC_PRECISION[settings.precision],
            num_nodes=settings.nodes,
            plugins=[launcher],
        )
        fabric.launch()
    return fabric


def _strategy(settings: Training) -> Strategy | str:
    if settings.processes == 1:
        return "auto"
    if settings.strategy != "fsdp":
        return "ddp"
    # Which weights are sharded is decided where the network is created (`shard_model`): before its
    # optimiser, and inside the module passed to Fabric.
    return ModelParallelStrategy(
        parallelize_fn=lambda module, _: module,
        data_parallel_size=settings.processes,
        tensor_parallel_size=1,
    )


def share_from_first(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Broadcast the first process's values of these tensors to all, in place."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


@contextmanager
def exchanging(fabric: Fabric, where: object) -> Iterator[None]:
    """Let exchanges in the block that fail, because another process has ended or hangs, be an AtomloomError.

    Args:
        fabric: of the processes.
        where: the run, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo have no class of their own, but name its source file.
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if fabric.world_size == 1 or not lost:
            raise
        raise LostProcess(
            f"process {fabric.global_rank} of {fabric.world_size} has lost another one, which was killed, "
            "has failed with a message of its own, or hangs",
            where=where,
            todo="see why, then start the same again: it resumes from the last saved state",
        ) from error


def close_fabric(fabric: Fabric) -> None:
    """Release the other processes."""
    if fabric.world_size > 1:
        fabric.barrier()
        torch.distributed.destroy_process_group()


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
