"""Using potentials: batches of molecules, drift in dynamics, replicas, exported programs.

    python -m benchmarks.speed.potentials [--only batch|dynamics|replicas|export] [--device cuda]

`batch`: time per structure of one call for 1 to 128 molecules of 3 to 24 atoms (QM7 where the real data
are, ASE's G2 set otherwise), in turns; positions are displaced before every call. `dynamics`: potentials
are trained on EMT's or, where the real data are, DFT's copper and TiO2, then run 500 steps at constant
energy, with and without a skin. `replicas`: one call for many against ASE's loop for one. `export`: the
model file alongside the programs made of it. Errors stand alongside speeds. Writes
benchmarks/results/potentials.json.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet as AseVerlet

import atomloom
from atomloom.config import parse_config
from atomloom.config.graph import GraphSpec
from atomloom.config.model import PaiNNConfig
from atomloom.data.dataset import LabelledGraphs
from atomloom.graphs.build import build_graphs
from atomloom.inference.model_file import ModelCard, write_model
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models import build_model
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.potentials.committee import Committee
from atomloom.potentials.dynamics import VelocityVerlet
from atomloom.potentials.evaluation import calculate_batch, plain_structure, structure_table
from atomloom.potentials.export import export_model, load_exported
from atomloom.targets.forces import Forces
from atomloom.training.trainer import train
from benchmarks.common.results import Parser, find_data, machine, read_result, write_result
from benchmarks.common.timing import clock, in_turns

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


# --- batches of molecules ---


def molecules(count: int) -> tuple[str, list[Atoms]]:
    """Source and structures of `count` molecules of 3 to 24 atoms, drawn with a seed."""
    path = find_data("qm7_qmlcode/qm7_xyz.tar.xz")
    if path is not None:
        source = "QM7"
        found = [atomloom.structures.to_ase(s) for s in atomloom.read(path)]
    else:
        source, found = "G2", [molecule(name) for name in g2.names]
        known = {1, 6, 7, 8, 9, 16, 17}
        found = [atoms for atoms in found if known.issuperset(atoms.numbers)]
    found = [Atoms(atoms.numbers, atoms.positions) for atoms in found if 3 <= len(atoms) <= 24]
    draw = np.random.default_rng(0)
    return source, [found[place] for place in draw.integers(len(found), size=count)]


def random_painn(path: Path, width: int) -> Path:
    """A PaiNN with random weights: as fast as a trained one."""
    torch.manual_seed(0)
    config = PaiNNConfig(width=width)
    energies = np.zeros(119)
    energies[0] = np.nan
    card = ModelCard(
        config,
        GraphSpec(neighbors="radius", cutoff=config.cutoff),
        ("energy", "forces"),
        "eV",
        AtomicEnergies(energies, 0.0, 1.0),
        {},
    )
    write_model(path, build_model(config, 1).state_dict(), card)
    return path


def batch(options: Namespace, folder: Path) -> dict:
    """Time per structure against the number of structures in a call."""
    source, structures = molecules(max(BATCHES))
    atoms = [len(s) for s in structures]
    committee = Committee.open(
        random_painn(folder / "painn.safetensors", options.width), options.device
    )
    draw = np.random.default_rng(1)
    seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
    graphs: dict[int, list[float]] = {size: [] for size in BATCHES}
    for trial in range(options.rounds + 2):
        for size in BATCHES:
            # Of every size the same molecules come to their turn: a call takes the next of them.
            first = trial * size % len(structures)
            own = [structures[(first + place) % len(structures)].copy() for place in range(size)]
            for structure in own:
                structure.positions += draw.normal(scale=0.02, size=structure.positions.shape)
            begun = time.perf_counter()
            calculate_batch(committee, own)
            taken = time.perf_counter() - begun
            begun = time.perf_counter()
            build_graphs(structure_table([plain_structure(s) for s in own]), committee.graph)
            of_graphs = time.perf_counter() - begun
            if trial >= 2:
                seconds[size].append(taken)
                graphs[size].append(of_graphs)
    exact = Committee.open(committee.members[0], options.device, "float64")
    together, alone = calculate_batch(committee, structures), [
        calculate_batch(committee, [s]) for s in structures
    ]  # fmt: skip
    true = calculate_batch(exact, structures)
    error = np.abs(together.forces - np.concatenate([a.forces for a in alone])).max()
    rows = []
    one = statistics.median(seconds[1])
    print(f"{len(structures)} molecules of {source}, {min(atoms)} to {max(atoms)} atoms, PaiNN of width "
          f"{options.width} on {committee.device}; energies and forces")  # fmt: skip
    for size in BATCHES:
        each = statistics.median(seconds[size]) / size
        share = statistics.median(graphs[size]) / statistics.median(seconds[size])
        rows.append(
            {"batch": size, "ms_per_structure": 1e3 * each, "speedup": one / each, "graphs": share}
        )
        print(f"  {size:4d} in a call: {1e3 * each:8.3f} ms per structure, {one / each:5.1f} times as fast "
              f"as one by one, {100 * share:4.1f} % for graphs")  # fmt: skip
    rounding = float(np.abs(together.forces - true.forces).max())
    print(
        f"  forces of one call against one by one: {error:.1e} eV/A; against float64: {rounding:.1e}"
    )
    return {
        "rows": rows,
        "molecules": source,
        "width": options.width,
        "device": committee.device,
        "forces_batch_against_single": float(error),
        "forces_against_float64": rounding,
    }


# --- dynamics ---


def copper() -> tuple[str, list, Atoms]:
    """Labelled structures of copper, and a crystal to run."""
    start = bulk("Cu", cubic=True) * (3, 3, 3)
    path = find_data("mlearn/Cu_train.extxyz.xz")
    if path is not None:
        return "DFT (mlearn)", [atomloom.structures.to_ase(s) for s in atomloom.read(path)], start
    labelled = []
    for seed in range(60):
        atoms = bulk("Cu", cubic=True) * (2, 2, 1)
        atoms.set_cell(atoms.cell.array * (0.96 + 0.0015 * seed), scale_atoms=True)
        atoms.rattle(0.03 * (seed % 6), seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        labelled.append(atoms)
    return "EMT", labelled, start


def titania() -> tuple[str, list, Atoms] | None:
    """Labelled structures of TiO2, and one of them to run; None without the real data."""
    path = find_data("aenet_tio2/dir_xsf.tar.gz")
    if path is None:
        return None
    labelled = [atomloom.structures.to_ase(s) for s in atomloom.read(path)]
    forces = [np.abs(a.get_forces()).max() if len(a) >= 24 else np.inf for a in labelled]
    return "DFT (aenet)", labelled, labelled[int(np.argmin(forces))].copy()


def trained(name: str, labelled: list, folder: Path, epochs: int) -> tuple[Path, dict]:
    """A Chebyshev potential of these structures, trained for a while."""
    species = sorted({s for atoms in labelled for s in atoms.get_chemical_symbols()})
    model = {"name": "chebyshev", "species": species, "radial_order": 10, "radial_cutoff": 5.5}
    model |= {"angular_order": 4, "angular_cutoff": 4.5, "hidden": [15, 15]}
    config = parse_config(
        {
            "dataset": {"name": name, "source": ["none"], "target": ["energy", "forces"]},
            "model": model,
            "graph": {"neighbors": "radius", "cutoff": 5.5},
            "training": {
                "epochs": epochs,
                "batch": {"structures": 16},
                "learning_rate": 0.01,
                "device": "cpu",
            },
        }
    )
    table = build_graphs(structure_table([plain_structure(a) for a in labelled]), config.graph)
    rows = np.random.default_rng(0).permutation(len(table))
    held = len(rows) // 10
    data = LabelledGraphs(
        table,
        np.array([[a.get_potential_energy()] for a in labelled]),
        {"train": rows[held:], "val": rows[:held]},
        {"forces": np.concatenate([a.get_forces() for a in labelled])},
        [Forces("forces")],
    )
    said: list[str] = []
    begun = time.perf_counter()
    result = train(data, config, folder / name, said.append)
    return folder / name / "model.safetensors", {
        "seconds": time.perf_counter() - begun,
        "epochs": result.epochs_run,
        "last": said[-1] if said else "",
    }


def dynamics(options: Namespace, folder: Path) -> dict:
    """Drift of 500 steps at constant energy, and what a skin saves."""
    rows = []
    for name, made in (("Cu", copper()), ("TiO2", titania())):
        if made is None:
            continue
        source, labelled, start = made
        path, training = trained(name, labelled, folder, options.epochs)
        found = {}
        for skin in (0.5, 0.0):
            atoms = start.copy()
            thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
            atoms.calc = AtomloomCalculator(path, options.device, dtype="float64", skin=skin)
            total, kinetic = [], []

            def note(atoms=atoms, total=total, kinetic=kinetic) -> None:
                total.append(atoms.get_total_energy() / len(atoms))
                kinetic.append(atoms.get_kinetic_energy() / len(atoms))

            run = AseVerlet(atoms, 1.0 * units.fs)
            run.attach(note, 5)
            begun = time.perf_counter()
            run.run(500)
            found[skin] = (time.perf_counter() - begun, np.array(total), np.array(kinetic), atoms)
        taken, total, kinetic, atoms = found[0.5]
        fresh = found[0.0]
        # The slope of a line: oscillation of the integrator is no drift.
        slope = np.polyfit(np.linspace(0, 1, len(total)), total, 1)[0]
        row = {
            "system": name,
            "labels": source,
            "structures": len(labelled),
            "training": training,
            "atoms": len(start),
            "steps": 500,
            "drift_mev_per_atom": 1e3 * float(slope),
            "largest_deviation_mev_per_atom": 1e3 * float(np.abs(total - total[0]).max()),
            "kinetic_spread_mev_per_atom": 1e3 * float(np.ptp(kinetic)),
            "searches": atoms.calc.searches,
            "ms_per_step": 2.0 * taken,
            "ms_per_step_without_skin": 2.0 * fresh[0],
            "skin_against_none_A": float(np.abs(atoms.positions - fresh[3].positions).max()),
        }
        rows.append(row)
        print(f"{name} ({len(start)} atoms, Chebyshev on {len(labelled)} structures of {source}): drift "
              f"{row['drift_mev_per_atom']:+.4f} meV/atom in 500 fs, largest deviation "
              f"{row['largest_deviation_mev_per_atom']:.4f}; {row['searches']} searches, "
              f"{row['ms_per_step']:.2f} ms per step ({row['ms_per_step_without_skin']:.2f} without skin, "
              f"positions differ by {row['skin_against_none_A']:.0e} A)")  # fmt: skip
    return {"rows": rows}


def replicas(options: Namespace, folder: Path) -> dict:
    """Steps of many replicas in one call against ASE's loop over one."""
    path = random_painn(folder / "painn.safetensors", options.width)
    start = Atoms(molecule("CH3CH2OH"))
    thermalize_momenta(start, temperature_K=300, rng=np.random.default_rng(0))
    steps, rows = 20, []
    committee = Committee.open(path, options.device)

    def ase() -> np.ndarray:
        atoms = start.copy()
        atoms.calc = AtomloomCalculator(committee)
        AseVerlet(atoms, 0.5 * units.fs).run(steps)
        return atoms.positions

    def ours(count: int) -> np.ndarray:
        run = VelocityVerlet(committee, [start] * count, 0.5 * units.fs)
        run.run(steps)
        return run.positions[: len(start)]

    variants: dict[str, tuple[int, Callable]] = {"ASE's loop": (1, ase)}
    variants |= {f"{n} at a time": (n, lambda n=n: ours(n)) for n in (1, 4, 16, 64)}
    ends = {name: run() for name, (_, run) in variants.items()}
    calls = {name: run for name, (_, run) in variants.items()}
    times = in_turns(calls, max(3, options.rounds // 3), warm_up=0)
    first = None
    print(f"ethanol, PaiNN of width {options.width} on {committee.device}")
    for name, (count, _) in variants.items():
        each = 1e3 * clock(times[name]) / steps / count
        first = first or each
        error = float(np.abs(ends[name] - ends["ASE's loop"]).max())
        rows.append(
            {"variant": name, "ms_per_step_and_replica": each, "speedup": first / each,
             "positions_against_ase_A": error}
        )  # fmt: skip
        print(f"  {name:14s} {each:8.3f} ms per step and replica, {first / each:5.1f} times ASE's speed, "
              f"positions differ by {error:.0e} A")  # fmt: skip
    return {"rows": rows, "width": options.width, "device": committee.device}


# --- export ---


def export(options: Namespace, folder: Path) -> dict:
    """The model file, the program and the compiled program on the same batch."""
    path = random_painn(folder / "painn.safetensors", options.width)
    committee = Committee.open(path, options.device)
    structures = molecules(16)[1]
    wanted = calculate_batch(committee, structures, stress=True)
    programs = {"program": False}
    if shutil.which("g++"):
        programs["compiled"] = True
    variants: dict[str, Callable] = {
        "model file": lambda: calculate_batch(committee, structures, stress=True).forces
    }
    making = {}
    for name, compiled in programs.items():
        begun = time.perf_counter()
        export_model(path, folder / f"{name}.pt2", compiled=compiled, device=committee.device)
        making[name] = time.perf_counter() - begun
        loaded = load_exported(folder / f"{name}.pt2")
        variants[name] = lambda loaded=loaded: loaded.calculate(structures)["forces"]
    said = {name: run() for name, run in variants.items()}
    times = in_turns(variants, options.rounds)
    rows = []
    first = clock(times["model file"])
    print(
        f"16 molecules, PaiNN of width {options.width} on {committee.device}: energies, forces, stress"
    )
    for name in variants:
        each = clock(times[name])
        error = float(np.abs(said[name] - wanted.forces).max())
        rows.append(
            {"variant": name, "ms": 1e3 * each, "speedup": first / each, "forces_error": error,
             "seconds_to_make": making.get(name)}
        )  # fmt: skip
        print(f"  {name:12s} {1e3 * each:8.2f} ms, {first / each:5.2f} times as fast, forces differ by "
              f"{error:.1e} eV/A")  # fmt: skip
    return {"rows": rows, "width": options.width, "device": committee.device}


PARTS = {"batch": batch, "dynamics": dynamics, "replicas": replicas, "export": export}


def main() -> None:
    parser = Parser(__doc__, parts=list(PARTS))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--width", type=int, default=64, help="of PaiNN")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each variant")
    parser.add_argument("--epochs", type=int, default=30, help="of the potentials of `dynamics`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results = read_result("potentials")
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory(prefix="atomloom-") as folder:
            found = PARTS[part](options, Path(folder))
        found["machine"] = machine("torch", threads=options.threads)
        # What a GPU and a CPU say of the same part stand side by side.
        on_gpu = found.get("device") == "cuda"
        results[f"{part}_cuda" if on_gpu else part] = found
    if options.write:
        write_result("potentials", results)
    said = []
    for part, found in results.items():
        if part.startswith("batch"):
            (row,) = (row for row in found["rows"] if row["batch"] == 16)
            said.append(f"{part}: {row['speedup']:.1f} times at 16")
        if part == "dynamics":
            worst = max(abs(row["drift_mev_per_atom"]) for row in found["rows"])
            said.append(f"drift at most {worst:.3f} meV/atom")
    print("\n" + "; ".join(said))


if __name__ == "__main__":
    main()
