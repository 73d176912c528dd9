"""The Chebyshev potential alongside its published sums over triplets in plain torch, and aenet-python.

    python -m benchmarks.speed.aenet [--only descriptor | steps | cached | epochs] [--peer PYTHON]

32 structures of the aenet TiO2 set (ATOMLOOM_DATA), or random oxides of the same sizes where it
is not here; radial order 20 to 6.5 A, angular order 6 to 5.0 A, two hidden layers of 5 tanh
nodes. All variants take turns on one thread. The first three parts give medians of processor time,
so that other work on the machine counts little.

descriptor: features of all atoms.
steps: an optimiser step on energies and forces, of all structures and of a share of them, the
features of the others cached; on batches of 32 structures, and of 128.
cached: a step on energies, features computed or cached, without loop and loader.
epochs: whole epochs of a training, all 32 structures in a batch, as the histories of both programs
tell their time: features computed each step or cached, forces of all structures or of a share, with
and without caches, data prepared alongside the step or not.

`--peer PYTHON` adds aenet-python, where that interpreter imports `aenet`; it works in a process of
its own, for `descriptor` with neighbours and triplets found beforehand. Updates its part of
benchmarks/results/aenet.json.
"""

from __future__ import annotations

import csv
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, find_data, machine, read_result, write_result
from benchmarks.common.timing import Seconds, in_turns, processor

COUNT, ROUNDS = 32, 9
ORDERS, CUTOFFS, HIDDEN = (20, 6), (6.5, 5.0), (5, 5)
SPECIES, NUMBERS = ("Ti", "O"), (22, 8)
MODEL = {
    "species": SPECIES,
    "radial_order": ORDERS[0],
    "radial_cutoff": CUTOFFS[0],
    "angular_order": ORDERS[1],
    "angular_cutoff": CUTOFFS[1],
    "hidden": HIDDEN,
}


def structures(count: int) -> tuple[str, list]:
    """Name of the data, and the structures."""
    from atomloom.readers.formats import xsf
    from atomloom.structures.structure import Structure

    path = find_data("aenet_tio2/dir_xsf.tar.gz")
    if path is not None:
        with tarfile.open(path) as archive:
            files = sorted(
                (m for m in archive.getmembers() if m.name.endswith(".xsf")), key=lambda m: m.name
            )
            chosen = files[:: len(files) // count][:count]
            return "aenet_tio2", [
                xsf.parse(archive.extractfile(m).read(), {}).named(m.name) for m in chosen
            ]
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) / 3
    made = []
    for _ in range(count):
        atoms = int(rng.integers(6, 27))
        side = (10.5 * 27) ** (1 / 3)
        places = grid[rng.permutation(27)[:atoms]] * side + rng.normal(scale=0.1, size=(atoms, 3))
        numbers = np.where(np.arange(atoms) % 3 == 0, 22, 8)
        forces = {"energy": 0.0, "forces": rng.normal(size=(atoms, 3))}
        made.append(Structure(numbers, places, np.eye(3) * side, [True] * 3, forces))
    return "synthetic", made


def medians(variants: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median processor seconds of each variant."""
    return {name: processor(times) for name, times in in_turns(variants, rounds).items()}


class Problem:
    """Structures, graphs, batch and model."""

    def __init__(self, dtype: str, count: int = COUNT) -> None:
        import torch

        from atomloom.config.graph import GraphSpec
        from atomloom.config.model import ChebyshevConfig
        from atomloom.data.loader import GraphLoader
        from atomloom.graphs.build import build_graphs
        from atomloom.models.chebyshev.network import Chebyshev
        from atomloom.structures.table import StructureTable

        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.name, self.structures = structures(count)
        spec = GraphSpec(neighbors="radius", cutoff=max(CUTOFFS))
        self.table = build_graphs(StructureTable.from_structures(self.structures), spec)
        self.rows = np.arange(len(self.table))
        self.loader = GraphLoader(self.table, self.rows, dtype=self.dtype, prefetch=0)
        self.batch = self.loader.slice(self.rows)
        torch.manual_seed(0)
        self.model = Chebyshev(ChebyshevConfig(**MODEL)).to(self.dtype)
        with torch.no_grad():
            self.features = self.model.features(self.batch)
            self.model.fit_features(self.features, self.batch.numbers)
        self.forces = torch.tensor(
            np.concatenate([s.properties["forces"] for s in self.structures]), dtype=self.dtype
        )

    def part(self, share: float):
        """The batch with the edges of a share of its structures; which atoms those are."""
        torch, batch = self.torch, self.batch
        if share == 1:
            return batch, torch.ones(len(batch.numbers), dtype=torch.bool)
        chosen = torch.zeros(batch.size, dtype=torch.bool)
        chosen[:: round(1 / share)] = True
        computed = chosen[batch.node_graph]
        keep = computed[batch.dst]
        counts = batch.dst_ptr.diff() * computed
        part = replace(
            batch,
            src=batch.src[keep],
            dst=batch.dst[keep],
            shift=batch.shift[keep],
            vectors=batch.vectors[keep],
            dst_ptr=torch.cat((counts.new_zeros(1), counts.cumsum(0))),
            extras={"features": self.features, "computed": computed},
        )
        return part, computed

    def optimizer(self):
        """AdamW as the loop makes it."""
        return self.torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def step(self, batch, computed, optimizer) -> None:
        """One optimiser step on energies and forces."""
        from atomloom.models.derivatives import evaluate_potential

        output = evaluate_potential(self.model, batch, create_graph=True)
        off = (output.forces - self.forces) * computed.unsqueeze(1)
        loss = output.energy.square().sum() + off.square().sum()
        optimizer.zero_grad()
        loss.backward(inputs=list(self.model.parameters()))
        optimizer.step()


class Plain:
    """The published sums, one structure at a time, with torch; triplets are listed beforehand."""

    def __init__(self, problem: Problem) -> None:
        torch = self.torch = problem.torch
        self.problem, self.parts = problem, []
        for row in problem.rows:
            batch = problem.loader.slice(problem.rows[row : row + 1])
            near = batch.vectors.norm(dim=1) <= CUTOFFS[1]
            pairs = []
            for atom in range(len(batch.numbers)):
                edges = torch.arange(int(batch.dst_ptr[atom]), int(batch.dst_ptr[atom + 1]))
                pairs.append(torch.combinations(edges[near[edges]], 2))
            weight = torch.where(batch.numbers[batch.src] == 22, -1.0, 1.0).to(problem.dtype)
            self.parts.append((batch, torch.cat(pairs), weight))

    def describe(self, batch, pairs, weight):
        """[N, F] features of one structure."""
        torch = self.torch
        atoms = len(batch.numbers)
        vectors = batch.edge_vectors()
        r = vectors.norm(dim=1)

        def cutoff(distance, length):
            return torch.where(
                distance <= length, 0.5 * (torch.cos(torch.pi * distance / length) + 1), 0.0
            )

        def polynomials(x, order):
            terms = [torch.ones_like(x), x]
            while len(terms) <= order:
                terms.append(2 * x * terms[-1] - terms[-2])
            return torch.stack(terms[: order + 1], dim=1)

        def collect(values, index):
            return values.new_zeros(atoms, values.shape[1]).index_add(0, index, values)

        radial = polynomials(2 * r / CUTOFFS[0] - 1, ORDERS[0]) * cutoff(r, CUTOFFS[0])[:, None]
        j, k = pairs.unbind(1)
        cosine = (vectors[j] * vectors[k]).sum(1) / (r[j] * r[k])
        both = cutoff(r[j], CUTOFFS[1]) * cutoff(r[k], CUTOFFS[1])
        angular = polynomials(cosine, ORDERS[1]) * both[:, None]
        center = batch.dst[j]
        return torch.cat(
            (
                collect(radial, batch.dst),
                collect(angular, center),
                collect(radial * weight[:, None], batch.dst),
                collect(angular * (weight[j] * weight[k])[:, None], center),
            ),
            dim=1,
        )

    def features(self):
        """[N, F] of all structures."""
        with self.torch.no_grad():
            return self.torch.cat([self.describe(*part) for part in self.parts])

    def step(self, optimizer) -> None:
        """One optimiser step on energies and forces of all structures."""
        torch, model = self.torch, self.problem.model
        loss, start = 0.0, 0
        for batch, pairs, weight in self.parts:
            positions = batch.positions.clone().requires_grad_()
            moving = replace(batch, positions=positions, vectors=None)
            energy = model.energies(self.describe(moving, pairs, weight), batch.numbers).sum()
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
            wanted = self.problem.forces[start : start + len(batch.numbers)]
            start += len(batch.numbers)
            loss = loss + energy.square() + (gradient + wanted).square().sum()
        optimizer.zero_grad()
        loss.backward(inputs=list(model.parameters()))
        optimizer.step()


def gradients(model) -> np.ndarray:
    """Gradient of all weights, in one row."""
    return np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters()])


# --- parts ----------------------------------------------------------------------------------------


def descriptor(options) -> dict:
    """Features of all atoms."""
    from atomloom.models.chebyshev.network import torch_features

    double, single = Problem("float64"), Problem("float32")
    torch = double.torch
    plain = Plain(double)
    true = plain.features()

    def ours(problem):
        with torch.no_grad():
            return problem.model.features(problem.batch)

    def operations():
        batch, model = double.batch, double.model
        with torch.no_grad():
            neighbour = model.place[batch.numbers[batch.src]]
            return torch_features(
                batch.vectors, neighbour, batch.dst, len(batch.numbers), model.basis
            )

    variants: dict[str, Callable] = {
        "sums over triplets, torch, float64": plain.features,
        "harmonics, torch, float64": operations,
        "atomloom, float64": lambda: ours(double),
        "atomloom, float32": lambda: ours(single),
    }
    errors = {name: _error(run(), true) for name, run in variants.items()}
    peer = None
    if options.peer:
        peer = AenetPython(options.peer, double)
        name = "aenet-python, float64"
        errors[name] = _error(torch.from_numpy(peer.features()), true)
        variants[name] = peer.seconds
    times = medians(variants)
    if peer:
        peer.close()
    return {
        **_about(double),
        "triplets": int(sum(len(part[1]) for part in plain.parts)),
        "rows": _table(times, errors, len(double.batch.numbers), "largest error of a feature"),
    }


def steps(options) -> dict:
    """An optimiser step on energies and forces."""
    return _steps_of(COUNT) | {"larger_batch": _steps_of(4 * COUNT)}


def _steps_of(count: int) -> dict:
    double, single = Problem("float64", count), Problem("float32", count)
    plain = Plain(double)
    optimizers = {id(p): p.optimizer() for p in (double, single)}
    variants: dict[str, Callable] = {
        "triplets, torch, float64, share 1": lambda: plain.step(optimizers[id(double)])
    }
    variants["triplets, torch, float64, share 1"]()
    true = gradients(double.model)
    errors = {"triplets, torch, float64, share 1": 0.0}
    for problem, kind in ((double, "float64"), (single, "float32")):
        for share in (1, 1 / 3, 1 / 10):
            batch, computed = problem.part(share)

            def run(problem=problem, batch=batch, computed=computed):
                problem.step(batch, computed, optimizers[id(problem)])

            name = f"atomloom, {kind}, share {share:.1f}".replace(".0", "")
            variants[name] = run
            if share == 1:
                fresh = Problem(kind, count)
                fresh.step(batch, computed, fresh.optimizer())
                found = gradients(fresh.model)
                errors[name] = float(np.linalg.norm(found - true) / np.linalg.norm(true))
    times = medians(variants)
    print(f"{count} structures")
    rows = _table(times, errors, len(double.batch.numbers), "relative error of gradients")
    for kind in ("float64", "float32"):
        whole, tenth = (times[f"atomloom, {kind}, share {share}"] for share in ("1", "0.1"))
        print(f"forces of a tenth, {kind}: {whole / tenth:.1f} times as fast as those of all")
    return {**_about(double), "rows": rows}


def cached(options) -> dict:
    """A step on energies, features computed or cached."""
    rows: dict[str, Callable] = {}
    for kind in ("float64", "float32"):
        problem = Problem(kind)
        batch, optimizer = problem.batch, problem.optimizer()
        plain = Plain(problem)
        index, zeros = batch.node_graph, problem.torch.zeros(batch.size, dtype=problem.dtype)

        def step(of_atoms, index=index, zeros=zeros, optimizer=optimizer):
            loss = zeros.index_add(0, index, of_atoms).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def by_triplets(problem=problem, plain=plain, step=step):
            step(problem.model.energies(plain.features(), problem.batch.numbers))

        def ours(batch, problem=problem, step=step):
            step(problem.model(batch))

        rows[f"triplets, torch, {kind}, one by one"] = by_triplets
        rows[f"atomloom, {kind}, computed"] = partial(ours, batch)
        extras = {"features": problem.features}
        rows[f"atomloom, {kind}, cached"] = partial(ours, replace(batch, extras=extras))
    times = medians(rows, 40)
    return {**_about(problem), "rows": _table(times, {}, len(problem.batch.numbers), "")}


def epochs(options) -> dict:
    """Whole epochs of a training, by the programs' own histories."""
    problem = Problem("float64")
    modes = list(_modes())
    peer = AenetPython(options.peer, problem) if options.peer else None
    found: dict[str, list[float]] = {name: [] for name, _, _ in modes}
    for name, who, settings in modes:
        if who == "atomloom":
            found[name] += _train(problem, settings)
        elif peer:
            found[name] += peer.epochs(settings)[1:]  # the first fills caches
    if peer:
        peer.close()
    times = {name: median(values) for name, values in found.items() if values}
    rows = []
    print(f"{'':64}{'ms':>10}{'of aenet-python':>18}")
    slower = None
    for name, who, _ in modes:
        if name not in times:
            continue
        slower = times[name] if who == "aenet-python" and "no caches" in name else slower
        ratio = None if slower is None else slower / times[name]
        rows.append({"name": name, "ms": times[name] * 1e3, "ratio": ratio})
        print(f"{name:64}{times[name] * 1e3:10.2f}{ratio or 0:17.1f}x")
    return {**_about(problem), "rows": rows}


def _modes():
    """Name, program and settings of each training; the peer's plain one leads those to compare."""
    for workers in (0, 2):
        loading = f"{workers} workers"
        yield (
            f"aenet-python, energies, no caches, {loading}",
            "aenet-python",
            {"epochs": 2, "force_weight": 0.0, "num_workers": workers},
        )
        yield (
            f"aenet-python, energies, cached features, {loading}",
            "aenet-python",
            {"epochs": 12, "force_weight": 0.0, "num_workers": workers, "cache_features": True},
        )
        for keep, how in ((False, "features each step"), (True, "cached features")):
            for precision in ("64", "32"):
                settings = {"precision": precision, "prefetch": workers, "epochs": 60}
                potential = {"cache_features": keep}
                name = f"atomloom, energies, {how}, float{precision}, prefetch {workers}"
                yield name, "atomloom", {**settings, "potential": potential}
    for share in (1.0, 0.3, 0.1):
        common = {"epochs": 2, "force_weight": 0.1, "force_fraction": share}
        common |= {"force_resample_num_epochs": 0, "num_workers": 0}
        what = f"forces of {share:g}"
        yield f"aenet-python, {what}, no caches", "aenet-python", common
        caches = {"cache_features": share < 1, "cache_neighbors": True}
        yield f"aenet-python, {what}, neighbours cached", "aenet-python", common | caches
        caches["cache_force_triplets"] = True
        yield f"aenet-python, {what}, and triplets cached", "aenet-python", common | caches
        for precision in ("64", "32"):
            settings = {"precision": precision, "prefetch": 0, "epochs": 30}
            potential = {"force_fraction": share}
            name = f"atomloom, {what}, float{precision}"
            yield name, "atomloom", {**settings, "forces": True, "potential": potential}


def _train(problem: Problem, settings: dict) -> list[float]:
    """Seconds of the epochs of a training, without the first."""
    from atomloom.config import parse_config
    from atomloom.data.dataset import LabelledGraphs
    from atomloom.training.trainer import train

    training = {k: v for k, v in settings.items() if k != "forces"}
    forces = settings.get("forces", False)
    config = parse_config(
        {
            "dataset": {
                "name": "aenet",
                "source": "none",
                "target": ["energy", "forces"] if forces else ["energy"],
            },
            "graph": {"neighbors": "radius", "cutoff": max(CUTOFFS)},
            "model": {"name": "chebyshev", **MODEL},
            "training": {"batch": {"structures": COUNT}, "threads": 1, **training},
        }
    )
    energies = np.array([[s.properties["energy"]] for s in problem.structures], dtype=float)
    given = np.concatenate([s.properties["forces"] for s in problem.structures])
    data = LabelledGraphs(
        problem.table, energies, {"train": problem.rows}, forces=given if forces else None
    )
    with tempfile.TemporaryDirectory() as scratch:
        train(data, config, scratch, lambda line: None)
        with open(Path(scratch) / "history.csv") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)][1:]


# --- the peer -------------------------------------------------------------------------------------


class AenetPython:
    """aenet-python in a process of its own."""

    def __init__(self, python: str, problem: Problem) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        arrays = {}
        for index, s in enumerate(problem.structures):
            # Wrapped into the cell: aenet-python counts cells from there.
            places = np.linalg.solve(s.cell.T, s.positions.T).T % 1.0
            arrays |= {f"numbers{index}": s.numbers, f"cell{index}": s.cell}
            arrays[f"positions{index}"] = places @ s.cell
            arrays |= {f"{name}{index}": s.properties[name] for name in ("energy", "forces")}
        np.savez(folder / "structures.npz", **arrays)
        about = {
            "structures": COUNT,
            "orders": ORDERS,
            "cutoffs": CUTOFFS,
            "species": SPECIES,
            "numbers": NUMBERS,
            "hidden": HIDDEN,
            "least_distance": 0.55,
        }
        (folder / "problem.json").write_text(json.dumps(about))
        self.peer = Peer(python, "aenet_python.py", folder)

    def features(self) -> np.ndarray:
        """[N, F]."""
        self.peer.ask("features")
        return np.load(Path(self.folder.name) / "features.npy")

    def seconds(self) -> Seconds:
        """Time of the features of all atoms."""
        return Seconds(*self.peer.ask("time"))

    def epochs(self, options: dict) -> list[float]:
        """Seconds of the epochs of a training."""
        return self.peer.ask("epochs " + json.dumps(options))

    def close(self) -> None:
        """End the process."""
        self.peer.close()
        self.folder.cleanup()


# --- printing -------------------------------------------------------------------------------------


def _error(found, true) -> float:
    return float((found.double() - true).abs().max())


def _about(problem: Problem) -> dict:
    return {
        "data": problem.name,
        "structures": len(problem.rows),
        "atoms": len(problem.batch.numbers),
        "edges": len(problem.batch.src),
    }


def _table(times: dict, errors: dict, atoms: int, what: str) -> list[dict]:
    first = next(iter(times.values()))
    print(f"{'':38}{'ms':>10}{'ratio':>9}{'atoms/s':>12}   {what}")
    rows = []
    for name, seconds in times.items():
        row = {"name": name, "ms": seconds * 1e3, "ratio": first / seconds}
        row["atoms_per_second"] = atoms / seconds
        if name in errors:
            row["error"] = errors[name]
        shown = f"{errors[name]:.1e}" if name in errors else ""
        print(f"{name:38}{row['ms']:10.2f}{row['ratio']:9.1f}{atoms / seconds:12,.0f}   {shown}")
        rows.append(row)
    return rows


PARTS = {"descriptor": descriptor, "steps": steps, "cached": cached, "epochs": epochs}


def main() -> None:
    """Run the parts and write the results."""
    parser = Parser(__doc__, parts=list(PARTS), peer="aenet-python")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    results = read_result("aenet")
    for part in [options.only] if options.only else PARTS:
        print(f"\n{part}: {PARTS[part].__doc__.splitlines()[0]}")
        results[part] = PARTS[part](options) | {"machine": machine("torch", threads=1)}
    if options.write:
        write_result("aenet", results)
    best = ", ".join(
        f"{part} {max(row['ratio'] for row in results[part]['rows']):.0f}x"
        for part in ("descriptor", "steps")
        if part in results
    )
    print(f"\nfastest variant against sums over triplets in torch: {best}")


if __name__ == "__main__":
    main()
