"""Devices that are really available, or an error, and settings that hold for a while: threads, determinism, tf32.

It knows nothing of data, losses or Lightning Fabric, which prediction does without.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from atomloom.config.training import Training
from atomloom.errors import AtomloomError


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
