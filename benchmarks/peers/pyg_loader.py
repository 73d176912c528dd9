"""The peer of benchmarks/speed/loader.py, run by a Python that has torch_geometric and knows nothing of atomloom.

    PYTHON benchmarks/peers/pyg_loader.py ARRAYS.npz

Makes a list of `Data`, one a crystal, of the arrays; then, for each line `WORKERS BATCH_SIZE CHECK` on
standard input, goes once through it with a shuffling DataLoader and answers with one line of JSON: the
seconds by the clock and of the processor (of this process alone: workers do not count) and, where CHECK
is 1, the sum of the lengths of all edges.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
import torch_geometric
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader


def crystals(path: str) -> list[Data]:
    with np.load(path) as content:
        arrays = {name: torch.from_numpy(content[name]) for name in content.files}
    nodes, edges = arrays["node_ptr"].tolist(), arrays["edge_ptr"].tolist()
    found = []
    for row in range(len(nodes) - 1):
        atoms, own = slice(nodes[row], nodes[row + 1]), slice(edges[row], edges[row + 1])
        found.append(
            Data(
                z=arrays["numbers"][atoms].clone(),
                pos=arrays["positions"][atoms].clone(),
                cell=arrays["cell"][row : row + 1].clone(),
                lattice=arrays["lattice"][row : row + 1].clone(),
                edge_index=arrays["edge_index"][:, own].clone(),
                edge_attr=arrays["vectors"][own].clone(),
                shift=arrays["shift"][own].clone(),
                multiplicity=arrays["multiplicity"][own].clone(),
                y=arrays["targets"][row : row + 1].clone(),
            )
        )
    return found


def main() -> None:
    torch.set_num_threads(1)
    data = crystals(sys.argv[1])
    loaders: dict[tuple[int, int], DataLoader] = {}
    print(json.dumps({"torch_geometric": torch_geometric.__version__}), flush=True)
    for line in sys.stdin:
        workers, size, check = map(int, line.split())
        if (workers, size) not in loaders:
            loaders[workers, size] = DataLoader(
                data,
                batch_size=size,
                shuffle=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
        begun, used = time.perf_counter(), time.process_time()
        total = 0.0
        for batch in loaders[workers, size]:
            if check:
                total += float(batch.edge_attr.norm(dim=1).double().sum())
        answer = {
            "clock": time.perf_counter() - begun,
            "processor": time.process_time() - used,
            "edge_length": total,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
