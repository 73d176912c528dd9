"""Loggers of the history of a run besides history.csv: TensorBoard, MLflow, Weights & Biases.

Each is a separate package that is imported on demand. It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from atomloom.errors import AtomloomError
from atomloom.training.logging.history import is_time

GROUPS = {"train": "loss/train", "val_loss": "loss/val", "val_mae": "error/val_mae"}
"""Prefix of a column of the history -> its group; other columns are logged under their own names."""


class Logger(Protocol):
    """Interface of a logger."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Log a row of the history."""

    def close(self) -> None:
        """Close at the end or stop of the run."""


class TensorBoard:
    """Event files in the run's folder `tensorboard/`, one scalar per column, by epoch."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], epoch: int) -> None:
        writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # Entries of a killed call for epochs that are now repeated are purged.
        self._writer = writer(str(run_dir / "tensorboard"), purge_step=epoch + 1 if epoch else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Log scalars of an epoch."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """Run of MLflow, located by its environment variables; resumed by its id."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], epoch: int) -> None:
        self._mlflow = _package("mlflow", "mlflow")
        known = run_dir / "state" / "mlflow.txt"
        if epoch and known.exists():
            self._mlflow.start_run(run_id=known.read_text())
            return
        run = self._mlflow.start_run(run_name=run_dir.name)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(run.info.run_id)
        self._mlflow.log_params(_flat(config))

    def write(self, row: Mapping[str, Any]) -> None:
        """Log metrics of an epoch."""
        self._mlflow.log_metrics(_numbers(row), step=row["epoch"])

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandB:
    """Run of Weights & Biases, named after the run's folder, by which it is resumed."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], epoch: int) -> None:
        wandb = _package("wandb", "wandb")
        self._run = wandb.init(
            id=run_dir.name, dir=str(run_dir), config=_flat(config), resume="allow"
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Log metrics of an epoch."""
        self._run.log(_numbers(row), step=row["epoch"])

    def close(self) -> None:
        """End the run."""
        self._run.finish()


LOGGERS: dict[str, type] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def open_loggers(
    names: Sequence[str], run_dir: Path, config: Mapping[str, Any], epoch: int
) -> list[Logger]:
    """Open the loggers of these names.

    Args:
        names: as in `training.loggers`.
        run_dir: the run's folder.
        config: nested settings, for loggers that record them.
        epoch: number of epochs already done.

    Raises:
        AtomloomError: when a package is not installed.
    """
    return [LOGGERS[name](run_dir, config, epoch) for name in dict.fromkeys(names)]


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise AtomloomError(
            f"the package {package} is not installed",
            where="training.loggers",
            todo=f"install it, or remove {package} from training.loggers",
        ) from None


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Known values of a row, grouped."""
    named = {}
    for name, value in row.items():
        group = next((g for start, g in GROUPS.items() if name.startswith(start)), None)
        if is_time(name):
            group = f"time/{name}"
        elif group is not None and name.startswith("val_mae_"):
            group = f"{group}/{name.removeprefix('val_mae_')}"
        if name != "epoch" and value == value:
            named[group or name] = float(value)
    return named


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return flat
