"""The crystal transformer's step alongside those of the other property models, and its memory with plain attention.

    python -m benchmarks.speed.dense_attention [--only PART]

Parts: `phonons`, one training step (forward, backward, optimiser) on the same crystals of matbench_phonons
(ATOMLOOM_DATA), each model by its own graphs and at its default size, iComFormer also at that of the preset, in
turns; the errors of the crystal transformer against float64 stand beside. `memory`, a training step on a
batch of 4 random crystals of some atoms by torch's fused kernel and by plain attention: the most bytes that its
tensors take at once, and its time. Times are of the processor, medians. Writes
benchmarks/results/dense_attention.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomloom.config import GraphSpec
from atomloom.config.model import (
    ALIGNNConfig,
    CrystalTransformerConfig,
    IComFormerConfig,
    ModelSection,
)
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.results import (
    Parser,
    data_path,
    machine,
    read_result,
    rounded,
    write_result,
)
from benchmarks.common.structures import random_crystals
from benchmarks.common.timing import in_turns, processor
from benchmarks.common.training_steps import Variant, relative
from tests.unit.models.memory import LiveBytes

MODELS: dict[str, ModelSection] = {
    "crystal transformer": CrystalTransformerConfig(),
    "iComFormer, width 64": IComFormerConfig(width=64),
    "iComFormer": IComFormerConfig(),
    "ALIGNN": ALIGNNConfig(),
}
ATOMS = (20, 100, 400, 1000)
BATCH = 4
WAYS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}
PARTS = ("phonons", "memory")


def batch_for(
    section: ModelSection, structures: list[Structure], dtype: torch.dtype = torch.float32
) -> GraphBatch:
    """The batch as the model's loader delivers it."""
    table = build_graphs(
        StructureTable.from_structures(structures), GraphSpec(**section.graph_needs())
    )
    passes = getattr(build_model(section, 1), "passes", lambda *_: ())("cpu", False)
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=dtype, passes=passes).slice(rows)


# --- speed ----------------------------------------------------------------------------------------


def phonons(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of all models on the same crystals."""
    records = enumerate_records([data_path("matbench_phonons/matbench_phonons.json.gz")])
    chosen = islice(records, 0, 1265, 1265 // options.structures)
    crystals = [parse_record(r.format, r.payload or b"", r.id) for r in chosen]
    crystals = crystals[: options.structures]
    torch.manual_seed(0)
    target = torch.randn(len(crystals))
    variants, rows = {}, {}
    for name, section in MODELS.items():
        torch.manual_seed(1)
        model = build_model(section, 1)
        variants[name] = Variant(name, model, batch_for(section, crystals), target)
        rows[name] = {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "edges": len(variants[name].data.src),
        }
    own = variants["crystal transformer"]
    exact = build_model(own_section := MODELS["crystal transformer"], 1).double()
    exact.load_state_dict(own.model.state_dict())
    truth = Variant("", exact, batch_for(own_section, crystals, torch.float64), target.double())
    (found, gradient), (true, true_gradient) = own.check(), truth.check()
    joined = [
        torch.cat([part[n].flatten() for n in gradient]) for part in (gradient, true_gradient)
    ]
    times = in_turns({name: one.step for name, one in variants.items()}, options.rounds)
    first = processor(times["crystal transformer"])
    for name, row in rows.items():
        row |= {"step_ms": 1e3 * processor(times[name]), "ratio": processor(times[name]) / first}
        print(f"{name:22s}{row['step_ms']:8.0f} ms of the processor{row['ratio']:7.2f}")
    return {
        "structures": len(crystals),
        "atoms": sum(len(one) for one in crystals),
        "models": rows,
        "output_error": relative(found, true),
        "gradient_error": relative(joined[0], joined[1]),
        "machine": machine("torch", threads=1),
    }


# --- memory ---------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """A step by either kernel, by atoms per structure."""
    section = CrystalTransformerConfig()
    torch.manual_seed(0)
    model = build_model(section, 1).train()
    rows = []
    for atoms in ATOMS:
        batch = batch_for(section, random_crystals(BATCH, atoms))

        def step(way: SDPBackend, batch: GraphBatch = batch) -> None:
            model.zero_grad(set_to_none=True)
            with sdpa_kernel(way):
                model(batch).square().sum().backward()

        peaks = {}
        for name, way in WAYS.items():
            with LiveBytes() as alive:
                step(way)
            peaks[name] = alive.peak
        steps = {name: partial(step, way) for name, way in WAYS.items()}
        times = in_turns(steps, options.rounds, warm_up=0)
        row: dict[str, Any] = {"atoms": atoms, "edges": len(batch.src)}
        for key, found in (
            ("bytes", peaks),
            ("seconds", {name: processor(spent) for name, spent in times.items()}),
        ):
            row[key] = found | {"ratio": found["plain"] / found["fused"]}
        rows.append(row)
        print(
            f"{BATCH} of {atoms:4d} atoms: {row['bytes']['fused'] / 1e6:7.0f} MB, plain "
            f"{row['bytes']['plain'] / 1e6:7.0f} MB; plain takes {row['seconds']['ratio']:.2f} of the time",
            flush=True,
        )
    return {"structures": BATCH, "rows": rows, "machine": machine("torch", threads=1)}


def main() -> None:
    parser = Parser(__doc__, parts=PARTS)
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read_result("dense_attention")
    for part in [options.only] if options.only else PARTS:
        results[part] = rounded({"phonons": phonons, "memory": memory}[part](options))
    if options.write:
        write_result("dense_attention", results)


if __name__ == "__main__":
    main()
