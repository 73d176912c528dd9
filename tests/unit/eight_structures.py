"""A folder with eight structures, their labels and a config, in which commands are called."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.workflow.project import CONFIG, cif_text


def write_config(folder: Path, **training) -> None:
    """Write `my.yaml`; one epoch unless `training` says otherwise."""
    config = {**CONFIG, "split": {"ratios": [0.6, 0.2, 0.2]}, "training": {"epochs": 1, **training}}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))


def write_project(folder: Path) -> Path:
    """Write everything into the folder and return it."""
    (folder / "data" / "cif").mkdir(parents=True)
    for number in range(8):
        text = cif_text("Na", "Cl", 5.5 + 0.1 * number)
        (folder / "data" / "cif" / f"s{number}.cif").write_text(text)
    labels = "".join(f"s{number},{number}.5\n" for number in range(8))
    (folder / "data" / "labels.csv").write_text("id,energy\n" + labels)
    write_config(folder)
    return folder
