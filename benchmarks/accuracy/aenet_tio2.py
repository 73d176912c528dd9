"""The Chebyshev potential on aenet's 1,000 TiO2 structures, alongside the reference run of aenet-PyTorch.

    python -m benchmarks.accuracy.aenet_tio2 [--only reference | large] [--threads N]

reference: networks of the reference size (two layers of 5 tanh nodes an element), its descriptor and
its 900/100 split. The reference run took 3,190 s on a CPU to 7.74 meV/atom and 0.388 eV/A, root mean
squares of energies per atom and of force vectors.
large: larger networks on the same descriptor.
Updates its part of benchmarks/results/aenet_tio2.json.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch

from benchmarks.common.results import Parser, data_path, read_result, write_result
from benchmarks.common.runs import Outcome, measured_run, rmse

REFERENCE = {"seconds": 3190.0, "energy_rmse_mev_per_atom": 7.74, "force_rmse_ev_per_a": 0.388}
ATOMS = {"Ti": -1604.604515075, "O": -432.503149303}
NETWORKS = {"reference": [5, 5], "large": [30, 30]}
EPOCHS = {"reference": 75, "large": 150}


def split_table(folder: Path) -> Path:
    """A table that says which structures the reference run tested on."""
    lines = ["id,split"]
    for split in ("train", "test"):
        text = data_path(f"aenet_tio2/reference/02-train_output_energies.{split}").read_text()
        names = [line.split()[-1] for line in text.splitlines() if line.strip().endswith(".xsf")]
        lines += [f"{Path(name).stem},{split}" for name in names]
    path = folder / "split.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(name: str, folder: Path, threads: int) -> dict:
    """The config of one run."""
    return {
        "dataset": {
            "name": "aenet-tio2",
            "source": str(data_path("aenet_tio2/dir_xsf.tar.gz")),
            "labels": {"file": str(split_table(folder)), "id_column": "id"},
            "target": ["energy", "forces"],
            "chunks": {"mean": 250},
        },
        # The reference has no validation set; a few structures are held out to choose the epoch by.
        "split": {
            "kind": "column",
            "column": "split",
            "val_fraction": 0.05,
            "duplicates": "report",
        },
        "model": {
            "name": "chebyshev",
            "species": ["Ti", "O"],
            "radial_order": 20,
            "radial_cutoff": 6.5,
            "angular_order": 6,
            "angular_cutoff": 5.0,
            "hidden": NETWORKS[name],
            "decorrelate": True,
        },
        "training": {
            "threads": threads,
            "optimizer": "lbfgs",
            "epochs": EPOCHS[name],
            "batch": {"structures": 90},
            "potential": {
                "reference_energies": ATOMS,
                "energy_scale": "range",
                "energy_weight": 200.0,
            },
        },
    }


def row_of(name: str, outcome: Outcome) -> dict:
    """Row of the result file."""
    energies, forces = outcome.table("predictions"), outcome.table("forces")
    energies, forces = (table[table["split"] == "test"] for table in (energies, forces))
    components = rmse(forces["forces"], forces["forces_predicted"])
    card = outcome.run_card()
    return {
        "networks": NETWORKS[name],
        "parameters": card["model"]["parameters"],
        "epochs": card["epochs_run"],
        "test_structures": len(energies),
        "test_energy_rmse_mev_per_atom": 1e3
        * rmse(energies["energy_per_atom"], energies["energy_per_atom_predicted"]),
        # As the reference run has it: of force vectors, not of their components.
        "test_force_rmse_ev_per_a": math.sqrt(3.0) * components,
        "test_force_component_rmse_ev_per_a": components,
        "train_seconds": outcome.train_seconds,
        "data_seconds": outcome.data_seconds,
        "training": card["config"]["training"],
        "environment": card["environment"],
    }


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    content = read_result("aenet_tio2")
    for name in [options.only] if options.only else NETWORKS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            outcome = measured_run(config_of(name, folder, options.threads), folder, print)
            row = row_of(name, outcome)
        content = {**content, **row} if name == "reference" else {**content, name: row}
        content["published"] = REFERENCE
        if options.write:
            write_result("aenet_tio2", content)
        print(
            f"{name}: energies {row['test_energy_rmse_mev_per_atom']:.2f} meV/atom, forces "
            f"{row['test_force_rmse_ev_per_a']:.3f} eV/A (RMSE, test), {row['train_seconds']:.0f} s; "
            f"aenet-PyTorch {REFERENCE['energy_rmse_mev_per_atom']}, "
            f"{REFERENCE['force_rmse_ev_per_a']}, {REFERENCE['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
