"""Learning curve of iComFormer for formation energies of mp36k, at the size of a CPU.

    python -m benchmarks.accuracy.mp36k_learning_curve [--sizes N ...] [--epochs E] [--threads N] [--folder F]

Trains on the first N of the official training rows (shuffled once), chooses the epoch by 300 of the
official validation rows and is judged by the 2,238 official test rows. Writes
benchmarks/results/mp36k_learning_curve.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common.results import Parser, data_path, write_result
from benchmarks.common.runs import measured_run

TARGET = "e_form_eV_per_atom"
VALIDATION = 300
PUBLISHED = {"XGBoost": 46.8, "CGCNN": 39.0, "iComFormer, 60,000 rows": 18.26}
"""meV/atom, trained on all rows."""


def labels_of(size: int, folder: Path) -> Path:
    """A label table of the rows that are used."""
    table = pd.read_csv(data_path("mp36k_crysxpp/mp2018_split_labels.csv.gz"))
    parts = [
        table[table["split"] == "train"].sample(frac=1, random_state=0)[:size],
        table[table["split"] == "val"].sample(frac=1, random_state=0)[:VALIDATION],
        table[table["split"] == "test"],
    ]
    path = folder / f"labels-{size}.csv"
    pd.concat(parts)[["cif_id", "split", TARGET]].to_csv(path, index=False)
    return path


def config_of(size: int, epochs: int, threads: int, folder: Path) -> dict[str, Any]:
    """The config of one point."""
    return {
        "dataset": {
            "name": "mp36k",
            "source": str(data_path("mp36k_crysxpp/cif.tar.xz")),
            "labels": {"file": str(labels_of(size, folder)), "id_column": "cif_id"},
            "target": TARGET,
            "unit": "eV/atom",
            "checks": {"max_fraction": 1.0},  # rows that are not used have no label here
        },
        "split": {"kind": "column", "column": "split", "duplicates": "report"},
        "model": {"name": "icomformer", "width": 64},
        "training": {
            "epochs": epochs,
            "batch": {"structures": 16},
            "loss": "mae",
            "learning_rate": 0.001,
            "ema_decay": 0.99,
            "threads": threads,
        },
    }


def main() -> None:
    """Run every size and write the result file."""
    parser = Parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1250, 2500, 5000])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    points: list[dict[str, Any]] = []
    card: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for size in options.sizes:
            config = config_of(size, options.epochs, options.threads, folder)
            outcome = measured_run(config, folder, print)
            card = outcome.run_card()
            points.append(
                {
                    "training_structures": card["dataset"]["train"],
                    "test_structures": card["dataset"]["test"],
                    "test_mae_mev_per_atom": 1e3 * outcome.error(TARGET, "test", "mae"),
                    "validation_mae_mev_per_atom": 1e3 * outcome.error(TARGET, "val", "mae"),
                    "seconds": card["seconds"],
                }
            )
            content = {
                "points": points,
                "epochs": options.epochs,
                "published_mev_per_atom": PUBLISHED,
                "model": card["config"]["model"],
                "training": card["config"]["training"],
                "environment": card["environment"],
            }
            if options.write:
                write_result("mp36k_learning_curve", content)
    last = points[-1]
    print(
        f"mp36k, {last['training_structures']} training crystals: "
        f"{last['test_mae_mev_per_atom']:.1f} meV/atom (MAE, test)"
    )


if __name__ == "__main__":
    main()
