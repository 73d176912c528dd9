"""Forces and stress of a data set, from the arrays of the split and out of the shards of structures.

    python -m benchmarks.speed.labels

5,000 random crystals of 16 atoms with energy, forces and stress go through plan, convert and split. Then
the values of all of them are loaded from the arrays that the split wrote, as training and evaluation do,
and taken out of the shards of structures one target after another, as both did before there were arrays.
Rounds in turns, medians. Writes benchmarks/results/labels.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from atomloom.config import parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.stages.convert import convert_chunk
from atomloom.stages.labels import array_targets
from atomloom.stages.plan import make_plan
from atomloom.stages.split import read_dataset, write_split
from atomloom.stages.target_arrays import labelled_chunks, load_target_arrays, values_in
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure
from benchmarks.common.results import Parser, machine, rounded, write_result
from benchmarks.common.structures import random_crystals
from benchmarks.common.timing import clock, in_turns, processor

STRUCTURES, ATOMS, ROUNDS = 5_000, 16, 5


def frame(structure: Structure, rng: np.random.Generator) -> str:
    """Text of one frame with energy, forces and stress."""
    lattice, stress = (
        " ".join(f"{x:.8f}" for x in values)
        for values in (structure.cell.ravel(), rng.normal(size=9))
    )
    atoms = zip(
        structure.numbers.tolist(),
        np.hstack([structure.positions, rng.normal(size=(len(structure), 3))]).tolist(),
        strict=True,
    )
    rows = "\n".join(f"{SYMBOLS[n]} {' '.join(f'{x:.8f}' for x in row)}" for n, row in atoms)
    columns = "species:S:1:pos:R:3:forces:R:3"
    head = f'Lattice="{lattice}" Properties={columns} energy={rng.normal():.8f} stress="{stress}"'
    return f'{len(structure)}\n{head} pbc="T T T"\n{rows}\n'


def divided(folder: Path) -> RunPaths:
    """The data set, divided, in a folder."""
    rng = np.random.default_rng(0)
    crystals = random_crystals(STRUCTURES, ATOMS)
    (folder / "frames.extxyz").write_text("".join(frame(one, rng) for one in crystals))
    paths = {"store": str(folder / "store"), "results": str(folder / "results")}
    source = str(folder / "frames.extxyz")
    dataset = {"name": "d", "source": source, "target": ["energy", "forces", "stress"]}
    content = {"dataset": dataset, "model": {"name": "painn"}, "paths": paths}
    layout = Layout(parse_config(content))
    plan = make_plan(layout, print)
    for chunk in plan.chunks:
        convert_chunk(layout, plan, chunk.key, print)
    places = RunPaths(layout, plan)
    write_split(places, print)
    return places


def from_shards(places: RunPaths) -> dict[str, np.ndarray]:
    """Values of each target out of the shards of structures, each decoded once a target."""
    return {
        spec.name: np.concatenate(
            [values_in(converted.table, spec) for _, converted, _ in labelled_chunks(places)]
        )
        for spec in array_targets(places.config)
    }


def main() -> None:
    options = Parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = divided(Path(folder))
        dataset = read_dataset(places)
        records = dataset["record"].to_numpy()
        node_ptr = np.concatenate([[0], np.cumsum(dataset["n_atoms"].to_numpy(np.int64))])
        arrays, taken = load_target_arrays(places, records, node_ptr), from_shards(places)
        assert all(np.array_equal(arrays[name], taken[name]) for name in taken), "the same values"
        times = in_turns(
            {
                "arrays": lambda: load_target_arrays(places, records, node_ptr),
                "shards": lambda: from_shards(places),
            },
            ROUNDS,
        )
        files = [places.target_array(name) for name in arrays]
        found = {
            **machine("numpy", "numcodecs"),
            "structures": STRUCTURES,
            "atoms": ATOMS,
            "chunks": len(places.plan.chunks),
            "megabytes": sum(path.stat().st_size for path in files) / 1e6,
            **{name: {"seconds": clock(t), "processor": processor(t)} for name, t in times.items()},
            "ratio": processor(times["shards"]) / processor(times["arrays"]),
        }
    if options.write:
        write_result("labels", rounded(found))
    print(rounded(found))


if __name__ == "__main__":
    main()
