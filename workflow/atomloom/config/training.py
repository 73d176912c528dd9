"""The `training` section: optimisation, precision, batching, devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from atomloom.config.base import MOST, MOST_SEED, Section, keyed_when_set, unkeyed
from atomloom.config.model import Symbol


class Batching(Section):
    """Bounds of a batch; the first that is reached closes it. A structure that alone exceeds one runs
    alone."""

    structures: int = Field(default=64, ge=1, le=MOST)
    """Most structures in a batch."""
    atoms: int | None = Field(default=None, ge=1, le=MOST)
    """Most atoms in a batch."""
    edges: int | None = Field(default=None, ge=1, le=10**12)
    """Most edges in a batch."""
    triplets: int | None = Field(default=None, ge=1, le=10**12)
    """Most triplets in a batch."""


class LoaderOptions(Section):
    """Where graphs are held while a model is trained."""

    mode: Literal["auto", "memory", "disk"] = "auto"
    """`auto`: in memory if they take less than the budget, else on disk, a window of shards at a time.
    What was chosen, and why, is in the log and in the run card."""
    memory_gb: float | None = Field(default=None, ge=1e-6, le=1e6)
    """Memory in GB that graphs may take in each process; half of what is free unless given. Out of core,
    orders mix within windows of somewhat less than half of it."""


class PotentialTraining(Section):
    """Training on energies, forces and stress, for models that are potentials. Errors are counted in
    units of the energy scale, so that weights mean the same for every data set."""

    energy_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the loss of energies."""
    forces_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the loss of force components, where `dataset.target` names forces."""
    stress_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the loss of stress times volume an atom, where `dataset.target` names stress."""
    energy_loss: Literal["per_atom", "per_structure"] = "per_atom"
    """Errors of energies are those an atom, or those of whole structures."""
    reference_energies: (
        Literal["fit", "none"] | dict[Symbol, Annotated[float, Field(ge=-1e7, le=1e7)]]
    ) = "fit"
    """Energies of single atoms in eV by element, subtracted before learning and added back: `fit`
    takes those that explain the training energies best (least squares)."""
    energy_scale: (
        Literal["auto", "forces", "energy", "range"] | Annotated[float, Field(ge=1e-6, le=1e6)]
    ) = "auto"
    """What counts as 1 for the network, in eV: the root mean square of force components (`forces`),
    the standard deviation of energies an atom (`energy`), half their range (`range`, with the middle
    as zero, as aenet has it), or a number. `auto`: `forces` if they are learnt, else `energy`."""
    force_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training structures whose forces and stress are used; the loss of the others is
    that of their energies, which costs far less where features are cached (Chebyshev)."""
    force_every: int | None = Field(default=1, ge=1, le=MOST)
    """Other structures are drawn for `force_fraction` every so many epochs; null: never."""
    force_least: int = Field(default=1, ge=1, le=MOST)
    """At least so many structures are drawn."""
    sampling: Literal["uniform", "energy", "error"] = "uniform"
    """How often structures come in an epoch: each once; in proportion to exp(-E/T), where E is the energy
    an atom above the lowest; or in proportion to the error of the energy an atom when last seen."""
    sampling_temperature: float = Field(default=0.1, ge=1e-4, le=1e6)
    """T of `sampling: energy`, in eV/atom."""
    cache_features: Literal["auto", True, False] = unkeyed("auto")
    """Chebyshev: compute the descriptors of structures whose forces are not used once, and keep them.
    `auto`: if they take less than a quarter of the free memory."""


class Training(Section):
    """The training run."""

    epochs: int = Field(default=100, ge=1, le=1_000_000)
    """Passes over the training set."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of initial weights and of the order of batches."""
    batch: Batching = Batching()
    """What goes into one optimiser step."""
    loss: Literal["mse", "mae", "huber", "bce", "cross_entropy", "rmse"] = "mse"
    """Loss on standardised targets; unknown targets count nothing. `bce`, binary cross entropy, is for
    targets that are classes, 0 or 1; predictions are then probabilities of 1. `cross_entropy` is for
    one target that is the number of a class, 0, 1, 2, ...; predictions are then the most likely class
    and the probabilities of all. `rmse`, for potentials, adds up root mean square errors of a batch, as
    aenet does."""
    huber_delta: float = Field(default=1.0, ge=1e-6, le=1e6)
    """For `huber`: where the loss turns from quadratic to linear, in standard deviations."""
    loss_weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = keyed_when_set({})
    """Weight of each target's loss, by name; 1 unless given. Those of energy, forces and stress are in
    `potential`."""
    log_targets: list[str] = Field(default=[])
    """Targets whose natural logarithm is learnt; all their values must be positive."""
    loader: LoaderOptions = LoaderOptions()
    """Where graphs are held."""
    potential: PotentialTraining = PotentialTraining()
    """Energies, forces and stress."""
    optimizer: Literal["adamw", "sgd", "lbfgs"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019), SGD with Nesterov momentum 0.9, or L-BFGS: 20 second-order
    steps an epoch on the whole training set, which is held in memory. That is for small potentials;
    learning rate, weight decay and scheduler are not used then."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-5, ge=0, le=10)
    """Decoupled weight decay; norms and biases are exempt."""
    scheduler: Literal["onecycle", "cosine", "plateau", "constant"] = "onecycle"
    """Course of the learning rate, a step at a time; it stays at its end when it reaches it."""
    warmup: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps in which the rate rises (one-cycle and cosine)."""
    cycle_momentum: bool = True
    """One-cycle: lower AdamW's first beta (SGD's momentum) from 0.95 to 0.85 while the rate rises, and
    back (Smith, 2018), as PyTorch's scheduler does."""
    plateau_patience: int = Field(default=10, ge=0, le=MOST)
    """Plateau: epochs without a lower validation error before the rate falls."""
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    """Plateau: what the rate is then multiplied by."""
    clip_norm: float | None = Field(default=None, ge=1e-6, le=1e6)
    """Clip the gradient's norm to this."""
    accumulate: int = Field(default=1, ge=1, le=MOST)
    """Batches whose gradients are added up to one optimiser step: the step of one batch as large, but
    for batch norms, which see the small ones."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated."""
    early_stopping: int | None = Field(default=None, ge=1, le=MOST)
    """Stop when the validation error has not fallen for this many epochs."""
    precision: Literal["64", "32", "tf32", "bf16-mixed", "fp16-mixed"] = "32"
    """Arithmetic of the training step. Weights, graphs and losses stay in 32 bits (64 for 64)."""
    compile: bool = unkeyed(False)
    """torch.compile the model; falls back, saying so, where that fails, and says where the compiled
    graph is broken. Potentials whose forces are learnt run without: what is compiled cannot be
    differentiated twice."""
    cuda_graphs: Literal["auto", True, False] = unkeyed("auto")
    """On a GPU, record forward and backward once for each of few sizes of batches and replay them, which
    spares launching some thousand kernels a step; batches are filled up to these sizes with what counts
    nothing. `auto`: if the first recorded step is faster. Neither with several processes, `accumulate`,
    `fp16-mixed`, `lbfgs`, `force_fraction` nor `sampling: error`."""
    gradient_checkpointing: bool = unkeyed(False)
    """Keep only the layers' inputs and compute the rest again on the way back: the same numbers for
    less memory and more time. For ComFormers and ALIGNN, and not together with `compile`."""
    device: Literal["auto", "cpu", "cuda"] = unkeyed("auto")
    """Where to train; `auto` takes CUDA if there is one."""
    devices: int = Field(default=1, ge=1, le=64)
    """Processes that share every batch, on as many GPUs, or on the threads of the CPU. The step is that
    of the whole batch, but for batch norms, which see a process's part: hence it is in the key."""
    strategy: Literal["auto", "ddp", "fsdp"] = unkeyed("auto")
    """How several processes share the work. `ddp` (and `auto`): each has the whole network. `fsdp`: each
    keeps its part of weights, gradients and optimiser's state, and puts weights together only while a
    batch passes; the same numbers to rounding. Not with `compile` and mixed precision in 16 bits."""
    threads: int | None = unkeyed(None, ge=1, le=1024)
    """CPU threads of the training job; all that the workflow was given unless set."""
    prefetch: int | None = unkeyed(None, ge=0, le=1000)
    """Batches that a background thread prepares ahead; 0 for none. Unless given, the loader measures
    whether it is worth a thread."""
    checkpoint_minutes: float = unkeyed(5.0, gt=0, le=100_000)
    """The state for resuming is saved at least this often, and at ends of epochs as often as it costs
    no more than some 2 % of the time."""
    keep_every: int | None = unkeyed(None, ge=1, le=MOST)
    """Keep a model file of every so many epochs, `checkpoints/epoch-0010.safetensors`, with the weights
    that were validated; null: none. The best (`model.safetensors`) and the last
    (`checkpoints/last.safetensors`) are always kept."""
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = unkeyed([])
    """Where else the history of epochs goes; `history.csv` is always written. `tensorboard`: event files
    in the run's folder `tensorboard/`. `mlflow`, `wandb`: as their own environment variables say, if
    these packages are installed."""

    @field_validator("precision", mode="before")
    @classmethod
    def _bits_by_number(cls, value: object) -> object:
        return str(int(value)) if isinstance(value, (int, float)) and value in (32, 64) else value

    @field_validator("log_targets", "loggers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.loss in ("bce", "cross_entropy")

    @model_validator(mode="after")
    def _options_go_together(self) -> Training:
        if self.classes and self.log_targets:
            raise ValueError(f"log_targets and loss: {self.loss} exclude each other")
        if self.strategy == "fsdp" and self.devices == 1:
            raise ValueError("strategy: fsdp shares weights out among several devices; there is 1")
        if self.strategy == "fsdp" and (self.compile or self.precision == "fp16-mixed"):
            raise ValueError("strategy: fsdp goes neither with compile nor with fp16-mixed")
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing exclude each other: "
                "the compiler decides by itself what to compute again"
            )
        if self.potential.sampling == "error" and self.devices > 1:
            raise ValueError("potential.sampling: error works on one device")
        if self.optimizer == "lbfgs" and self.potential.sampling != "uniform":
            raise ValueError(
                "optimizer: lbfgs takes every structure once: potential.sampling uniform"
            )
        if self.optimizer == "lbfgs":
            mixed = self.precision not in ("64", "32")
            drawn = self.potential.force_fraction < 1.0 and self.potential.force_every is not None
            if mixed or self.accumulate > 1 or self.devices > 1 or self.clip_norm is not None:
                raise ValueError(
                    "optimizer: lbfgs takes the whole training set in precision 32 or 64, on one "
                    "device, without accumulate and clip_norm"
                )
            if drawn or self.loss == "rmse":
                raise ValueError(
                    "optimizer: lbfgs needs one smooth loss: potential.force_every null where "
                    "force_fraction is below 1, and another loss than rmse"
                )
        if self.loss == "rmse" and (self.accumulate > 1 or self.devices > 1):
            raise ValueError("loss: rmse is of one whole batch: accumulate and devices must be 1")
        return self
