"""Muon and schedule-free AdamW against AdamW, at equal processor time, on phonons and ethanol.

    python -m benchmarks.accuracy.optimizers [--only phonons | ethanol] [--folder FOLDER] [--epochs N]

Muon (Jordan, 2024) is torch's, for matrices between the embedding and the outputs; other weights have AdamW.
Schedule-free AdamW is that of Defazio et al. (2024), with a constant rate after a short warm-up. An epoch of
each is timed first; those of AdamW are given, and the others have as many as take its time. The
learning rate is the best of a small grid by validation error with the first seed; then two more seeds are
trained. Budgets are short, and the optimisers are no option of atomloom. Finished runs in a folder that is kept
are not repeated. Updates its part of benchmarks/results/optimizers.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from atomloom.api import prepare, run_pipeline
from atomloom.config import parse_config
from atomloom.config.training import Training
from atomloom.pipeline.stage_table import STAGES
from atomloom.training import trainer
from atomloom.training.optim.ema import MovingAverage
from atomloom.training.optim.optimizers import build_optimizer
from benchmarks.accuracy.matbench_phonons import PRESET
from benchmarks.accuracy.potentials_accuracy import dataset_of
from benchmarks.common.results import Parser, data_path, machine, read_result, rounded, write_result

RATES = {
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    "muon": (1e-3, 3e-3, 1e-2, 3e-2),
    "schedule-free": (1e-3, 3e-3, 1e-2, 3e-2),
}
SEEDS = (0, 1, 2)
ENDS = ("embedding", "fc.", "fc_out.", "outnet.")
"""Parts of the names of weights at the ends of a network, which Muon is not for."""
WARM_UP = 50
"""Steps over which the rate of schedule-free AdamW rises."""


class MuonWithAdamW(Optimizer):
    """Muon for some groups and AdamW for the others, with one list of groups."""

    def __init__(self, model: nn.Module, settings: Training) -> None:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        hidden = [p for n, p in named.items() if p.ndim == 2 and not any(end in n for end in ENDS)]
        known = {id(p) for p in hidden}
        rest = [p for p in named.values() if id(p) not in known]
        lr, decay = settings.learning_rate, settings.weight_decay
        self.parts = (
            Muon(hidden, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(rest, lr=lr, weight_decay=0.0, fused=True),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        ours = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(ours) for _ in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()


class ScheduleFree(Optimizer):
    """AdamW without a schedule: gradients at y, between z, which takes the steps, and their mean x."""

    def __init__(self, model: nn.Module, settings: Training) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "decay": 0.0},
        ]
        super().__init__(groups, {"lr": settings.learning_rate, "beta": 0.9, "beta2": 0.999})
        self.steps, self.total = 0, 0.0
        for parameter in trained:
            zero = torch.zeros_like(parameter)
            own = {"x": parameter.detach().clone(), "z": parameter.detach().clone(), "v": zero}
            self.state[parameter] = own

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        self.steps += 1
        rise = min(1.0, self.steps / WARM_UP)
        self.total += rise**2
        share = rise**2 / self.total
        for group in self.param_groups:
            for y in group["params"]:
                if y.grad is None:
                    continue
                x, z, v = (self.state[y][name] for name in "xzv")
                v.mul_(group["beta2"]).addcmul_(y.grad, y.grad, value=1 - group["beta2"])
                scale = (v / (1 - group["beta2"] ** self.steps)).sqrt_().add_(1e-8)
                step = (y.grad / scale).add_(y, alpha=group["decay"])
                z.add_(step, alpha=-group["lr"] * rise)
                x.lerp_(z, share)
                y.copy_(torch.lerp(z, x, group["beta"]))


class Mean(MovingAverage):
    """The mean x of `ScheduleFree` as the weights to validate and to keep, with current buffers."""

    optimizer: ScheduleFree

    @torch.no_grad()
    def update(self, step: int) -> None:
        means = {id(own): state["x"] for own, state in self.optimizer.state.items()}
        live = self._model.state_dict(keep_vars=True).values()
        for average, tensor in zip(self._average, live, strict=True):
            average.copy_(means.get(id(tensor), tensor))


def use(name: str) -> None:
    """Let the trainer build this optimiser."""

    def build(model: nn.Module, settings: Training, fused: bool = True) -> Optimizer:
        if name == "muon":
            return MuonWithAdamW(model, settings)
        if name == "schedule-free":
            Mean.optimizer = ScheduleFree(model, settings)
            return Mean.optimizer
        return build_optimizer(model, settings, fused)

    trainer.build_optimizer = build  # type: ignore[attr-defined]
    trainer.MovingAverage = Mean if name == "schedule-free" else MovingAverage  # type: ignore[misc,attr-defined]


def config_of(part: str, optimizer: str, lr: float, seed: int, epochs: int) -> dict[str, Any]:
    """A whole config."""
    training: dict[str, Any] = {
        "learning_rate": lr,
        "seed": seed,
        "epochs": epochs,
        "threads": 1,
        "precision": "32",
    }
    if optimizer == "schedule-free":
        training |= {"scheduler": "constant", "ema_decay": 0.9}  # its mean stands in for that one
    if part == "ethanol":
        model = {"name": "painn", "width": 32, "layers": 2}
        return dataset_of("rmd17", "ethanol") | {"model": model, "training": training}
    config = yaml.safe_load(PRESET.read_text())
    config["graph"] = {"max_neighbors": 12}
    config["model"] = {"name": "icomformer", "width": 32, "layers": 2}
    return config | {"training": training | {"batch": {"structures": 32}}}


SCORES = {"phonons": ("last phdos peak", "mae"), "ethanol": ("forces", "mae")}


def run(
    part: str, optimizer: str, lr: float, seed: int, epochs: int, folder: Path
) -> dict[str, Any]:
    """Train one; errors and processor time."""
    own = folder / f"{part}-{optimizer}-{lr:g}-{seed}-{epochs}"
    known = own / "row.json"
    if known.exists():
        return json.loads(known.read_text())
    use(optimizer)
    paths = {"results": str(own), "store": str(folder / "store")}
    config = parse_config(config_of(part, optimizer, lr, seed, epochs) | {"paths": paths})
    places = prepare(config, lambda line: None)
    begun = time.process_time()
    STAGES["train"].run(places, lambda line: None)
    spent = time.process_time() - begun
    target, kind = SCORES[part]
    errors = run_pipeline(config, lambda line: None).metrics[target]
    row = {
        "learning_rate": lr,
        "seed": seed,
        "epochs": epochs,
        "processor_seconds": spent,
        "validation": errors["val"][kind],
        "test": errors["test"][kind],
    }
    print(part, optimizer, json.dumps(rounded(row)), flush=True)
    known.write_text(json.dumps(row))
    return row


def compared(part: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Each optimiser with its best rate and all seeds."""
    found: dict[str, Any] = {}
    budget = 0.0
    for optimizer, rates in RATES.items():
        pilot = [run(part, optimizer, rates[1], SEEDS[0], few, folder) for few in (1, 3)]
        an_epoch = (pilot[1]["processor_seconds"] - pilot[0]["processor_seconds"]) / 2
        if optimizer == "adamw":
            budget = epochs * an_epoch
        own = max(1, round(budget / an_epoch))
        grid = [run(part, optimizer, lr, SEEDS[0], own, folder) for lr in rates]
        best = min(grid, key=lambda row: row["validation"])
        seeds = [best] + [
            run(part, optimizer, best["learning_rate"], seed, own, folder) for seed in SEEDS[1:]
        ]
        found[optimizer] = {
            "learning_rate": best["learning_rate"],
            "epochs": own,
            "processor_seconds_per_epoch": an_epoch,
            "validation": [row["validation"] for row in seeds],
            "test": [row["test"] for row in seeds],
            "mean_test": statistics.mean(row["test"] for row in seeds),
            "grid": [
                {name: row[name] for name in ("learning_rate", "validation", "test")}
                for row in grid
            ],
        }
    return found


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(SCORES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int, default=8, help="of AdamW")
    options = parser.parse_args()
    data_path("matbench_phonons")  # the preset names it by the environment variable
    torch.set_num_threads(1)
    content = read_result("optimizers")
    for part in [options.only] if options.only else SCORES:
        with tempfile.TemporaryDirectory() as scratch:
            found = compared(part, options.epochs, options.folder or Path(scratch))
        content[part] = rounded(found) | {"machine": machine("torch", threads=1)}
        if options.write:
            write_result("optimizers", content)
        for name, row in found.items():
            print(f"{part} {name}: test {row['mean_test']:.4g}, epochs {row['epochs']}")


if __name__ == "__main__":
    main()
