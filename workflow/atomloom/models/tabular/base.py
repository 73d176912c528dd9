"""TabularModel: a function of the global features of a structure, given by the arrays of a fit.

Arrays are of any length, so that a new model has none, and predicts only after `fill_in`. It knows nothing of
the program that fitted them.

Legend: B structures, G features, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from atomloom.config.model import TabularSection
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError

FLOAT, INDEX = torch.float64, torch.int32
"""Types of arrays."""


class TabularModel(nn.Module):
    """Base of tabular models.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure.
        global_features: numbers per structure in `batch.extras["globals"]`.

    Raises:
        AtomloomError: without global features.
    """

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]]
    """Type and number of dimensions of each array, by name."""

    def __init__(self, config: TabularSection, outputs: int, global_features: int = 0) -> None:
        super().__init__()
        if not global_features:
            raise AtomloomError(
                f"model {config.name} learns from global features, and there are none",
                where="dataset.global_features",
            )
        self.config, self.outputs, self.features = config, outputs, global_features
        for name, (dtype, dimensions) in self.ARRAYS.items():
            self.register_buffer(name, torch.zeros((0,) * dimensions, dtype=dtype))

    def fill_in(self, arrays: Mapping[str, Tensor]) -> None:
        """Take the arrays of a fit.

        Raises:
            ValueError: when they are not those of such a model.
        """
        if set(arrays) != set(self.ARRAYS):
            raise ValueError(f"arrays {', '.join(sorted(arrays))}, not {', '.join(self.ARRAYS)}")
        for name, (dtype, dimensions) in self.ARRAYS.items():
            array = arrays[name]
            if array.dtype != dtype or array.dim() != dimensions:
                raise ValueError(
                    f"{name} as {array.dtype} {list(array.shape)}, not {dtype} of {dimensions} dimensions"
                )
            self.register_buffer(name, array.contiguous())
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Prepare predictions; raise ValueError if the arrays contradict each other."""

    @abstractmethod
    def of_features(self, features: Tensor) -> Tensor:
        """[B, K] outputs for standardised features [B, G] in float64."""

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predictions [B, K]."""
        return self.of_features(batch.extras["globals"].double())


def require(holds: bool, what: str) -> None:
    """Raise ValueError unless a condition holds."""
    if not holds:
        raise ValueError(what)
