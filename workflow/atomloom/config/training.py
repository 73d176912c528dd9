"""The `training` section: optimisation, precision, batching, devices."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from atomloom.config.base import MOST, MOST_SEED, Section, keyed_when_set, renamed, unkeyed
from atomloom.config.model import Symbol


class Batching(Section):
    """Bounds of a batch; the first one reached closes it. A structure that exceeds one by itself runs
    alone."""

    structures: int = Field(default=64, ge=1, le=MOST)
    """Max structures per batch; for PaiNN, TensorNet and NequIP 8 unless given."""
    atoms: int | None = Field(default=None, ge=1, le=MOST)
    """Max atoms per batch."""
    edges: int | None = Field(default=None, ge=1, le=10**12)
    """Max edges per batch."""
    triplets: int | None = Field(default=None, ge=1, le=10**12)
    """Max triplets per batch."""
    atom_pairs: int | None = keyed_when_set(None, ge=1, le=10**12)
    """Max sum of the squares of numbers of atoms per batch, with which the memory of dense attention grows; for
    the crystal transformer a million unless given."""


class LoaderOptions(Section):
    """Placement of graphs during training."""

    mode: Literal["auto", "memory", "disk"] = "auto"
    """`auto`: in memory if they take less than the budget, else on disk, one window of shards at a time.
    The choice and its reason are in the log and in the run card."""
    memory_gb: float | None = Field(default=None, ge=1e-6, le=1e6)
    """Memory in GB that graphs may take in each process; by default half of the free memory. On disk, rows are
    shuffled within windows of somewhat less than half of it."""


class PotentialTraining(Section):
    """Training of potentials on energies, forces and stress. Errors are measured in units of the energy
    scale, so that weights mean the same for every data set."""

    energy_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the energy loss."""
    forces_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the loss of force components, where `dataset.target` includes forces."""
    stress_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the loss of stress times volume per atom, where `dataset.target` includes stress."""
    energy_loss: Literal["per_atom", "per_structure"] = "per_atom"
    """Energy errors are taken per atom, or of whole structures."""
    reference_energies: (
        Literal["fit", "isolated_atoms", "none"]
        | dict[Symbol, Annotated[float, Field(ge=-1e7, le=1e7)]]
    ) = "fit"
    """Energies of single atoms in eV by element, subtracted before learning and added back: `fit`
    takes those that fit the training energies best (least squares). `isolated_atoms` takes those of the frames that
    are a single atom without neighbours, which are then not trained on; elements without one are fitted."""
    energy_scale: (
        Literal["auto", "forces", "energy", "range"] | Annotated[float, Field(ge=1e-6, le=1e6)]
    ) = "auto"
    """Energy scale in eV, which counts as 1 for the network: the root mean square of force components (`forces`),
    the standard deviation of energies per atom (`energy`), half their range (`range`, with the middle
    as zero, as aenet has it), or a number. `auto`: `forces` if they are learnt, else `energy`."""
    force_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training structures whose forces and stress are used; the others contribute only their
    energies, which costs far less where features are cached (Chebyshev)."""
    force_resample_every: int | None = renamed("force_every", 1, ge=1, le=MOST)
    """Epochs after which the structures of `force_fraction` are drawn again; null: never."""
    force_min_structures: int = renamed("force_least", 1, ge=1, le=MOST)
    """Min number of structures drawn."""
    sampling: Literal["uniform", "energy", "error"] = "uniform"
    """Sampling of structures in an epoch: each once; in proportion to exp(-E/T), where E is the energy
    per atom above the lowest; or in proportion to the error of the energy per atom when last seen."""
    sampling_temperature: float = Field(default=0.1, ge=1e-4, le=1e6)
    """T of `sampling: energy`, in eV/atom."""
    cache_features: Literal["auto", True, False] = unkeyed("auto")
    """Chebyshev: compute the descriptors of structures whose forces are not used only once, and keep them.
    `auto`: if they take less than a quarter of the free memory."""


CLASS_LOSSES = ("bce", "cross_entropy")
"""Losses of classes; all others are of numbers."""


class Training(Section):
    """The training run."""

    epochs: int = Field(default=100, ge=1, le=1_000_000)
    """Passes over the training set."""
    stop_after: int | None = keyed_when_set(None, ge=1, le=1_000_000)
    """Epoch after which the run ends, though the schedule is that of `epochs`; null: the last."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the initial weights and of the order of batches."""
    batch: Batching = Batching()
    """Bounds of one batch."""
    loss: Literal["mse", "mae", "huber", "bce", "cross_entropy", "rmse"] = "mse"
    """Loss on standardised targets; unknown targets do not count. `bce`, binary cross entropy, is for
    targets that are classes, 0 or 1; predictions are then probabilities of 1. `cross_entropy` is for
    one target that is the index of a class, 0, 1, 2, ...; predictions are then the most likely class
    and the probabilities of all. `rmse`, for potentials, adds the root mean square errors of a batch, as
    aenet does."""
    huber_delta: float = Field(default=1.0, ge=1e-6, le=1e6)
    """For `huber`: where the loss turns from quadratic to linear, in standard deviations."""
    loss_weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = keyed_when_set({})
    """Weight of each target's loss, by name; by default 1. Those of energy, forces and stress are in
    `potential`."""
    log_targets: list[str] = Field(default=[])
    """Targets learnt as their natural logarithm; all their values must be positive."""
    loader: LoaderOptions = LoaderOptions()
    """Placement of graphs."""
    potential: PotentialTraining = PotentialTraining()
    """Energies, forces and stress."""
    optimizer: Literal["adamw", "sgd", "lbfgs"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019), SGD with Nesterov momentum 0.9, or L-BFGS: 20 second-order
    steps per epoch on the whole training set, which is held in memory. L-BFGS is for small potentials;
    learning rate, weight decay and scheduler are not used then."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-5, ge=0, le=10)
    """Decoupled weight decay; norms and biases are exempt."""
    scheduler: Literal["onecycle", "cosine", "plateau", "multistep", "constant"] = "onecycle"
    """Schedule of the learning rate, step by step; the final value is kept."""
    warmup: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps in which the rate rises (one-cycle and cosine)."""
    cycle_momentum: bool = True
    """One-cycle: lower AdamW's first beta (SGD's momentum) from 0.95 to 0.85 while the rate rises, and
    back (Smith, 2018), as PyTorch's scheduler does."""
    plateau_patience: int = Field(default=10, ge=0, le=MOST)
    """Plateau: epochs without a lower validation error before the rate falls."""
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    """Plateau: factor by which the rate is then multiplied; multistep: at each of the `milestones`."""
    milestones: list[Annotated[int, Field(ge=1, le=1_000_000)]] = keyed_when_set([])
    """Multistep: epochs after which the rate falls, in increasing order."""
    clip_norm: float | None = Field(default=None, ge=1e-6, le=1e6)
    """Max norm of the gradient; larger ones are clipped."""
    accumulate: int = Field(default=1, ge=1, le=MOST)
    """Batches whose gradients are accumulated for one optimiser step: the same step as with one large batch,
    except for batch norms, which see the small ones."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then evaluated."""
    early_stopping: int | None = Field(default=None, ge=1, le=MOST)
    """Stop when the validation error has not fallen for this many epochs."""
    precision: Literal["64", "32", "tf32", "bf16-mixed", "fp16-mixed"] = "32"
    """Precision of the training step. Weights, graphs and losses stay in 32 bits (64 for 64)."""
    compile: bool = unkeyed(False)
    """Use torch.compile; falls back with a warning where that fails, and reports graph breaks. Potentials
    whose forces are learnt run without: a compiled model cannot be differentiated twice."""
    cuda_graphs: Literal["auto", True, False] = unkeyed("auto")
    """On a GPU, record forward and backward as CUDA graphs for a few batch sizes and replay them, which
    saves launching some thousand kernels per step; batches are padded to these sizes with structures that
    do not count. `auto`: if the first recorded step is faster. Not with several processes, `accumulate`,
    `fp16-mixed`, `lbfgs`, `force_fraction` or `sampling: error`."""
    gradient_checkpointing: bool = unkeyed(False)
    """Keep only the inputs of layers and recompute the rest in the backward pass: the same numbers with
    less memory and more time. For ComFormers and ALIGNN; not together with `compile`."""
    device: Literal["auto", "cpu", "cuda"] = unkeyed("auto")
    """Device to train on; `auto` takes CUDA if there is a GPU, and stops where PyTorch cannot use it: say
    `cpu` there."""
    devices: int = Field(default=1, ge=1, le=64)
    """Processes that share every batch, on as many GPUs, or on the threads of the CPU. The step is that
    of the whole batch, except for batch norms, which see one process's part: hence it is in the key."""
    nodes: int = keyed_when_set(1, ge=1, le=1024)
    """Nodes with `devices` processes each, started by `srun` or `torchrun`."""
    strategy: Literal["auto", "ddp", "fsdp"] = unkeyed("auto")
    """Strategy by which several processes share the work. `ddp` (and `auto`): each has the whole network. `fsdp`: each
    keeps its part of weights, gradients and optimiser state, and gathers weights only while a
    batch passes; the same numbers to rounding. Not with `compile`, mixed precision in
    16 bits, or forces and stress."""
    threads: int | None = unkeyed(None, ge=1, le=1024)
    """CPU threads of the training job; by default all that the workflow was given."""
    prefetch: int | None = unkeyed(None, ge=0, le=1000)
    """Batches that a background thread prepares ahead; 0 for none. By default the loader measures
    whether a thread pays."""
    checkpoint_minutes: float = unkeyed(5.0, gt=0, le=100_000)
    """Max time between saved states for resuming; at ends of epochs they are saved as often as that costs
    no more than some 2 % of the time."""
    keep_every: int | None = unkeyed(None, ge=1, le=MOST)
    """Epochs between model files to keep, `checkpoints/epoch-0010.safetensors`, with the weights
    that were validated; null: none. The best (`model.safetensors`) and the last
    (`checkpoints/last.safetensors`) are always kept."""
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = unkeyed([])
    """Loggers of the history besides `history.csv`, which is always written. `tensorboard`: event files
    in the run's folder `tensorboard/`. `mlflow`, `wandb`: configured by their own environment variables,
    if these packages are installed."""

    continue_from: str | None = unkeyed(None, min_length=1)
    """Run to train on, up to `epochs` in all: its folder, or its short name or key among the runs of the same
    results. Nothing else may differ but `early_stopping`, `devices` and `nodes`, and what is in no key. The
    result is that of having trained all epochs at once; with other `devices` or `nodes` to rounding, except
    for batch norms. More epochs than that run was to have need `scheduler: constant` or `plateau`, whose rates do
    not depend on their number (or `lbfgs`). A run that is not finished is continued with other `devices` or
    `nodes` only; with the same ones it resumes by itself. The last state of that run is in the key."""
    start_from: str | None = unkeyed(None, min_length=1)
    """Model whose weights a new training starts from: a model file, the folder, short name or key of a finished run
    in the same `paths.results`, or a published potential (`sevennet-0`, ...). The section `model`, if it is left out,
    is that model's, and otherwise must be equal; so are keys of `graph` that are not given. Outputs of other targets
    start anew, and the log says which. Its weights and scales are in the key, its name is not."""
    freeze: list[str] = keyed_when_set([])
    """With `start_from`: parts of the network that are not trained, by the names of their parameters or how these
    begin, such as `embedding` or `interactions.0`, or by patterns (`*.weight`). Batch norms in them keep
    their statistics."""
    learning_rates: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = keyed_when_set({})
    """Factors of the learning rate of parts of the network, named as in `freeze`; the first that fits
    counts."""

    @field_validator("precision", mode="before")
    @classmethod
    def _bits_by_number(cls, value: object) -> object:
        return str(int(value)) if isinstance(value, (int, float)) and value in (32, 64) else value

    @field_validator("log_targets", "loggers", "freeze", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def last_epoch(self) -> int:
        """Epoch after which the run ends, unless it is stopped early."""
        return min(self.stop_after or self.epochs, self.epochs)

    @property
    def processes(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.nodes

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.loss in CLASS_LOSSES

    @model_validator(mode="after")
    def _options_go_together(self) -> Training:
        if (self.scheduler == "multistep") != bool(self.milestones):
            raise ValueError("scheduler: multistep and `milestones` go together")
        if any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError("milestones are epochs in increasing order")
        if self.classes and self.log_targets:
            raise ValueError(f"log_targets and loss: {self.loss} exclude each other")
        if self.strategy == "fsdp" and self.processes == 1:
            raise ValueError("strategy: fsdp shards weights over several devices; there is 1")
        if self.strategy == "fsdp" and (self.compile or self.precision == "fp16-mixed"):
            raise ValueError("strategy: fsdp works neither with compile nor with fp16-mixed")
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing exclude each other: "
                "the compiler decides by itself what to recompute"
            )
        if self.potential.sampling == "error" and self.processes > 1:
            raise ValueError("potential.sampling: error works on one device")
        if self.optimizer == "lbfgs" and self.potential.sampling != "uniform":
            raise ValueError(
                "optimizer: lbfgs takes every structure once: potential.sampling uniform"
            )
        if self.optimizer == "lbfgs":
            mixed = self.precision not in ("64", "32")
            drawn = (
                self.potential.force_fraction < 1.0
                and self.potential.force_resample_every is not None
            )
            if mixed or self.accumulate > 1 or self.processes > 1 or self.clip_norm is not None:
                raise ValueError(
                    "optimizer: lbfgs takes the whole training set in precision 32 or 64, on one "
                    "device, without accumulate and clip_norm"
                )
            if drawn or self.loss == "rmse":
                raise ValueError(
                    "optimizer: lbfgs needs one smooth loss: potential.force_resample_every null where "
                    "force_fraction is below 1, and another loss than rmse"
                )
        if self.freeze and self.start_from is None:
            raise ValueError("freeze is for start_from: a new network has nothing to keep")
        if self.start_from is not None and self.potential.energy_scale != "auto":
            raise ValueError(
                "start_from: the energy scale is that model's, so leave energy_scale out"
            )
        if self.learning_rates and self.optimizer == "lbfgs":
            raise ValueError("optimizer: lbfgs has no learning rates")
        if self.loss == "rmse" and (self.accumulate > 1 or self.processes > 1):
            raise ValueError("loss: rmse needs one whole batch: accumulate and devices must be 1")
        return self
