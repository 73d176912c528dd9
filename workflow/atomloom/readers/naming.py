"""Distinct names for records of files with equal names, by their folders.

A record is named after its file, which is short and what label tables use, unless two files of
different folders have the same name. Then each of them is named by its path below the folder that all
sources share, so that a label meant for one never reaches the other. Names given in the files
themselves are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from atomloom.readers.sources import record_id


def tell_apart(
    ids: Sequence[str], names: Sequence[str], sources: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Ids and file names of records, with the folder where other files have the same name.

    Args:
        ids: record ids.
        names: file names.
        sources: location of each record, `file` or `archive::member`.
    """
    first: dict[str, str] = {}
    clashing: set[str] = set()
    for id, source in zip(ids, sources, strict=True):
        other = first.setdefault(id, source)
        if other != source:
            clashing |= {source, other}
    new_ids, new_names = list(ids), list(names)
    if not clashing:
        return new_ids, new_names
    root = _common_folder(set(sources))
    for position, source in enumerate(sources):
        if source not in clashing:
            continue
        place = _place(source)
        stem = record_id(place)
        if not ids[position].startswith(stem):
            continue  # named in the file, not after it
        below = os.path.relpath(place, root)
        folder = os.path.dirname(below)
        if record_id(os.path.basename(place)) != stem:  # named after its folder, as POSCAR is
            folder = os.path.dirname(folder)
        new_ids[position] = os.path.join(folder, ids[position])
        new_names[position] = below
    return new_ids, new_names


def _common_folder(sources: Iterable[str]) -> str:
    return os.path.commonpath([os.path.dirname(_place(source)) for source in sources])


def _place(source: str) -> str:
    return os.path.abspath(source.replace("::", "/"))
