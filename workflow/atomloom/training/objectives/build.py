"""Choice of the objective by the config."""

from __future__ import annotations

import numpy as np

from atomloom.config.root import Config
from atomloom.data.dataset import LabelledGraphs
from atomloom.training.inherited import Inherited
from atomloom.training.objectives.base import Objective
from atomloom.training.objectives.potential import PotentialObjective
from atomloom.training.objectives.property import PropertyObjective


def build_objective(
    data: LabelledGraphs,
    config: Config,
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    inherited: Inherited | None = None,
) -> Objective:
    """Build the objective of the config's targets; errors as of its class.

    Args:
        data: graphs and targets.
        config: the whole config.
        train_rows: rows to train on.
        val_rows: rows to validate on, by all processes together.
        inherited: scales of the model that the training starts from.
    """
    energies = any(spec.of_energy for spec in config.targets)
    objective = PotentialObjective if energies else PropertyObjective
    return objective(data, config, train_rows, val_rows, inherited)
