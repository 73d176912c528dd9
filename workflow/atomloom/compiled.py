"""Kernels compiled by numba, with their machine code cached for the next process where possible.

numba takes longer to import than many a command runs, so it is imported when the first kernel is called.
It caches the code next to the source or in the home folder, and raises where neither is writable: an
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
from threading import RLock
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast

Function = TypeVar("Function", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Options that a kernel passes to numba."""

    cache: bool
    nogil: bool
    error_model: Literal["python", "numpy"]
    fastmath: set[str]


def njit(**options: Unpack[Options]) -> Callable[[Function], Function]:
    """numba's `njit`, except that `cache` is a wish: where nothing can be cached, nothing is."""

    def kernel(function: Function) -> Function:
        return cast(Function, Kernel(function, options))

    return kernel


class Kernel:
    """Function that is given to numba when it is first called, by Python or by another kernel."""

    _lock = RLock()

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compiled())(*arguments)

    def __reduce__(self) -> str:
        """Its name: a copy of what holds a kernel has the same one, and another process its own."""
        return self._function.__qualname__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by Python itself, as for a copy
            raise AttributeError(name)
        return getattr(self.compiled(), name)

    def compiled(self) -> Any:
        """numba's function, which compiles for each new type of arguments."""
        with Kernel._lock:
            if self._compiled is None:
                numba = _numba()
                options = {name: value for name, value in self._options.items() if name != "cache"}
                kernel = numba.njit(**options)(self._function)
                if self._options.get("cache"):
                    _keep(kernel)
                self._compiled = kernel
        return self._compiled


@functools.cache
def _numba() -> Any:
    """numba, which from now on takes a kernel that another one calls for what it compiles to."""
    import numba
    from numba.extending import typeof_impl

    @typeof_impl.register(Kernel)
    def type_of(kernel: Kernel, context: object) -> Any:
        return numba.types.Dispatcher(kernel.compiled())

    return numba


def _keep(kernel: Any) -> None:
    try:
        kernel.enable_caching()
    except RuntimeError:  # no writable place
        if (folder := _own_temporary_folder()) is None:
            return
        _numba().config.CACHE_DIR = folder
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
