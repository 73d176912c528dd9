"""Errors that end a training early, with where they happened and what to do.

It knows nothing of the loop.
"""

from __future__ import annotations

import signal
from pathlib import Path

import torch
from torch import Tensor

from atomloom.config.model import TabularSection
from atomloom.config.root import Config
from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError, InterruptedRun, StoppedRun


def check_validation(settings: Training, rows: int) -> None:
    """Raise AtomloomError if a setting needs validation rows and there are none."""
    wants = {
        "early_stopping": settings.early_stopping,
        "scheduler": settings.scheduler == "plateau",
    }
    for name, wanted in wants.items():
        if wanted and not rows:
            raise AtomloomError(
                "needs a validation set", where=f"training.{name}", todo="give the split one"
            )


def require_steps_on_batches(config: Config) -> None:
    """Raise AtomloomError if steps on single batches are to be measured, but the training takes none."""
    if isinstance(config.model, TabularSection):
        raise AtomloomError(
            f"steps on single batches are measured, and {config.model.name} is fitted at once",
            where="model.name",
        )
    if config.training.optimizer == "lbfgs":
        raise AtomloomError(
            "steps on single batches are measured, which lbfgs does not take",
            where="training.optimizer",
            todo="measure with adamw",
        )


def check_finite(
    loss_sums: Tensor,
    batches: range,
    run_dir: Path,
    epoch: int,
    batch: GraphBatch | None = None,
) -> None:
    """Raise AtomloomError if the loss of a batch is not a finite number.

    Args:
        loss_sums: [batches of the epoch, L].
        batches: those to check.
        run_dir: the run's folder.
        epoch: number of epochs done.
        batch: the last of them, to name its rows.
    """
    finite = torch.isfinite(loss_sums[batches.start : batches.stop])
    if bool(finite.all()):
        return
    found = batches[int(torch.nonzero(~finite.all(dim=1))[0])]
    rows = ""
    if batch is not None and batch.rows is not None and found == batches[-1]:
        rows = f" (rows {batch.rows[:8].tolist()} ...)"
    raise AtomloomError(
        f"the loss is not a finite number at epoch {epoch + 1}, batch {found + 1}" + rows,
        where=run_dir,
        todo="lower training.learning_rate, set training.clip_norm, or check these structures",
    )


def diverged(run_dir: Path, epoch: int, step: int) -> AtomloomError:
    """Error of a run whose weights are no longer finite."""
    return AtomloomError(
        f"the weights are no longer finite numbers at epoch {epoch + 1}, step {step}",
        where=run_dir,
        todo="lower training.learning_rate, or set training.clip_norm",
    )


def predicts_nothing(run_dir: Path, epoch: int, step: int) -> AtomloomError:
    """Error of a run whose validation error is not finite."""
    return AtomloomError(
        f"the model's predictions are not finite numbers after epoch {epoch + 1}, step {step}",
        where=run_dir,
        todo="lower training.learning_rate, or set training.clip_norm",
    )


def stopped(run_dir: Path, by: int) -> AtomloomError:
    """Error of a run that was stopped by a signal, and has saved its state."""
    kind, name = (InterruptedRun, "Ctrl-C") if by == signal.SIGINT else (StoppedRun, "SIGTERM")
    return kind(
        f"stopped by {name}; the state is saved", where=run_dir, todo="run the same again to resume"
    )


class TakenOver(AtomloomError):
    """Run that another process trains by now, where the file system has no locks."""


def taken_over(run_dir: Path, other: str) -> TakenOver:
    """Error of a process whose run another one has taken over, told who."""
    return TakenOver(
        f"{other} has taken this run over, as the file system has no lock that both would see: waiting "
        "for it; what it writes is complete, and this process writes nothing more",
        where=run_dir,
        todo="it may be stopped",
    )
