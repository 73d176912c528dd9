"""Dependencies between stages, and whether they are done: for calls by hand, without the workflow.

The workflow knows the same from inputs and outputs. Only the presence of files is checked, not their
content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths

NEEDS: dict[str, tuple[str, ...]] = {
    "convert": (),
    "label": ("convert",),
    "graphs": ("convert",),
    "index": ("convert", "graphs"),
    "split": ("convert", "label"),
    "train": ("index", "split"),
    "bench": ("index", "split"),
    "evaluate": ("index", "split", "train"),
    "report": ("evaluate",),
}
"""Stage -> stages whose files it reads; all of them need the plan."""


def require_earlier(places: RunPaths, stage: str, chunks: Sequence[str]) -> None:
    """Check that the files a stage reads have been made.

    Args:
        places: the paths of the run.
        stage: the stage that is about to run.
        chunks: keys of the chunks concerned.

    Raises:
        AtomloomError: when a file is missing; it names the command that comes first.
    """
    unknown = [key for key in chunks if key not in places.plan.chunk_keys]
    if unknown:
        raise AtomloomError(
            f"the plan has no chunk {unknown[0]}", where=places.layout.plan_folder / "plan.json"
        )
    earlier = _first_undone(places, stage, chunks)
    if earlier is not None:
        name, missing = earlier
        raise AtomloomError(
            f"`{stage}` needs what `{name}` makes",
            where=f"{missing[0]} is missing" + (f" ({len(missing)} files)" * (len(missing) > 1)),
            todo=f"run `atomloom {name}` with the same config first",
        )


def _first_undone(
    places: RunPaths, stage: str, chunks: Sequence[str]
) -> tuple[str, list[Path]] | None:
    for name in NEEDS[stage]:
        missing = [path for path in _outputs(places, name, chunks) if not path.exists()]
        if missing:
            return _first_undone(places, name, chunks) or (name, missing)
    return None


def _outputs(places: RunPaths, stage: str, chunks: Sequence[str]) -> list[Path]:
    """Files whose presence means that a stage is done."""
    layout = places.layout
    if stage == "label" and layout.config.teacher is None:
        return []
    if stage in ("convert", "label", "graphs"):
        of = {"convert": layout.structures, "label": layout.labels, "graphs": layout.graphs}[stage]
        return [of(key) for key in chunks]
    last = {
        "index": places.index / "index.json",
        "split": places.split / "split.json",
        "train": places.run / "model.safetensors",
        "evaluate": places.run / "metrics.json",
    }
    return [last[stage]]
