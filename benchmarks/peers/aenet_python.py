"""aenet-python behind benchmarks/speed/aenet.py: computes features and trains, as it is told.

    PYTHON benchmarks/peers/aenet_python.py FOLDER

Runs by an interpreter that imports `aenet` and knows nothing of atomloom. FOLDER holds problem.json and
structures.npz; each line of the standard input is a command, each answer one line.
"""

import contextlib
import json
import sys
import tempfile
import time
from importlib import metadata

import numpy as np
import torch
from aenet.torch_featurize import ChebyshevDescriptor
from aenet.torch_featurize.graph import build_csr_from_neighborlist, build_triplets_from_csr
from aenet.torch_training import Adam, Structure, TorchANNPotential, TorchTrainingConfig


def main() -> None:
    folder = sys.argv[1]
    torch.set_num_threads(1)
    with open(f"{folder}/problem.json") as file:
        problem = json.load(file)
    content = np.load(f"{folder}/structures.npz")
    (radial, angular), (far, near) = problem["orders"], problem["cutoffs"]
    species, least = problem["species"], problem["least_distance"]
    describe = ChebyshevDescriptor(species, radial, far, angular, near, min_cutoff=least)
    names = {number: name for number, name in zip(problem["numbers"], species, strict=True)}
    (name,) = metadata.packages_distributions()["aenet"]
    print(json.dumps({name: metadata.version(name), "torch": torch.__version__}), flush=True)
    structures, inputs = [], []
    for index in range(problem["structures"]):
        positions, cell = content[f"positions{index}"], content[f"cell{index}"]
        symbols = [names[int(z)] for z in content[f"numbers{index}"]]
        structures.append(
            Structure(
                positions,
                symbols,
                float(content[f"energy{index}"]),
                content[f"forces{index}"],
                cell,
                np.array([True] * 3),
            )
        )
        places = torch.tensor(positions)
        graph = build_csr_from_neighborlist(
            places,
            torch.tensor(cell),
            torch.tensor([True] * 3),
            describe.nbl,
            least,
            far,
            dtype=torch.float64,
        )
        triplets = build_triplets_from_csr(graph, near, least)
        kinds = torch.tensor([species.index(symbol) for symbol in symbols])
        inputs.append((places, kinds, graph, triplets))

    def features():
        with torch.no_grad():
            return torch.cat([describe.forward_with_graph(*item) for item in inputs])

    def epochs(options):
        """Seconds of the epochs of a training; means and scales are given, which it would take two
        passes to find."""
        count = options.pop("epochs")
        values = features().numpy()
        config = TorchTrainingConfig(
            iterations=count,
            method=Adam(mu=1e-3, batchsize=problem["structures"]),
            testpercent=0,
            seed=0,
            device="cpu",
            show_progress=False,
            checkpoint_dir=None,
            save_best=False,
            feature_stats={"mean": values.mean(axis=0), "cov": values.std(axis=0) + 1e-9},
            E_shift=0.0,
            E_scaling=1.0,
            **options,
        )
        layers = [(nodes, "tanh") for nodes in problem["hidden"]]
        potential = TorchANNPotential({name: layers for name in species}, describe)
        with (
            contextlib.redirect_stdout(sys.stderr),
            tempfile.TemporaryDirectory() as scratch,
            contextlib.chdir(scratch),
        ):
            potential.train(structures=structures, config=config)
        return potential.history["epoch_time"]

    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if command == "features":
            np.save(f"{folder}/features.npy", features().numpy())
            print(json.dumps("written"), flush=True)
        elif command == "time":
            clock, processor = time.perf_counter(), time.process_time()
            features()
            spent = time.perf_counter() - clock, time.process_time() - processor
            print(json.dumps(spent), flush=True)
        elif command == "epochs":
            print(json.dumps(epochs(json.loads(rest))), flush=True)
        else:
            break


if __name__ == "__main__":
    main()
