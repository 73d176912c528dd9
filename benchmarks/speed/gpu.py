"""atomloom on a GPU: is it right, does it wait, how fast is it, and what does it reach.

    python -m benchmarks.speed.gpu [--parts right,waiting,...] [--device cuda|cpu] [--small] [--minutes M]

Runs on any machine with a CUDA GPU, from a bare checkout, without a network and without Snakemake; a part takes about a
minute and results are written after each, so that a cut loses nothing. `--small --device cpu` tries
every part on a CPU. `python benchmarks/gpu.py` is the same. Parts whose data sets are absent say so. Writes benchmarks/results/gpu.json, or `--out`.

right     outputs, gradients, forces and stress against float64 on the CPU
waiting   whole training steps during which waiting for the device is an error
recorded  gradients, sums and running statistics of steps replayed as CUDA graphs against the steps
          themselves
steps     training steps in fp32, tf32, bf16, plain, recorded and compiled, with peak memory and the
          share of the time in which the GPU computes
memory    memory of a step by the number of structures, and how well the smaller sizes foretell that of
          the largest
loader    graphs delivered per second
batched   energies and forces of 1 to 128 molecules at once
tio2      PaiNN on energies and forces of the embedded TiO2 frames, from files to errors
phonons   fold 0 of matbench_phonons by iComFormer of width 256
mp36k     formation energies of the official mp36k rows, for `--minutes`
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import atomloom
from atomloom.api import prepare, run_pipeline
from atomloom.config import Config, load_config, parse_config
from atomloom.config.training import Batching
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.inference.devices import arithmetic
from atomloom.models import build_model
from atomloom.models.derivatives import evaluate_potential
from atomloom.pipeline.paths import RunPaths
from atomloom.stages.labelled import load_labelled
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.targets.forces import Forces
from atomloom.training.compile import compiled_model
from atomloom.training.cuda_graphs import RecordedSteps
from atomloom.training.fabric import open_fabric
from atomloom.training.trainer import Trainer, rows_with_targets
from benchmarks.common.results import (
    ROOT,
    Parser,
    find_data,
    machine,
    read_result,
    result_path,
    write_result,
)

PROPERTY_MODELS = ("icomformer", "ecomformer", "alignn", "tensornet_property")
POTENTIALS = ("painn", "chebyshev", "tensornet", "nequip")
MODELS = (*PROPERTY_MODELS, *POTENTIALS)


# --- structures, models, training steps -----------------------------------------------------------


def crystals(count: int) -> list[Structure]:
    """Demo crystals, over again where there are fewer."""
    files = sorted((ROOT / "resources" / "demo_crystals" / "cif").glob("*.cif"))
    some = files[:: max(1, len(files) // count)][:count]
    return list(islice(cycle([atomloom.read(file)[0] for file in some]), count))


def frames(count: int) -> list[Structure]:
    """TiO2 frames with energies and forces, over again where there are fewer."""
    return list(islice(cycle(atomloom.read(ROOT / "resources/demo_tio2/tio2.extxyz")), count))


def config_of(model: str, width: int, **training: Any) -> Config:
    """A config of the model at a width, for any of the embedded data."""
    section: dict[str, Any] = {"name": model}
    if model == "chebyshev":
        section["species"] = ["Ti", "O"]
    elif model != "nequip":  # which has a number of features for each degree
        section["width"] = width
    target = ["energy", "forces"] if model in POTENTIALS else "target"
    content = {
        "dataset": {"name": "gpu", "source": ".", "target": target},
        "model": section,
        "training": {"scheduler": "constant", "clip_norm": 100.0, **training},
    }
    return parse_config(content, where="benchmarks/speed/gpu.py")


def structures_for(model: str, count: int) -> list[Structure]:
    """Structures that the model learns from."""
    return frames(count) if model in POTENTIALS else crystals(count)


def labelled(config: Config, structures: Sequence[Structure]) -> LabelledGraphs:
    """Graphs of the structures with targets: their own, or, for properties, drawn numbers."""
    table = build_graphs(StructureTable.from_structures(structures), config.graph)
    rows = {"train": np.arange(len(table))}
    if config.model.kind == "potential":
        energies = np.array([[float(s.properties["energy"])] for s in structures])
        forces = np.concatenate([np.asarray(s.properties["forces"]) for s in structures])
        return LabelledGraphs(table, energies, rows, {"forces": forces}, [Forces("forces")])
    drawn = np.random.default_rng(0).normal(size=(len(table), 1))
    return LabelledGraphs(table, drawn, rows)


class Steps:
    """Training steps on one batch of all structures, as training takes them.

    Args:
        config: the whole config.
        structures: of the batch.
        compiled: whether to compile the model (shapes are fixed).
        recorded: whether to replay a CUDA graph.
    """

    def __init__(
        self,
        config: Config,
        structures: Sequence[Structure],
        compiled: bool = False,
        recorded: bool = False,
    ) -> None:
        settings = config.training
        self.fabric = open_fabric(settings, print)
        data = labelled(config, structures)
        rows = rows_with_targets(data, "train", print)
        self.trainer = Trainer(data, config, self.fabric, rows, rows[:0], print)
        if compiled:
            model = torch.compile(self.trainer.model, dynamic=False)
            self.trainer.step_network.model = self.trainer.objective.step_network(model)
        everything = Batching(structures=len(structures))
        loader = self.trainer.loader(rows, everything, seed=0, shuffle=True)
        self.batch = next(iter(loader.batches(0)))
        self.trainer.objective.begin(0, self.fabric.device)
        counts = self.trainer.objective.counts(loader, 0)
        shares = torch.from_numpy(1.0 / np.maximum(counts, 1.0))
        self.share = shares.to(self.fabric.device)[0]
        self.trainer.model.train()
        self.micro_step = self.trainer.micro_step
        if recorded:
            self.micro_step = RecordedSteps(self.micro_step, self.trainer.model, True, print)

    def __call__(self) -> None:
        self.micro_step(self.batch, self.share)
        self.trainer.optimizer_step()


@contextmanager
def arithmetic_of(config: Config):
    """The threads and the precision of the config."""
    kind = config.training.device
    with arithmetic(config.training, kind):
        yield


def finish(device: str) -> None:
    """Wait until the device has done all that it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


# --- right ----------------------------------------------------------------------------------------


def right(options: Namespace) -> dict[str, Any]:
    """Largest differences from float64 on the CPU, in units of each tensor's largest value."""
    rows = {}
    for name in options.models:
        config = config_of(name, 32)
        structures = structures_for(name, 8 if name in POTENTIALS else 24)
        table = build_graphs(StructureTable.from_structures(structures), config.graph)
        wanted = _found(config, table, torch.float64, "cpu")
        rows[name] = {}
        for dtype in (torch.float64, torch.float32):
            found = _found(config, table, dtype, options.device)
            rows[name][str(dtype).removeprefix("torch.")] = {
                part: _worst(found[part], wanted[part]) for part in wanted
            }
        print(name, rows[name], flush=True)
    return rows


def _found(config: Config, table: Any, dtype: torch.dtype, device: str) -> dict[str, list[Tensor]]:
    """Outputs, derivatives and gradients of one fresh network."""
    torch.manual_seed(0)
    model = build_model(config.model, 1).double().to(device=device, dtype=dtype).train()
    passes = getattr(model, "passes", lambda *_: ())(device, False)
    rows = np.arange(len(table))
    batch = GraphLoader(table, rows, dtype=dtype, device=device, passes=passes).slice(rows)
    found: dict[str, list[Tensor]] = {}
    if config.model.kind == "potential":
        output = evaluate_potential(model, batch, stress=True, create_graph=True)
        found |= {"outputs": [output.energy], "forces": [output.forces], "stress": [output.stress]}
        loss = output.energy.square().mean() + output.forces.square().mean()
    else:
        found["outputs"] = [model(batch)]
        loss = found["outputs"][0].square().mean()
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    # Biases before a batch norm have gradients of zero: they are seen alongside the largest of all.
    found["gradients"] = [torch.cat([g.flatten() for g in gradients if g is not None])]
    return found


def _worst(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = [(a.detach().cpu().double(), b.detach()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


# --- waiting --------------------------------------------------------------------------------------


def waiting(options: Namespace) -> dict[str, Any]:
    """For each model `does not wait`, or where it does."""
    rows = {}
    for name in options.models:
        for precision in ("32", "bf16-mixed"):
            config = config_of(name, 64, device=options.device, precision=precision)
            with arithmetic_of(config):
                step = Steps(config, structures_for(name, 16))
                for _ in range(2):
                    step()
                rows[f"{name} {precision}"] = _does_it_wait(step, options.device)
        print(name, {key: rows[key] for key in rows if key.startswith(name)}, flush=True)
    return rows


def _does_it_wait(step: Callable[[], None], device: str) -> str:
    finish(device)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return "".join(traceback.format_exception(error))[-1500:]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return "does not wait"


# --- recorded -------------------------------------------------------------------------------------


def recorded(options: Namespace) -> dict[str, Any] | str:
    """Largest differences between a replayed step and the step itself, relative."""
    if options.device == "cpu":
        return "no GPU"
    rows = {}
    for name in options.models:
        for precision in ("64", "32", "bf16-mixed"):
            config = config_of(name, 64, device=options.device, precision=precision)
            with arithmetic_of(config):
                step = Steps(config, structures_for(name, 16))
                rows[f"{name} {precision}"] = _replayed(step)
        print(name, {key: rows[key] for key in rows if key.startswith(name)}, flush=True)
    return rows


def _replayed(step: Steps) -> dict[str, float]:
    trainer, replay = step.trainer, RecordedSteps(step.micro_step, step.trainer.model, True, print)
    found = []
    before = [buffer.clone() for buffer in trainer.model.buffers()]
    for take in (step.micro_step, step.micro_step, replay, replay):
        for buffer, value in zip(trainer.model.buffers(), before, strict=True):
            buffer.copy_(value)
        sums = take(step.batch, step.share).clone()
        gradients = torch.cat([w.grad.flatten() for w in trainer.trained if w.grad is not None])
        buffers = [b.flatten().double().nan_to_num() for b in trainer.model.buffers()]
        found.append((sums, gradients.clone(), torch.cat(buffers)))
        trainer.optimizer.zero_grad()
    names = ("sums", "gradients", "buffers")
    first, again, _, replayed = found

    def apart(one, two):
        return {
            name: float((a - b).abs().max() / b.abs().max())
            for name, a, b in zip(names, one, two, strict=True)
        }

    twice = {f"{name}, the step twice": value for name, value in apart(again, first).items()}
    return apart(replayed, first) | twice


# --- steps ----------------------------------------------------------------------------------------


def steps(options: Namespace) -> list[dict[str, Any]]:
    """Times of training steps."""
    rows: list[dict[str, Any]] = []
    sizes = (8,) if options.small else (64, 256)
    for name in options.models:
        width = 32 if options.small else 128 if name in POTENTIALS else 256
        for size in sizes:
            for precision in ("32",) if options.device == "cpu" else ("32", "tf32", "bf16-mixed"):
                for how in _ways(name, size == sizes[-1], precision, options):
                    config = config_of(name, width, device=options.device, precision=precision)
                    row = {"model": name, "width": width, "structures": size}
                    row |= {"precision": precision, "how": how}
                    try:
                        row |= _timed(config, structures_for(name, size), how, options)
                    except Exception as error:  # a mode that is not there must not end the others
                        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
                    rows.append(row)
                    print(row, flush=True)
                    options.save("steps", rows)
                    torch._dynamo.reset()
    return rows


def _ways(name: str, largest: bool, precision: str, options: Namespace) -> list[str]:
    """Ways of taking a step that are worth the time they take to measure."""
    if options.device == "cpu":
        return ["plain"]
    if precision == "tf32":
        return ["recorded"]
    compiles = largest and name not in POTENTIALS and not (options.small or options.eager)
    return ["plain", "recorded", *(["compiled", "compiled, recorded"] if compiles else [])]


def _timed(
    config: Config, structures: list[Structure], how: str, options: Namespace
) -> dict[str, Any]:
    device, cuda = options.device, options.device == "cuda"
    with arithmetic_of(config):
        step = Steps(config, structures, "compiled" in how, "recorded" in how)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = _median_seconds(step, device, 0.2 if options.small else 0.5)
        row = {
            "atoms": len(step.batch.numbers),
            "edges": len(step.batch.src),
            "ms": 1e3 * seconds,
            "structures_per_second": len(structures) / seconds,
        }
        if cuda:
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            row |= _on_the_device(step, seconds)
    return row


def _median_seconds(step: Callable[[], None], device: str, seconds: float) -> float:
    """Median over groups of steps that are timed together, so that the host may run ahead."""
    for _ in range(3):
        step()
    finish(device)
    begun, groups = time.perf_counter(), []
    while time.perf_counter() - begun < seconds or len(groups) < 3:
        started = time.perf_counter()
        for _ in range(5):
            step()
        finish(device)
        groups.append((time.perf_counter() - started) / 5)
    return statistics.median(groups)


def _on_the_device(step: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Kernels of a step, and the share of its time in which the device computes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    most = sorted(kernels, key=lambda event: -event.self_device_time_total)[:6]
    return {
        "kernels": sum(event.count for event in kernels),
        "busy_share": busy / seconds,
        "longest": {event.key[:70]: event.self_device_time_total / 1e3 for event in most},
    }


# --- memory ---------------------------------------------------------------------------------------


def memory(options: Namespace) -> dict[str, Any]:
    """Memory of training steps in MiB: peak on a GPU, what the forward pass keeps on a CPU.

    A batch takes what the weights take and a share for each structure. Both are taken from the two smallest
    sizes, `foretold` is the largest by them in units of what was measured.
    """
    sizes = (4, 8, 16) if options.small else (32, 64, 256)
    rows = {}
    for name in options.models:
        width = 16 if options.small else 128
        config = config_of(name, width, device=options.device)
        found = {}
        for size in sizes:
            with arithmetic_of(config):
                found[size] = _megabytes(Steps(config, structures_for(name, size)), options.device)
        small, double, largest = (found[size] for size in sizes)
        each = (double - small) / (sizes[1] - sizes[0])
        foretold = small + each * (sizes[2] - sizes[0])
        rows[name] = {"width": width, "mib": found, "foretold": foretold / largest}
        print(name, rows[name], flush=True)
    return rows


def _megabytes(step: Steps, device: str) -> float:
    step()  # the optimiser's state, and what is made once
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 2**20


# --- loader ---------------------------------------------------------------------------------------


def loader(options: Namespace) -> dict[str, Any]:
    """Crystals per second from memory to the device, and shares of an epoch of training."""
    config = config_of("icomformer", 64, device=options.device)
    structures = crystals(100 if options.small else 400)
    table = build_graphs(StructureTable.from_structures(structures), config.graph)
    many = np.tile(np.arange(len(table)), 2 if options.small else 100)
    table = table.take(many)
    found: dict[str, Any] = {"delivered_per_second": {}}
    for size in (64, 512):
        batches = GraphLoader(
            table,
            np.arange(len(table)),
            bounds=Batching(structures=size),
            seed=0,
            shuffle=True,
            device=options.device,
        )
        for epoch in (0, 1):
            begun = time.perf_counter()
            seen = sum(batch.size for batch in batches.batches(epoch))
            finish(options.device)
        found["delivered_per_second"][size] = seen / (time.perf_counter() - begun)
    print(found, flush=True)
    return found


# --- batched --------------------------------------------------------------------------------------

MOLECULES = [
    "H2O",
    "CH4",
    "NH3",
    "C2H6",
    "CH3CH2OH",
    "C6H6",
    "H2CO",
    "HCOOH",
    "C4H4NH",
    "isobutane",
    "CH3COCH3",
    "C5H5N",
    "bicyclobutane",
    "trans-butane",
    "CH3CONH2",
    "C3H8",
]


def batched(options: Namespace) -> dict[str, Any]:
    """Milliseconds per molecule of energies and forces, by the number of molecules at once."""
    from ase.build import molecule
    from ase.calculators.lj import LennardJones

    from atomloom.potentials.committee import Committee
    from atomloom.potentials.evaluation import calculate_batch

    draw = np.random.default_rng(0)
    known = []
    for seed, name in enumerate(MOLECULES):
        atoms = molecule(name)
        atoms.rattle(0.02, seed=seed)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.01)
        atoms.get_forces()
        known.append(atoms)
    found: dict[str, Any] = {"ms_per_molecule": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = atomloom.train(
            known,
            ["energy", "forces"],
            model={"name": "painn", "width": 32 if options.small else 128},
            epochs=1,
            folder=folder,
            log=_say_nothing,
            device=options.device,
        )
        committee = Committee.open([run.folder / "model.safetensors"], options.device)
    for count in (1, 8) if options.small else (1, 2, 4, 8, 16, 32, 64, 128):
        some = [molecule(name) for name in islice(cycle(MOLECULES), count)]
        times = []
        for _ in range(5 if options.small else 20):
            for atoms in some:
                atoms.positions += draw.normal(0, 0.01, atoms.positions.shape)
            begun = time.perf_counter()
            calculate_batch(committee, some)
            times.append(time.perf_counter() - begun)
        found["ms_per_molecule"][count] = 1e3 * statistics.median(times[2:]) / count
    print(found, flush=True)
    return found


# --- whole runs -----------------------------------------------------------------------------------


def tio2(options: Namespace) -> dict[str, Any]:
    """Energies and forces of the embedded frames, every stage from the file on."""
    settings = {"epochs": 2 if options.small else 40, "learning_rate": 2e-3, "ema_decay": 0.99}
    content = {
        "dataset": {
            "name": "tio2",
            "source": str(ROOT / "resources/demo_tio2/tio2.extxyz"),
            "target": ["energy", "forces"],
        },
        "model": {"name": "painn", "width": 16 if options.small else 128},
        "training": {**settings, "batch": {"structures": 16}, "device": options.device},
    }
    return _run(parse_config(content, where="benchmarks/speed/gpu.py"))


def phonons(options: Namespace) -> dict[str, Any] | str:
    """The preset's fold 0 with a wider network."""
    if find_data("matbench_phonons") is None:
        return "no matbench_phonons"
    config = load_config(ROOT / "config" / "presets" / "matbench-phonons.yaml")
    model = config.model.model_copy(update={"width": 16 if options.small else 256})
    change = {"epochs": 1 if options.small else 100, "device": options.device}
    if options.device == "cuda":
        change["precision"] = "bf16-mixed"
    training = config.training.model_copy(update=change)
    return _run(config.model_copy(update={"model": model, "training": training}))


def mp36k(options: Namespace) -> dict[str, Any] | str:
    """The official rows, for as many epochs as the time is enough for."""
    folder = find_data("mp36k_crysxpp")
    if folder is None:
        return "no mp36k_crysxpp"
    if options.small:
        return "not at small size"
    content = {
        "dataset": {
            "name": "mp36k",
            "source": str(folder / "cif.tar.xz"),
            "labels": {
                "file": str(folder / "mp2018_split_labels.csv.gz"),
                "id_column": "cif_id",
            },
            "target": "e_form_eV_per_atom",
            "unit": "eV/atom",
            "checks": {"max_fraction": 1.0},  # 261 crystals are in no official split
        },
        "split": {
            "kind": "column",
            "column": "split",
            "duplicates": "report",
            "duplicate_tolerance": 0,
        },
        "model": {"name": "icomformer", "width": 256},
        "training": {
            "batch": {"structures": 64},
            "loss": "mae",
            "learning_rate": 0.001,
            "ema_decay": 0.999,
            "device": options.device,
            "precision": "bf16-mixed",
            "compile": True,
        },
    }
    config = parse_config(content, where="benchmarks/speed/gpu.py")
    return _run(config, lambda places, spent: _epochs(places, 60 * options.minutes - spent))


def _epochs(places: RunPaths, seconds: float) -> int:
    """Epochs that training and evaluation have the time for, by measured steps."""
    begun = time.perf_counter()
    config = places.config
    with arithmetic_of(config):
        data = load_labelled(places)
        fabric = open_fabric(config.training, print)
        rows = rows_with_targets(data, "train", print)
        trainer = Trainer(data, config, fabric, rows, rows[:0], print)
        loader = trainer.loader(rows, seed=0, shuffle=True)
        if config.training.compile:
            model = compiled_model(trainer.model, loader, fabric, print)
            trainer.step_network.model = trainer.objective.step_network(model)
        trainer.model.train()
        step = RecordedSteps(trainer.micro_step, trainer.model, False, print)
        share = torch.ones(1, device=fabric.device)
        times = []
        for batch in islice(loader.batches(0), 60):
            started = time.perf_counter()
            step(batch, share)
            trainer.optimizer_step()
            finish(config.training.device)
            times.append(time.perf_counter() - started)
    each = statistics.median(times)
    # Training compiles again, for validation too, and evaluation comes after it.
    left = seconds - 2 * (time.perf_counter() - begun) - 30.0
    validation = 1.1  # what validation and the moving average add to an epoch
    epochs = max(1, int(left / (validation * each * len(loader))))
    print(f"{1e3 * each:.1f} ms per step, {epochs} epochs in {left:.0f} s", flush=True)
    return epochs


def _run(config: Config, epochs: Callable[[RunPaths, float], int] | None = None) -> dict[str, Any]:
    """All stages in a scratch folder; seconds, errors, and where the time of epochs went.

    Args:
        config: the whole config.
        epochs: says how many, of the graphs and the seconds that were spent on them; those of the
            config, where not given.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {"results": f"{folder}/results", "store": f"{folder}/store"}
        config = config.model_copy(update={"paths": config.paths.model_copy(update=paths)})
        begun = time.perf_counter()
        if epochs is not None:
            places = prepare(config, print)
            number = epochs(places, time.perf_counter() - begun)
            training = config.training.model_copy(update={"epochs": number})
            config = config.model_copy(update={"training": training})
        run = run_pipeline(config, print)
        seconds = time.perf_counter() - begun
        history = run.history
        card = json.loads((run.folder / "run.json").read_text())
        parts = [name for name in history if name.endswith("_seconds")]
        shares = {n: float(history[n][1:].sum() / history["seconds"][1:].sum()) for n in parts}
        return {
            "seconds": seconds,
            "training_seconds": card["seconds"],
            "epochs": len(history),
            "epoch_seconds": float(history["seconds"].median()),
            "shares": shares,
            "metrics": run.metrics,
            "structures": {k: card["dataset"][k] for k in ("train", "val", "test")},
        }


def _say_nothing(_: str) -> None:
    """Take no notice."""


PARTS: dict[str, Callable[[Namespace], Any]] = {
    "right": right,
    "waiting": waiting,
    "recorded": recorded,
    "steps": steps,
    "memory": memory,
    "loader": loader,
    "batched": batched,
    "tio2": tio2,
    "phonons": phonons,
    "mp36k": mp36k,
}


def main() -> None:
    """Run the parts that are asked for and write the result file after each."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--minutes", type=float, default=30.0, help="of mp36k, all stages together")
    parser.add_argument("--out", type=Path, default=result_path("gpu"))
    options = parser.parse_args()
    options.models = options.models.split(",")
    content = read_result(options.out)
    content["device"] = torch.cuda.get_device_name(0) if options.device == "cuda" else "cpu"
    content["machine"] = machine("torch")

    def save(part: str, rows: Any) -> None:
        content[part] = rows
        if options.write:
            write_result(options.out, content)

    options.save = save
    for name in options.parts.split(","):
        print(f"--- {name}", flush=True)
        begun = time.perf_counter()
        try:
            rows = PARTS[name](options)
        except Exception as error:  # what one part meets must not lose the others
            rows = "".join(traceback.format_exception(error))[-3000:]
            print(rows, flush=True)
        save(name, rows)
        print(f"    {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
