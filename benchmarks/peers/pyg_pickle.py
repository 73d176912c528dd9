"""The pickle of PyTorch Geometric's Data in benchmarks/speed/scale.py, written or read once.

    PYTHON benchmarks/peers/pyg_pickle.py write ARRAYS.npz FILE
    PYTHON benchmarks/peers/pyg_pickle.py read FILE

Runs by an interpreter that has torch_geometric and knows nothing of atomloom. Answers with one line of
JSON: the number of graphs, seconds by the clock and of the processor.
"""

from __future__ import annotations

import json
import pickle
import sys
import time

import numpy as np
import torch
from torch_geometric.data import Data


def write(arrays: str, path: str) -> int:
    with np.load(arrays) as file:
        a = {name: file[name] for name in file.files}
    node, edge = a["node_ptr"], a["edge_ptr"]
    made = []
    for i in range(len(node) - 1):
        n, e = slice(node[i], node[i + 1]), slice(edge[i], edge[i + 1])
        made.append(
            Data(
                z=torch.from_numpy(a["numbers"][n].astype(np.int64)),
                pos=torch.from_numpy(a["positions"][n].astype(np.float32)),
                cell=torch.from_numpy(a["cell"][i : i + 1].astype(np.float32)),
                edge_index=torch.from_numpy(np.stack([a["src"][e], a["dst"][e]]).astype(np.int64)),
                shift=torch.from_numpy(a["shift"][e].astype(np.float32)),
            )
        )
    with open(path, "wb") as target:
        pickle.dump(made, target, protocol=pickle.HIGHEST_PROTOCOL)
    return len(made)


def read(path: str) -> int:
    with open(path, "rb") as file:
        return len(pickle.load(file))


def main() -> None:
    torch.set_num_threads(1)
    work = {"write": write, "read": read}[sys.argv[1]]
    clock, processor = time.perf_counter(), time.process_time()
    count = work(*sys.argv[2:])
    spent = time.perf_counter() - clock, time.process_time() - processor
    print(json.dumps([count, *spent]))


if __name__ == "__main__":
    main()
