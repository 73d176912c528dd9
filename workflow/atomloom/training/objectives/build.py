"""Choice of the objective by the config."""

from __future__ import annotations

import numpy as np

from atomloom.config.root import Config
from atomloom.data.dataset import LabelledGraphs
from atomloom.training.objectives.base import Objective
from atomloom.training.objectives.potential import PotentialObjective
from atomloom.training.objectives.property import PropertyObjective


def build_objective(
    data: LabelledGraphs, config: Config, train_rows: np.ndarray, val_rows: np.ndarray
) -> Objective:
    """Build the objective of the config's targets; errors as of its class."""
    energies = any(spec.of_energy for spec in config.targets)
    objective = PotentialObjective if energies else PropertyObjective
    return objective(data, config, train_rows, val_rows)
