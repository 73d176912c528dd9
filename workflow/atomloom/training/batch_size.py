"""The largest batch that fits into memory, found by real training steps on the heaviest batches.

A trial process takes larger and larger batches until one does not fit, or it is killed for its
memory; another one then searches between the last that fitted and the first that did not. On a GPU
the memory is the GPU's, else that of the whole process. It knows nothing of how trial processes are
started.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atomloom.config.root import Config
from atomloom.data.batching import plan_epoch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import AHEAD, Loader
from atomloom.inference.devices import arithmetic
from atomloom.training.fabric import open_fabric
from atomloom.training.failures import require_steps_on_batches
from atomloom.training.trainer import Trainer, rows_with_targets

STEPS = 2
"""Number of steps of a trial: the first creates the optimiser's state, the second runs with it."""
CAUTION = 0.9
"""Share of the limit for a trial, since a few steps do not show what a long run adds."""
FINENESS = 16
"""Relative precision of the search, as one part in this many."""


@dataclass(frozen=True)
class Trial:
    """Training steps on the heaviest batches of a number of structures."""

    structures: int
    atoms: int
    """Number of atoms of the batch with most atoms."""
    edges: int
    """Number of edges of the batch with most edges."""
    triplets: int
    peak: int
    """Peak memory so far in bytes."""

    def content(self) -> dict[str, int]:
        """Fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """Result of the search."""

    best: Trial | None
    """Largest batch that fits; None if not even one structure does."""
    tried: tuple[Trial, ...]
    whole: bool
    """Whether it holds all structures at once."""


def find_batch(attempt: Callable[[list[int]], Iterable[Trial]], most: int, limit: int) -> Found:
    """Find the largest number of structures whose steps stay below the limit.

    Args:
        attempt: makes trials of the given sizes, in ascending order, as far as they fit.
        most: number of existing structures.
        limit: bytes.
    """
    tried: list[Trial] = []

    def run(sizes: list[int]) -> tuple[Trial | None, int | None]:
        """Return the last trial that fits, and the next size, which does not."""
        last = None
        for trial in attempt(sizes):
            tried.append(trial)
            if trial.peak > CAUTION * limit:
                break
            last = trial
        place = sizes.index(last.structures) + 1 if last else 0
        return last, sizes[place] if place < len(sizes) else None

    doubling = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    best, above = run(doubling)
    while best is not None and above is not None:
        step = max(1, -(-(above - best.structures) // 8))
        between = list(range(best.structures + step, above, step))
        if not between or above - best.structures <= max(1, best.structures // FINENESS):
            break
        better, next_above = run(between)
        best, above = better or best, next_above or above
    return Found(best, tuple(tried), best is not None and best.structures == most)


def make_trials(data: LabelledGraphs, config: Config, sizes: Iterable[int]) -> Iterator[Trial]:
    """Run trials of ascending sizes in this process.

    Steps are those of training, with the optimiser's state, the moving average, a copy of the best
    weights, and as many batches at once as a loader prepares ahead. On a GPU, a size that does not fit
    ends them.

    Raises:
        AtomloomError: as training, and when the optimiser takes no steps on batches.
    """
    settings = config.training
    require_steps_on_batches(config)
    fabric = open_fabric(settings, _say_nothing)
    rows, val_rows = (rows_with_targets(data, split, _say_nothing) for split in ("train", "val"))
    trainer = Trainer(data, config, fabric, rows, val_rows, _say_nothing)
    kept = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    peak = peak_memory(fabric.device)
    with arithmetic(settings, fabric.device.type):
        for size in sizes:
            bounds = settings.batch.model_copy(update={"structures": size})
            loader = trainer.loader(rows, bounds, shuffle=True)
            heaviest = _heaviest(loader)
            try:
                for chosen in heaviest.values():
                    _steps(trainer, loader, [loader.slice(chosen) for _ in range(1 + AHEAD)])
                if len(val_rows):
                    validation = trainer.loader(val_rows, bounds)
                    trainer.model.eval()
                    derivatives = any(spec.derived for spec in config.targets)
                    with torch.set_grad_enabled(derivatives), fabric.autocast():
                        trainer.step_network.model(validation.slice(validation.largest_batch()))
            except torch.OutOfMemoryError:
                return
            peak = max(peak, peak_memory(fabric.device))
            counts = {
                name: int(getattr(loader.sizes, name)[chosen].sum())
                for name, chosen in heaviest.items()
                if name != "atom_pairs"
            }
            yield Trial(size, **{"triplets": 0, **counts}, peak=peak)
    del kept


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes, of the GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` may report the process that started this one
        line = next(w for w in status.read_text().splitlines() if w.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _heaviest(loader: Loader) -> dict[str, np.ndarray]:
    """Rows of the batches with most atoms, edges and triplets that the bounds allow; and with most pairs of atoms,
    where these are bounded."""
    found: dict[str, np.ndarray] = {}
    for name in ("atoms", "edges", "triplets", "atom_pairs"):
        sizes = getattr(loader.sizes, name)
        if not sizes.any() or (name == "atom_pairs" and loader.bounds.atom_pairs is None):
            continue
        order = np.argsort(-sizes[loader.rows], kind="stable")
        plan = plan_epoch(loader.rows[order], loader.sizes, loader.bounds)
        found[name] = plan[int(np.argmax(plan.sums(sizes)))]
    return found


def _steps(trainer: Trainer, loader: Loader, batches: list[Any]) -> None:
    trainer.model.train()
    trainer.objective.begin(0, trainer.device)
    terms = trainer.objective.counts(loader, 0).shape[1]
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        shares = torch.full((terms,), 1.0 / max(1, batch.size), device=trainer.device)
        trainer.micro_step(batch, shares)
        trainer.optimizer_step()


def _say_nothing(_: str) -> None:
    """Ignore a message of a trial."""
