"""The objective of a run, as its config says."""

from __future__ import annotations

import numpy as np

from atomloom.config import Config
from atomloom.data.dataset import LabelledGraphs
from atomloom.training.objectives.base import Objective, PropertyObjective
from atomloom.training.objectives.potential import PotentialObjective


def build_objective(
    data: LabelledGraphs, config: Config, train_rows: np.ndarray, val_rows: np.ndarray
) -> Objective:
    """The objective of the config's model and targets; errors as of its class."""
    kind = PotentialObjective if config.model.kind == "potential" else PropertyObjective
    return kind(data, config, train_rows, val_rows)
