"""The published ALIGNN behind benchmarks/speed/alignn.py: takes the training steps it is told to.

    PYTHON benchmarks/peers/alignn_dgl.py FOLDER THREADS

Runs by an interpreter that has the `alignn` package and knows nothing of atomloom. FOLDER holds
graph.npz and weights.npz; each line of the standard input is a command, each answer one line.
"""

import json
import sys
import time
from importlib import metadata

import dgl
import numpy as np
import torch
from alignn.models.alignn import ALIGNN, ALIGNNConfig


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    graph = np.load(f"{folder}/graph.npz")

    def real(name):
        return torch.tensor(graph[name], dtype=torch.float32)

    def whole(name):
        return torch.tensor(graph[name])

    g = dgl.graph((whole("src"), whole("dst")), num_nodes=len(graph["features"]))
    g.set_batch_num_nodes(whole("atoms"))
    g.set_batch_num_edges(whole("edges"))
    g.ndata["atom_features"], g.edata["r"] = real("features"), real("r")
    line = dgl.graph((whole("line_src"), whole("line_dst")), num_nodes=len(graph["src"]))
    line.set_batch_num_nodes(whole("edges"))
    line.set_batch_num_edges(whole("pairs"))
    line.edata["h"] = real("cosine")
    target = real("target")

    model = ALIGNN(ALIGNNConfig(name="alignn"))
    with np.load(f"{folder}/weights.npz") as weights:
        model.load_state_dict({name: torch.tensor(weights[name]) for name in weights.files})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        output = model((g, line, None))
        (output - target).square().mean().backward()
        return output.detach()

    versions = {name: metadata.version(name) for name in ("alignn", "dgl", "torch")}
    print(json.dumps(versions), flush=True)
    for order in sys.stdin:
        if order.strip() == "check":
            output = step().numpy()
            named = model.named_parameters()
            grads = {name: w.grad.numpy() for name, w in named if w.grad is not None}
            np.savez(f"{folder}/answer.npz", output=output, **grads)
            print(json.dumps("written"), flush=True)
        else:
            clock, processor = time.perf_counter(), time.process_time()
            step()
            optimizer.step()
            spent = time.perf_counter() - clock, time.process_time() - processor
            print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    main()
