"""One table of other programs: training steps and evaluations alongside atomloom's, on the same structures.

    python -m benchmarks.speed.peers [--only NAME [--peer PYTHON]] [--rounds N] [--table]

Each program is installed into an environment of its own, with the torch that atomloom runs by, and removed after it
was measured (some 1.5 GB each while it lasts). Its scripts are `benchmarks/peers/*_steps.py`. Cases: `ethanol`, ten
frames of rMD17, and `copper`, 16 rattled cells of 8 copper atoms with energies and forces of EMT, both for potentials,
which are trained on energies and forces; `copper_108`, one rattled crystal, by the ASE calculators, neighbours included;
`crystals`, 64 perovskites of perov5, for models of one number per structure. A step is forward, forces, loss,
backward and Adam. One thread, single precision, the same cutoff unless a row says otherwise; graphs are made before
(but for calculators). Both take turns, `--rounds` times after one that does not count; a ratio is the median of
the rounds' ratios of processor time. `--table` prints the table of docs/measured.md and measures nothing. Needs
ATOMLOOM_DATA. Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from atomloom.config import GraphSpec
from atomloom.config.foundation import POTENTIALS
from atomloom.config.model import (
    ALIGNNConfig,
    ChebyshevConfig,
    IComFormerConfig,
    NequIPConfig,
    PaiNNConfig,
    TensorNetConfig,
    TensorNetPropertyConfig,
)
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.inference.model_file import ModelCard, write_model
from atomloom.inference.predict import load_model
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models import build_model
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.readers import read
from atomloom.structures.adapters import to_structure
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.environment import environment
from benchmarks.common.force_steps import Case, Ours
from benchmarks.common.peer import Peer
from benchmarks.common.results import (
    Parser,
    data_path,
    machine,
    read_result,
    rounded,
    write_result,
)
from benchmarks.common.timing import Seconds, in_turns, processor
from benchmarks.common.training_steps import Variant
from benchmarks.speed.alignn import published_graph
from benchmarks.speed.property_models import perovskites

CUTOFF = 5.0
NEIGHBORS = 36.0
"""Divisor of sums over neighbours, where a program wants one."""
WORDS = {
    "step": "training step",
    "evaluate": "evaluation",
    "calculate": "by its calculator",
}


@dataclass(frozen=True)
class Entry:
    """One comparison: a model of another program and ours that is nearest to it."""

    name: str
    """Name of the comparison, of `--only` and in the result."""
    program: str
    script: str
    """File in `benchmarks/peers`."""
    requirements: tuple[str, ...]
    theirs: str
    """Their model and its size."""
    ours: str
    config: Any
    """Section `model` of ours, or the name of a published potential."""
    same: bool
    """Whether both are one architecture of one size."""
    cases: tuple[str, ...] = ("ethanol", "copper", "copper_108")
    alone: tuple[str, ...] = ()
    """Packages that are installed without what they require."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Options of the script."""
    note: str = ""


MATGL = ("matgl==4.1.2",)
METATRAIN = ("metatrain[soap-bpnn]==2026.4.1",)
SCHNETPACK = (
    *("numpy", "ase", "h5py", "pyyaml", "hydra-core", "pytorch-lightning", "torchmetrics"),
    *("hydra-colorlog", "rich", "fasteners", "dirsync", "torch-ema", "matscipy>=1.1.0"),
    *("tensorboard", "tensorboardX", "tqdm", "protobuf"),
)
NEQUIP = {"features": (128, 64, 32), "parity": False, "layers": 4, "filter_hidden": (128,)}
ALIGNN = {"alignn_layers": 4, "gcn_layers": 4, "hidden_features": 256}

ENTRIES = [
    Entry(
        "schnetpack",
        "SchNetPack",
        "schnetpack_steps.py",
        SCHNETPACK,
        "PaiNN, width 128",
        "PaiNN, width 128",
        PaiNNConfig(width=128),
        same=True,
        alone=("schnetpack==2.1.1",),
        given={"size": {"width": 128}},
        note="2.1.1 is the newest for Python 3.11, as 2.2.0 wants 3.12; installed without its requirements, since it wants a sympy "
        "that excludes this torch; it imports a name that torch no longer has, which the script supplies",
    ),
    Entry(
        "metatrain",
        "metatrain",
        "metatrain_steps.py",
        METATRAIN,
        "PET, default size",
        "TensorNet, width 64",
        TensorNetConfig(width=64),
        same=False,
        given={"architecture": "pet"},
    ),
    Entry(
        "metatrain-soap-bpnn",
        "metatrain",
        "metatrain_steps.py",
        METATRAIN,
        "SOAP-BPNN, default size",
        "Chebyshev, networks of 2 x 32",
        ChebyshevConfig(species=("H", "C", "O", "Cu"), radial_cutoff=CUTOFF, hidden=(32, 32)),
        same=False,
        given={"architecture": "soap_bpnn"},
    ),
    Entry(
        "nequip",
        "nequip",
        "nequip_steps.py",
        ("nequip==0.19.1",),
        "NequIP, preset M (l = 2)",
        "NequIP, the same features",
        NequIPConfig(neighbors=NEIGHBORS, **NEQUIP),
        same=True,
        given={
            "compile_mode": "eager",
            "size": {
                "num_layers": 4,
                "l_max": 2,
                "parity": False,
                "num_features": NEQUIP["features"],
                "type_embed_num_features": 32,
                "radial_mlp_depth": 1,
                "radial_mlp_width": 128,
            },
        },
        note="run eagerly, its default; self-connections differ: theirs by element, with most of its parameters, "
        "ours linear, as SevenNet's",
    ),
    Entry(
        "sevenn",
        "sevenn",
        "sevenn_steps.py",
        ("sevenn==0.13.0",),
        "SevenNet-0, published weights",
        "SevenNet-0, published weights",
        "sevennet-0",
        same=True,
        given={"checkpoint": POTENTIALS["sevennet-0"]},
    ),
    Entry(
        "chgnet",
        "chgnet",
        "chgnet_steps.py",
        ("chgnet==0.4.2",),
        "CHGNet 0.3.0, published weights",
        "SevenNet-0, published weights",
        "sevennet-0",
        same=False,
        note="cutoffs 6 A for atoms and 3 A for bonds, as trained; molecules in a periodic cell of 30 A; its "
        "training step makes basis functions and batches anew, as its trainer does",
    ),
    Entry(
        "mace",
        "mace-torch",
        "mace_steps.py",
        ("mace-torch==0.3.16",),
        "MACE, 128x0e + 128x1o, correlation 3",
        "NequIP, default size",
        NequIPConfig(neighbors=NEIGHBORS),
        same=False,
        note="e3nn 0.4.4",
    ),
    Entry(
        "matgl-tensornet",
        "matgl",
        "matgl_steps.py",
        MATGL,
        "TensorNet, width 64",
        "TensorNet, width 64",
        TensorNetConfig(width=64, variant="matgl"),
        same=True,
        given={"kind": "potential"},
    ),
    Entry(
        "matgl-tensornet-property",
        "matgl",
        "matgl_steps.py",
        MATGL,
        "TensorNet for properties, width 64",
        "TensorNet for properties, width 64",
        TensorNetPropertyConfig(width=64, variant="matgl"),
        same=True,
        cases=("crystals",),
        given={"kind": "property", "model": "tensornet", "size": {}},
        note="read-outs differ: theirs is a weighted mean over the atoms",
    ),
    Entry(
        "matgl-megnet",
        "matgl",
        "matgl_steps.py",
        MATGL,
        "MEGNet, default size",
        "iComFormer, width 64",
        IComFormerConfig(width=64),
        same=False,
        cases=("crystals",),
        given={"kind": "property", "model": "megnet", "size": {}},
        note="its training step takes less time than ours; theirs sees all neighbours within 5 A, ours the 12 nearest and "
        "their shell",
    ),
    Entry(
        "alignn",
        "alignn",
        "alignn_steps.py",
        ("alignn==2026.8.11",),
        "ALIGNN without DGL, width 256",
        "ALIGNN, width 256",
        ALIGNNConfig(),
        same=True,
        cases=("crystals",),
        given={"size": ALIGNN},
        note="on our edges and pairs of edges; theirs has layer norms where ours has the paper's batch norms; "
        "perovskites have symmetry, of which ours makes use",
    ),
]

# --- structures -----------------------------------------------------------------------------------


def ethanols() -> list[Structure]:
    """Ten frames of rMD17, without the cell of their file."""
    frames = read(data_path("rmd17/ethanol_train_01.xyz.xz"))[:10]
    free = {"cell": np.zeros((3, 3)), "pbc": np.zeros(3, dtype=bool)}
    return [replace(frame, **free) for frame in frames]


def coppers() -> list[Structure]:
    """16 cells of 8 atoms, strained by up to 3 per cent and rattled."""
    found = []
    for seed in range(16):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.set_cell(atoms.cell.array * (0.97 + 0.004 * seed), scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        found.append(to_structure(atoms))
    return found


def copper_108() -> Atoms:
    """One rattled crystal."""
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    atoms.rattle(0.05, seed=0)
    return atoms


def labels(frames: list[Structure]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies less their mean, and forces."""
    energy = np.array([float(frame.properties["energy"]) for frame in frames])
    return energy - energy.mean(), [np.asarray(frame.properties["forces"]) for frame in frames]


def plain(structure: Structure) -> Atoms:
    """Atoms without anything that belongs to them."""
    return Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


# --- ours -----------------------------------------------------------------------------------------


Calls = dict[tuple[str, str], Callable[[], object]]
"""What is timed, by request and case."""


class Potential:
    """Our potential."""

    def __init__(self, config: Any, folder: Path) -> None:
        if isinstance(config, str):
            self.path: Any = config
        else:
            energies = np.zeros(119)
            energies[0] = np.nan
            torch.manual_seed(0)
            card = ModelCard(
                config,
                GraphSpec(**config.graph_needs()),
                ("energy", "forces"),
                "eV",
                AtomicEnergies(energies, 0.0, 1.0),
                {},
            )
            self.path = folder / "ours.safetensors"
            write_model(self.path, build_model(config, 1).state_dict(), card)
        loaded = load_model(self.path)
        self.cutoff = loaded.card.graph.cutoff
        self.model = loaded.model.float()
        for weight in self.model.parameters():
            weight.requires_grad_(True)

    def calls(self, cases: tuple[str, ...]) -> Calls:
        """Steps, evaluations and a calculator."""
        ours, found = Ours("atomloom", self.model), {}
        for name, frames in (("ethanol", ethanols()), ("copper", coppers())):
            energy, forces = labels(frames)
            case = Case.of(name, frames, energy, np.concatenate(forces), self.cutoff, torch.float32)
            found["step", name] = partial(ours.step, case)
            found["evaluate", name] = partial(ours.evaluate, case)
        calculator, atoms = AtomloomCalculator(load_model(self.path), skin=0.0), copper_108()
        atoms.calc = calculator
        moves = cycle((0.001, -0.001))

        def calculate() -> None:
            atoms.positions[0] += next(moves)  # so that neighbours are searched, as theirs are
            atoms.get_potential_energy()
            atoms.get_forces()

        found["calculate", "copper_108"] = calculate
        return {key: call for key, call in found.items() if key[1] in cases}


class Property:
    """Our model of one number per structure."""

    def __init__(self, config: Any, folder: Path) -> None:
        self.config = config
        torch.manual_seed(0)
        self.model = build_model(config, 1)

    def calls(self, cases: tuple[str, ...]) -> Calls:
        """Steps and evaluations."""
        structures = crystals()
        table = build_graphs(
            StructureTable.from_structures(structures), GraphSpec(**self.config.graph_needs())
        )
        rows = np.arange(len(table))
        batch = GraphLoader(table, rows, dtype=torch.float32).slice(rows)
        variant = Variant(
            "atomloom", self.model, batch, torch.tensor(targets(), dtype=torch.float32)
        )

        def step() -> None:
            self.model.train()
            variant.step()

        def evaluate() -> None:
            self.model.eval()
            with torch.no_grad():
                self.model(batch)

        return {("step", "crystals"): step, ("evaluate", "crystals"): evaluate}


def crystals() -> list[Structure]:
    """64 perovskites."""
    data_path("perov5/val.csv.xz")  # or one line says that there are none
    return perovskites(64)[1]


def targets() -> np.ndarray:
    """A number for each crystal: none of them is learnt."""
    return np.random.default_rng(0).normal(size=64)


# --- theirs ---------------------------------------------------------------------------------------


def hand_over(entry: Entry, folder: Path) -> None:
    """Write what the script reads."""
    if "crystals" in entry.cases:
        frames = [plain(structure) for structure in crystals()]
        for atoms, target in zip(frames, targets(), strict=True):
            atoms.info["REF_target"] = target
        write(folder / "crystals.extxyz", frames)
        numbers = sorted({int(n) for atoms in frames for n in atoms.numbers})
        if isinstance(entry.config, ALIGNNConfig):
            table = build_graphs(StructureTable.from_structures(crystals()), GraphSpec())
            np.savez(folder / "graph.npz", **vars(published_graph(table)))
    else:
        for name, structures in (("ethanol", ethanols()), ("copper", coppers())):
            frames = [plain(structure) for structure in structures]
            for atoms, energy, forces in zip(frames, *labels(structures), strict=True):
                atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
            write(folder / f"{name}.extxyz", frames)
        write(folder / "copper_108.extxyz", copper_108())
        numbers = [1, 6, 8, 29]
    options = {
        "cutoff": CUTOFF,
        "neighbors": NEIGHBORS,
        "numbers": numbers,
        "symbols": [SYMBOLS[number] for number in numbers],
        **entry.given,
    }
    (folder / "options.json").write_text(json.dumps(options))


def measure(entry: Entry, python: str | Path, rounds: int) -> dict[str, Any]:
    """Times of one comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hand_over(entry, folder)
        made = Property if "crystals" in entry.cases else Potential
        ours = made(entry.config, folder)
        peer = Peer(python, entry.script, folder)
        calls: dict[tuple[str, str, str], Callable[[], object]] = {}
        for (request, case), call in ours.calls(entry.cases).items():
            calls["ours", request, case] = call
            calls["theirs", request, case] = partial(ask, peer, f"{request} {case}")
        times = in_turns(calls, rounds)
        peer.close()
    return {
        "program": entry.program,
        "versions": peer.greeting["versions"],
        "installed": {"with_requirements": entry.requirements, "alone": entry.alone},
        "models": {"ours": entry.ours, "theirs": entry.theirs},
        "same_architecture": entry.same,
        "parameters": {
            "ours": sum(weight.numel() for weight in ours.model.parameters()),
            "theirs": peer.greeting["parameters"],
        },
        "note": entry.note,
        "rounds": rounds,
        "machine": machine("torch", threads=1),
        "rows": [
            rounded(
                {
                    "request": request,
                    "case": case,
                    "ours_ms": 1e3 * processor(own),
                    "theirs_ms": 1e3 * processor(other),
                    "ratio": statistics.median(
                        b.processor / a.processor for a, b in zip(own, other, strict=True)
                    ),
                }
            )
            for (who, request, case), own in times.items()
            if who == "ours"
            for other in [times["theirs", request, case]]
        ],
    }


def ask(peer: Peer, request: str) -> Seconds:
    """Time that a peer took."""
    return Seconds(*peer.ask(request))


# --- the table ------------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> str:
    """Table of docs/measured.md, comparisons of one architecture first, and what sets them apart."""
    lines = [
        "| program | its model (parameters) | ours (parameters) | what | theirs, ms | ours, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = [part for part in results.values() if "rows" in part]
    for part in sorted(measured, key=lambda part: not part["same_architecture"]):
        models, count = part["models"], part["parameters"]
        program = f"{part['program']} {next(iter(part['versions'].values()))}"
        other = "" if part["same_architecture"] else "other architecture: "
        lines += [
            f"| {program} | {models['theirs']} ({count['theirs']:,}) | "
            f"{other}{models['ours']} ({count['ours']:,}) | {WORDS[row['request']]}, {row['case']} | "
            f"{row['theirs_ms']:,.4g} | {row['ours_ms']:,.4g} | {row['ratio']:.3g} |"
            for row in part["rows"]
        ]
    notes = [
        f"- {part['program']}, {part['models']['theirs']}: {part['note']}."
        for part in measured
        if part["note"]
    ]
    notes += [
        f"- {p['program']}: not measured, {p['failed']}" for p in results.values() if "failed" in p
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def main() -> None:
    parser = Parser(
        __doc__,
        parts=[entry.name for entry in ENTRIES],
        peer="the program of --only: no environment is made",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured")
    options = parser.parse_args()
    if options.table:
        print(table(read_result("peers")), end="")
        return
    if options.peer and not options.only:
        parser.error("--peer goes with --only")
    torch.set_num_threads(1)
    wanted = [entry for entry in ENTRIES if options.only in (None, entry.name)]
    for (requirements, alone), group in groupby(wanted, lambda e: (e.requirements, e.alone)):
        entries = list(group)
        try:
            given = nullcontext(options.peer) if options.peer else environment(requirements, alone)
            with given as python:
                for entry in entries:
                    found = {entry.name: measure(entry, python, options.rounds)}
                    print(table(found))
                    if options.write:
                        write_result("peers", read_result("peers") | found)
        except SystemExit as error:
            for entry in entries:
                print(f"{entry.name}: {error}")
                failed = {entry.name: {"program": entry.program, "failed": str(error)}}
                if options.write and entry.name not in read_result("peers"):
                    write_result("peers", read_result("peers") | failed)


if __name__ == "__main__":
    main()
