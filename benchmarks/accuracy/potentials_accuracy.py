"""Errors of potentials on published splits: mlearn's Cu, Ni, Si, Li, and rMD17's ethanol and aspirin.

    python -m benchmarks.accuracy.potentials_accuracy [--only mlearn | rmd17] [--set NAME] [--model NAME]
                                                     [--minutes M | --epochs N] [--threads N]

Each run has its minutes: an epoch is timed first, and as many are trained as fit; `--epochs` says how many
instead, for a machine that is busy elsewhere. Its learning curve is kept with it. Published errors of others on the same splits stand alongside ours. Updates its rows of
benchmarks/results/potentials_accuracy.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common.results import Parser, data_path, read_result, write_result
from benchmarks.common.runs import Outcome, measured_run

SETS = {
    "mlearn": {
        "Cu": {"SNAP": 0.0596, "M3GNet": 0.0177, "ALIGNN-FF": 0.0194},
        "Ni": {"SNAP": 0.0618},
        "Si": {"SNAP": 0.1759, "M3GNet": 0.1124, "ALIGNN-FF": 0.0694, "NequIP": 0.0901},
        "Li": {"SNAP": 0.0273},
    },
    "rmd17": {
        "ethanol": {"PaiNN, original MD17": 0.0100, "ANI": 0.0134, "MACE": 0.0021},
        "aspirin": {
            "PaiNN, original MD17": 0.0161,
            "ANI": 0.0406,
            "TensorNet": 0.0089,
            "MACE": 0.0066,
        },
    },
}
"""Force MAE in eV/A of others on the same test frames (rMD17: on the molecule)."""
MODELS = {"mlearn": ("chebyshev", "painn"), "rmd17": ("painn", "tensornet")}
MOST_EPOCHS = 2000


def dataset_of(kind: str, name: str) -> dict[str, Any]:
    """The sections `dataset` and `split`."""
    if kind == "mlearn":
        files = [str(data_path(f"mlearn/{name}_{part}.extxyz.xz")) for part in ("train", "test")]
        options, test = {}, f"{name}_test.*"
    else:
        files = [str(data_path(f"rmd17/{name}_{part}_01.xyz.xz")) for part in ("train", "test")]
        options, test = {"box": "molecule"}, f"{name}_test_01.*"
    return {
        "dataset": {
            "name": f"{kind}-{name}",
            "source": files,
            "target": ["energy", "forces"],
            "options": options,
            "chunks": {"mean": 250},
        },
        "split": {
            "kind": "sources",
            "test_sources": [test],
            "val_fraction": 0.05,
            "duplicates": "report",
        },
    }


def model_of(kind: str, name: str, model: str) -> dict[str, Any]:
    """The sections `model` and `training`."""
    if model == "chebyshev":
        return {
            "model": {
                "name": "chebyshev",
                "species": [name],
                "radial_order": 20,
                "radial_cutoff": 6.5,
                "angular_order": 8,
                "angular_cutoff": 5.0,
                "hidden": [20, 20],
                "decorrelate": True,
            },
            "training": {
                "optimizer": "lbfgs",
                "batch": {"structures": 25},
                "potential": {"energy_weight": 10.0},
            },
        }
    return {
        "model": {"name": model, "width": 64, "cutoff": 5.0},
        "training": {
            "batch": {"structures": 4 if kind == "mlearn" else 10},
            "learning_rate": 0.001,
            "weight_decay": 0.0,
            "loss": "mse",
            "ema_decay": 0.99,
            "potential": {"energy_weight": 1.0, "forces_weight": 10.0},
        },
    }


def epochs_for(config: dict[str, Any], folder: Path, minutes: float) -> int:
    """Number of epochs that fit, by the time of the second of two."""
    short = {**config, "training": {**config["training"], "epochs": 2}}
    history = pd.read_csv(measured_run(short, folder).folder / "history.csv")
    return max(2, min(MOST_EPOCHS, int(60.0 * minutes / history["seconds"].iloc[-1])))


def row_of(outcome: Outcome, published: dict[str, float]) -> dict[str, Any]:
    """Row of the result file."""
    card = outcome.run_card()
    history = pd.read_csv(outcome.folder / "history.csv")
    picked = history.iloc[[round(i * (len(history) - 1) / 12) for i in range(13)]]
    return {
        "test_force_mae_ev_per_a": outcome.error("forces", "test", "mae"),
        "test_energy_mae_mev_per_atom": 1e3 * outcome.error("energy_per_atom", "test", "mae"),
        "published_force_mae_ev_per_a": published,
        "structures": {k: card["dataset"][k] for k in ("train", "val", "test")},
        "parameters": card["model"]["parameters"],
        "epochs": card["epochs_run"],
        "train_seconds": outcome.train_seconds,
        "train_processor_seconds": outcome.train_processor_seconds,
        "learning_curve": {
            "epoch": picked["epoch"].tolist(),
            "val_force_mae_ev_per_a": [round(v, 5) for v in picked["val_mae_forces"]],
        },
        "model": card["config"]["model"],
        "training": card["config"]["training"],
        "environment": card["environment"],
    }


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(SETS))
    parser.add_argument("--set", choices=[name for sets in SETS.values() for name in sets])
    parser.add_argument("--model", choices=["chebyshev", "painn", "tensornet"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for kind, sets in SETS.items():
        if options.only not in (None, kind):
            continue
        for name, published in sets.items():
            if options.set not in (None, name):
                continue
            for model in MODELS[kind]:
                if options.model not in (None, model):
                    continue
                config = dataset_of(kind, name) | model_of(kind, name, model)
                config["training"]["threads"] = options.threads
                with tempfile.TemporaryDirectory() as scratch:
                    config["training"]["epochs"] = options.epochs or epochs_for(
                        config, Path(scratch), options.minutes
                    )
                    row = row_of(measured_run(config, Path(scratch), print), published)
                content = read_result("potentials_accuracy")
                content.setdefault(kind, {}).setdefault(name, {})[model] = row
                if options.write:
                    write_result("potentials_accuracy", content)
                others = ", ".join(f"{who} {error}" for who, error in published.items())
                print(
                    f"{kind} {name}, {model}: forces {row['test_force_mae_ev_per_a']:.4f} eV/A, "
                    f"energies {row['test_energy_mae_mev_per_atom']:.2f} meV/atom (MAE, test), "
                    f"{row['train_seconds']:.0f} s; others' forces: {others}"
                )


if __name__ == "__main__":
    main()
