"""atomloom: atomic structures to neighbour graphs, graphs to models.

The names below are the public interface; each is imported when it is first used, so that
`import atomloom` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

from atomloom import former

__version__ = "0.1.0"

_PLACES = {
    "AtomloomCalculator": "atomloom.potentials.calculator",
    "AtomloomError": "atomloom.errors",
    "Graph": "atomloom.graphs.graph",
    "GraphSpec": "atomloom.config",
    "GraphStore": "atomloom.graphs.store",
    "Structure": "atomloom.structures.structure",
    "build_graph": "atomloom.graphs.build",
    "load_config": "atomloom.config",
    "load_model": "atomloom.inference.predict",
    "load_stack": "atomloom.inference.stack",
    "read": "atomloom.readers",
    "structure_hash": "atomloom.structures",
    "train": "atomloom.api",
}

former.install()

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'atomloom' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
