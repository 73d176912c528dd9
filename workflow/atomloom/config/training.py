"""The `training` section: optimisation, precision, batching, devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from atomloom.config.base import Section, unkeyed


class Batching(Section):
    """Bounds of a batch; the first that is reached closes it."""

    structures: int = Field(default=64, ge=1)
    """Most structures in a batch."""
    atoms: int | None = Field(default=None, ge=1)
    """Most atoms in a batch."""
    edges: int | None = Field(default=None, ge=1)
    """Most edges in a batch."""


class Training(Section):
    """The training run."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training set."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights and of the order of batches."""
    batch: Batching = Batching()
    """What goes into one optimiser step."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    """Loss on standardised targets."""
    huber_delta: float = Field(default=1.0, gt=0)
    """For `huber`: where the loss turns from quadratic to linear, in standard deviations."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019) or SGD with momentum 0.9."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """Decoupled weight decay; norms and biases are exempt."""
    scheduler: Literal["onecycle", "cosine", "plateau", "constant"] = "onecycle"
    """Course of the learning rate, a step at a time; it stays at its end when it reaches it."""
    warmup: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps in which the rate rises (one-cycle and cosine)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Clip the gradient's norm to this."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up to one optimiser step."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop when the validation error has not fallen for this many epochs."""
    precision: Literal["64", "32", "tf32", "bf16-mixed", "fp16-mixed"] = "32"
    """Arithmetic of the training step. Weights, statistics and losses stay in 32 bits (64 for 64)."""
    compile: bool = unkeyed(False)
    """torch.compile the model; falls back, saying so, where that fails."""
    device: Literal["auto", "cpu", "cuda"] = unkeyed("auto")
    """Where to train; `auto` takes CUDA if there is one."""
    threads: int | None = unkeyed(None, ge=1)
    """CPU threads of the training job; all that the workflow was given unless set."""
    checkpoint_minutes: float = unkeyed(5.0, gt=0)
    """How often the state for resuming is saved, besides at every end of an epoch that is due."""
