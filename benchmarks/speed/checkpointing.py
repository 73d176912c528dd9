"""Memory and time of a training step with and without gradient checkpointing.

Each step runs in a process of its own, whose greatest resident size is read from the system; speeds
are ratios of medians, taken in turn. The numbers of both are compared, bit by bit.

    python -m benchmarks.speed.checkpointing [--only MODEL] [--width 256] [--structures 64]

ALIGNN, whose line graph is some 20 times as large, gets an eighth of the structures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.common.results import ROOT, Parser, machine, read_result, write_result

MODELS = {"icomformer": 1, "ecomformer": 1, "alignn": 8}
"""By what the number of structures is divided."""
ROUNDS = 3
STEPS = 3


def child(options: argparse.Namespace) -> None:
    """Some steps; prints peak memory before and after, seconds and a digest of the gradients."""
    import hashlib
    import time

    import numpy as np
    import torch

    from atomloom.config.model import ALIGNNConfig, EComFormerConfig, IComFormerConfig
    from atomloom.models import build_model
    from atomloom.training.batch_size import peak_memory
    from tests.unit.models.batches import batch_from_graphs, random_crystal

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    draw = np.random.default_rng(0)
    count = options.structures // MODELS[options.child]
    crystals = [random_crystal(draw, 12, 24) for _ in range(count)]
    batch = batch_from_graphs(crystals, torch.float32)
    configs = {"icomformer": IComFormerConfig, "ecomformer": EComFormerConfig}
    config = configs.get(options.child, ALIGNNConfig)
    torch.manual_seed(0)
    model = build_model(config(width=options.width), 1).train()
    model.gradient_checkpointing = options.on
    before = peak_memory(torch.device("cpu"))
    seconds = []
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        model(batch).square().sum().backward()
        seconds.append(time.perf_counter() - started)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.grad.numpy().tobytes())
    print(
        json.dumps(
            {
                "edges": batch.src.shape[0],
                "before": before,
                "peak": peak_memory(torch.device("cpu")),
                "seconds": min(seconds),
                "gradients": digest.hexdigest(),
            }
        )
    )


def measure(options: argparse.Namespace, model: str, on: bool) -> dict:
    """One process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.checkpointing",
        "--child",
        model,
        "--width",
        str(options.width),
    ]
    command += ["--structures", str(options.structures), *(["--on"] if on else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = Parser(__doc__, parts=list(MODELS))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--child", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--on", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    results = read_result("checkpointing")
    print(f"{'model':<12}{'plain MB':>10}{'with MB':>10}{'less':>8}{'time':>8}  gradients")
    for model in [options.only] if options.only else MODELS:
        pairs = [
            (measure(options, model, False), measure(options, model, True)) for _ in range(ROUNDS)
        ]
        plain, less = ([pair[i]["peak"] - pair[i]["before"] for pair in pairs] for i in (0, 1))
        plain, less = statistics.median(plain), statistics.median(less)
        time = statistics.median(on["seconds"] / off["seconds"] for off, on in pairs)
        same = all(off["gradients"] == on["gradients"] for off, on in pairs)
        results[model] = {
            "width": options.width,
            "structures": options.structures // MODELS[model],
            "edges": pairs[0][0]["edges"],
            "plain_bytes": plain,
            "checkpointing_bytes": less,
            "memory_saved": 1 - less / plain,
            "time_ratio": time,
            "same_bits": same,
            "machine": machine("torch", threads=1),
        }
        print(
            f"{model:<12}{plain / 1e6:>10.0f}{less / 1e6:>10.0f}{1 - less / plain:>8.0%}{time:>8.2f}  "
            f"{'the same bits' if same else 'DIFFERENT'}"
        )
    if options.write:
        write_result("checkpointing", results)
    least = min(result["memory_saved"] for result in results.values())
    print(f"gradient checkpointing takes at least {least:.0%} less memory for a step")


if __name__ == "__main__":
    main()
