"""Kernels compiled by numba, with their machine code cached for the next process where possible.

numba caches it next to the source or in the home folder, and raises where neither is writable: an
installation for many users, a container, a batch node without homes. Then a temporary folder is used,
or else every process compiles for itself.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Options that a kernel passes to numba."""

    cache: bool
    nogil: bool
    error_model: Literal["python", "numpy"]
    fastmath: set[str]


def njit(**options: Unpack[Options]) -> Callable[[Function], Function]:
    """numba's `njit`, except that `cache` is a wish: where nothing can be cached, nothing is."""
    cache = options.pop("cache", False)

    def compiled(function: Function) -> Function:
        kernel: Any = numba.njit(**options)(function)  # called as the function is
        if cache:
            _keep(kernel)
        return kernel

    return compiled


def _keep(kernel: Any) -> None:
    try:
        kernel.enable_caching()
    except RuntimeError:  # no writable place
        if (folder := _own_temporary_folder()) is None:
            return
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined] # numba sets its options at run time
        try:
            kernel.enable_caching()
        except RuntimeError:
            return
    save = kernel._cache.save_overload

    def save_if_there_is_room(*overload: Any) -> None:
        with suppress(OSError):
            save(*overload)

    kernel._cache.save_overload = save_if_there_is_room


@functools.cache
def _own_temporary_folder() -> str | None:
    """Temporary folder that nobody else can write to, since numba loads pickles from it; None without one."""
    try:
        folder = Path(tempfile.gettempdir()) / f"atomloom-kernels-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
    except OSError:
        return None
    own = facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return str(folder) if own and stat.S_ISDIR(facts.st_mode) else None
