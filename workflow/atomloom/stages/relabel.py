"""Update of the unit in the files of a finished run; it is not part of the run's key, and may change.

A unit changes no number, so a new one trains nothing: run card, model files and the parity figure
are written again with it. Called by the report, which a new unit makes again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from atomloom.errors import again
from atomloom.pipeline.paths import RunPaths
from atomloom.store.files import read_json, write_sealed
from atomloom.store.parquet import read_table


def relabel_run(paths: RunPaths, log: Callable[[str], None]) -> None:
    """Update the unit in the cards of a run; a run that has the config's unit is left alone.

    Raises:
        AtomloomError: when the run card or a model file is missing or damaged.
    """
    run, unit = paths.run, paths.config.dataset.unit
    card = read_json(run / "run.json", "config", todo=again("train"))
    if card["config"]["dataset"].get("unit", "") == unit:
        return
    # Most commands do not need torch.
    from atomloom.inference.model_file import read_model, write_model
    from atomloom.stages.evaluate import PARITY, reported_units, write_parity
    from atomloom.stages.train import reported

    log(f"the unit is now {unit or 'none'}: run card and model file are written again")
    for path in _model_files(run):
        tensors, own = read_model(path)
        write_model(path, tensors, replace(own, unit=unit))
    if (run / PARITY).exists():
        units = reported_units(paths.config)
        write_parity(paths, [_table_of(run, name) for name in units], units)
    # The card comes last: as long as it has the old unit, all of this is repeated.
    card["config"]["dataset"]["unit"] = unit
    write_sealed(run / "run.json", card | reported(paths.config))


def _table_of(run: Path, name: str) -> pd.DataFrame:
    """Path of the predictions of a target: its own table, or that of the scalars."""
    own = run / f"{name}.parquet"
    path = own if own.exists() else run / "predictions.parquet"
    return read_table(path, todo=again("evaluate"))


def _model_files(run: Path) -> list[Path]:
    return [run / "model.safetensors", *sorted((run / "checkpoints").glob("*.safetensors"))]
