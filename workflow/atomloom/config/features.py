"""The `features` section: numbers that are computed for each structure and given to the model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from atomloom.config.base import Options, Section, unkeyed
from atomloom.config.foundation import teacher_file
from atomloom.config.teacher import Calculator
from atomloom.errors import AtomloomError
from atomloom.store.files import file_digest
from atomloom.store.keys import FEATURES

SourceName = Literal["composition", "gamma_frequencies", "embedding"]
OPTIONS: dict[str, tuple[str, ...]] = {
    "composition": (),
    "gamma_frequencies": (
        *("calculator", "options", "model"),
        *("displacement", "supercell", "supercell_max_atoms"),
    ),
    "embedding": ("model", "options"),
}
"""Source -> the keys that it takes. A new source is named here, and above."""
OF_A_MODEL = "atomloom"
"""Calculator that is a trained potential."""


class Feature(Section):
    """Source of numbers that are computed for each structure. They are kept in the store by structure and
    source, and computed once."""

    source: SourceName
    """`composition`: statistics of elemental properties. `gamma_frequencies`: statistics of the vibrational
    frequencies by finite displacements, with a calculator. `embedding`: mean over the atoms
    of the features of a trained network after its last layer."""
    calculator: str = Field(default=OF_A_MODEL, min_length=1)
    """For `gamma_frequencies`: as `teacher.calculator`; `atomloom`, a trained potential, by default."""
    options: Options = {}
    """Keyword arguments of the calculator; for a potential `device`, `dtype`, `trust`; for `embedding` `device` and
    `trust`."""
    model: str | None = unkeyed(None)
    """Model file of the potential or network, or the name of a published one such as `sevennet-l3i5`. Its content, not its
    name, is in the key."""
    displacement: float = Field(default=0.02, ge=1e-4, le=0.5)
    """For `gamma_frequencies`: displacement of atoms in A, in both directions."""
    supercell: tuple[int, int, int] = (2, 2, 2)
    """For `gamma_frequencies`: how often a small cell is repeated along its periodic vectors, so that frequencies
    of the zone boundary are among those of the spectrum."""
    supercell_max_atoms: int = Field(default=3, ge=0, le=1000)
    """For `gamma_frequencies`: max number of atoms of a cell that is repeated; 0: none is."""

    @field_validator("supercell")
    @classmethod
    def _repeats(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(1 <= count <= 10 for count in value):
            raise ValueError("supercell is three numbers from 1 to 10")
        return value

    @model_validator(mode="after")
    def _takes_what_is_set(self) -> Feature:
        taken = OPTIONS[self.source]
        for name, field in type(self).model_fields.items():
            # A config in which every default is written out has keys of other sources, too.
            if name not in ("source", *taken) and getattr(self, name) != field.get_default():
                raise ValueError(
                    f"source {self.source} does not take {name}: it takes "
                    f"{', '.join(taken) or 'no other key'}"
                )
        if "model" in taken and self.of_a_model and not self.model:
            raise ValueError(
                f"source {self.source} needs `model`: a model file, or a name such as sevennet-l3i5"
            )
        return self

    @property
    def of_a_model(self) -> bool:
        """Whether the source asks a trained potential."""
        return "model" in OPTIONS[self.source] and self.calculator == OF_A_MODEL

    @property
    def teacher(self) -> Calculator:
        """Calculator of the source."""
        return Calculator(calculator=self.calculator, options=self.options, model=self.model)

    def key_content(self) -> dict[str, Any]:
        """Everything that determines the numbers, besides the structure and the content of the model file."""
        taken = {"source", *OPTIONS[self.source]}
        return {name: value for name, value in super().key_content().items() if name in taken}


def feature_spec(name: str, feature: Feature) -> dict[str, Any]:
    """Everything that determines the numbers of a feature, besides the structure.

    Raises:
        AtomloomError: when its model file is missing.
    """
    spec = {**feature.key_content(), "version": FEATURES[feature.source]}
    return spec | content_of(feature.teacher, f"features.{name}.model")


def content_of(teacher: Calculator, where: str) -> dict[str, str]:
    """Digest of the file of a calculator's weights, if it has one.

    Raises:
        AtomloomError: when it is missing.
    """
    path = teacher_file(teacher)
    if path is None:
        return {}
    if not path.exists():
        raise AtomloomError("no model file here", where=path, todo=f"see {where}")
    return {"model": _digest(path, path.stat().st_size, path.stat().st_mtime_ns)}


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, time_stamp: int) -> str:
    """Digest of a file, computed once as long as it is not written to."""
    return file_digest(path)


def named_features(value: Any) -> Any:
    """Section `features` as a mapping; given may be a list of sources, or the name of a source in place of a
    mapping with no other key."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        if len(set(value)) < len(value):
            raise ValueError("names a source twice: give a mapping with names for them")
        value = {name: {"source": name} for name in value}
    if not isinstance(value, dict):
        return value
    return {name: _section(name, one) for name, one in value.items()}


def _section(name: Any, value: Any) -> Any:
    """Content of one feature; the source may be left out where its name is that of a source."""
    if isinstance(value, str):
        return {"source": value}
    content = {} if value is None else value
    if isinstance(content, dict) and "source" not in content and name in get_args(SourceName):
        return {"source": name, **content}
    return content
