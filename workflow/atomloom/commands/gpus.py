"""GPUs of a machine, lent to trials: several run at a time, and none gets what another has.

Each GPU is a file that is locked while it is lent, in a folder for all sweeps of a user on the machine. The
system releases locks with the process, however it ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from atomloom.errors import AtomloomError

VISIBLE = "CUDA_VISIBLE_DEVICES"
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""Variables of schedulers, which number the GPUs of each job from 0."""
SECONDS = 1.0
"""Time between two looks at GPUs that are all in use."""


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(VISIBLE)
    if named is not None:  # CUDA itself stops at the first name that is not one
        names = (name.strip() for name in named.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))
    if shutil.which("nvidia-smi") is None:  # spares machines without GPUs the import
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def lent(wanted: float, log: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Lend GPUs inside the block, waiting until there are any; yields the environment that names them.

    Args:
        wanted: number of GPUs; a share of one below 1; 0 for none. Without any GPU nothing is lent.
        log: told that all are in use.

    Raises:
        AtomloomError: when so many do not exist.
    """
    gpus = visible_gpus() if wanted else []
    if not gpus:
        yield {}
        return
    if wanted > len(gpus):
        raise AtomloomError(
            f"a trial needs {wanted:g} GPUs, and there are {len(gpus)}",
            where="sweep.gpus",
            todo="lower it, or training.devices",
        )
    told = False
    while True:
        with ExitStack() as held:
            taken = _whole(gpus, round(wanted), held) if wanted >= 1 else _share(gpus, wanted, held)
            if taken:
                yield {VISIBLE: ",".join(taken)}
                return
        if not told:
            log("all GPUs are in use: waiting for one")
            told = True
        time.sleep(SECONDS)


def _whole(gpus: list[str], count: int, held: ExitStack) -> list[str]:
    """Some GPUs that nobody uses; none if there are not enough of them."""
    taken: list[str] = []
    for gpu in gpus:
        if len(taken) < count and _lock(gpu, fcntl.LOCK_EX, held):
            taken.append(gpu)
    return taken if len(taken) == count else []


def _share(gpus: list[str], share: float, held: ExitStack) -> list[str]:
    """The GPU with a free share, if there is one; those that nobody uses come first."""
    for place in range(int(1 / share + 1e-9)):
        for gpu in gpus:
            with ExitStack() as own:
                if _lock(gpu, fcntl.LOCK_SH, own) and _lock(f"{gpu}.{place}", fcntl.LOCK_EX, own):
                    held.enter_context(own.pop_all())
                    return [gpu]
    return []


def _lock(name: str, kind: int, held: ExitStack) -> bool:
    """Lock a file of this name until `held` is closed; False if another process has it."""
    job = next((os.environ[name] for name in JOB_IDS if os.environ.get(name)), "")
    folder = Path(tempfile.gettempdir()) / f"atomloom-gpus-{os.getuid()}" / quote(job, safe="")
    folder.mkdir(parents=True, exist_ok=True)
    file = held.enter_context((folder / quote(name, safe="")).open("a"))
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
