"""A data set of some copper cells, whose volume is learnt, for sweeps of networks of a few weights."""

from __future__ import annotations

from pathlib import Path

from ase.build import bulk
from ase.io import write

from atomloom.api import prepare
from atomloom.config import Config, parse_config
from atomloom.pipeline.paths import RunPaths


def config_in(folder: Path, sweep: dict, **training) -> Config:
    """Config of the cells in a folder, which are written if they are not there."""
    source = folder / "cells.extxyz"
    if not source.exists():
        cells = [bulk("Cu", a=3.4 + 0.02 * place) for place in range(24)]
        for cell in cells:
            cell.info["volume"] = cell.get_volume()
        write(source, cells)
    return parse_config(
        {
            "dataset": {"name": "d", "source": str(source), "target": "volume"},
            "split": {"duplicates": "report"},
            "graph": {"cutoff": 4.0, "max_neighbors": 12},
            "model": {"name": "icomformer", "width": 8, "layers": 2},
            "training": {"epochs": 4, "batch": {"structures": 8}, "device": "cpu", **training},
            "paths": {"store": str(folder / "store"), "results": str(folder / "results")},
            "sweep": sweep,
        }
    )


def paths_in(folder: Path, sweep: dict, **training) -> RunPaths:
    """Paths of such a config, with everything made that comes before training."""
    return prepare(config_in(folder, sweep, **training), lambda line: None)
