"""Devices and precision: Lightning Fabric set up for a precision that is really available, or an error.

Also settings that must hold during training and be restored afterwards: threads, determinism, tf32. It
knows nothing of data or losses.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Generic, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn

from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError, LostProcess
from atomloom.inference.processes import launched_by

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


def choose_device(wanted: str) -> str:
    """Choose `cpu` or `cuda`.

    Raises:
        AtomloomError: when CUDA is requested and not available, or for any other name.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise AtomloomError(
            f"{wanted!r} is not a device", where="device", todo="use auto, cpu or cuda"
        )
    if wanted == "cpu" or torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    gpu = visible_gpu()
    if gpu is not None:
        raise AtomloomError(
            f"there is a GPU here ({gpu}) that PyTorch cannot use: torch {torch.__version__} is "
            + (
                f"built for CUDA {torch.version.cuda}"
                if torch.version.cuda
                else "built without CUDA"
            ),
            where="device",
            todo="install a driver and a wheel of torch that fit each other, or say cpu",
        )
    if wanted == "auto":
        return "cpu"
    raise AtomloomError(
        "PyTorch sees no CUDA device here", where="training.device", todo="use auto or cpu"
    )


def visible_gpu() -> str | None:
    """A GPU that is given to this process, in words; None without.

    Slurm's word counts as much as the driver's, which may be missing. CUDA_VISIBLE_DEVICES that names
    no device hides them all.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return None
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if given := os.environ.get(name):
            return f"{name}={given}, driver {_driver() or 'not found'}"
    driver = _driver()
    return f"NVIDIA driver {driver}" if driver else None


@cache
def _driver() -> str | None:
    """Version of an NVIDIA driver that has a GPU, by nvidia-smi; None without."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return told.split("\n")[0].strip() or None


def device_name(device: str | torch.device) -> str:
    """Name of a device as run cards have it: `cpu`, or the GPU's."""
    kind = torch.device(device)
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type


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
def arithmetic(settings: Training, device: str) -> Iterator[None]:
    """Set threads, determinism and tf32 by the config inside the block, and restore them afterwards."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined] # torch makes the module an object
    matmul = torch.get_float32_matmul_precision()
    if settings.threads:
        torch.set_num_threads(max(1, settings.threads // settings.devices))
    if device == "cpu":
        # Gradients of indexing are otherwise summed by several threads in any order.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # as above
    if settings.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined] # as above
        if settings.precision == "tf32":
            torch.set_float32_matmul_precision(matmul)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Use this many CPU threads inside the block; None: as many as before."""
    threads = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
