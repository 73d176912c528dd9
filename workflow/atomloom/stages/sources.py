"""Current state of the raw files: names and content digests, kept in `sources.json`.

The workflow compares time stamps, but users touch, move and copy files. So the plan does not depend
on the raw files themselves but on this list, which is rewritten only when a file's content, name
or position in the order changed. It is refreshed whenever the workflow is parsed, at the cost of one
stat call per file, many at a time; only files with a new time stamp are read again. A source that is
downloaded (`jarvis:dft_3d`) is fetched by the plan, never while the workflow is parsed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atomloom.config import expand_variables
from atomloom.config.root import told_where_data_are
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.readers.downloads import Download, is_download
from atomloom.readers.sources import list_files
from atomloom.store.files import overlapped, plain_stat, read_json, stat_and_digest, write_json

HASHED_UP_TO = 64 << 20
"""Max bytes of a file identified by its content; a larger one is identified by size and time stamp,
which is cheaper. Touching such a file repeats the plan, which finds the same records."""


def refresh_sources(layout: Layout, fetch: Callable[[str], None] | None = None) -> Path:
    """Bring `sources.json` up to date and return its path.

    Args:
        layout: paths of the project.
        fetch: log function; if given, missing downloads are fetched. Otherwise such a file is listed
            without a digest, so that the plan is requested.

    Raises:
        AtomloomError: when a source is missing, holds no file or cannot be downloaded.
    """
    manifest, cache = layout.plan_folder / "sources.json", layout.plan_folder / ".seen.json"
    content, seen = current_sources(layout, fetch)
    if kept_sources(layout) != content:
        write_json(manifest, content)
    if seen != _known(cache):
        write_json(cache, seen)
    return manifest


def current_sources(
    layout: Layout, fetch: Callable[[str], None] | None = None
) -> tuple[dict[str, list[list[Any]]], dict[str, list[Any]]]:
    """Content that `sources.json` should have, and size, time stamp and digest of each file; nothing is written.

    Arguments and errors as of `refresh_sources`.
    """
    known = _known(layout.plan_folder / ".seen.json")
    downloads = {str(item.path): item for item in downloads_of(layout)}
    if fetch is not None:
        for item in downloads.values():
            item.fetch(fetch)
    try:
        paths = [str(path) for path in source_files(layout)]
        tables = [str(path) for path in table_files(layout)]
    except AtomloomError as error:
        raise told_where_data_are(error, layout.config) from None
    local = [path for path in paths if path not in downloads]
    looked = overlapped(lambda path: _look(path, known.get(path)), local)
    seen = dict(zip(local, looked, strict=True))
    seen |= {path: _look(path, known.get(path)) for path in tables}
    digests = {path: row[2] for path, row in seen.items()}
    digests |= {path: item.digest() for path, item in downloads.items()}
    content = {
        "files": [[path, digests[path]] for path in paths],
        "tables": [[path, digests[path]] for path in tables],
    }
    return content, seen


def kept_sources(layout: Layout) -> Any:
    """Content of `sources.json` as it is; None where it is missing or damaged."""
    return _kept(layout.plan_folder / "sources.json")


def _kept(path: Path) -> Any:
    """Content of a file that is rewritten if it is missing or damaged; None in that case."""
    try:
        return read_json(path)
    except AtomloomError:
        return None


def _known(cache: Path) -> dict[str, list[Any]]:
    """Cached size, time stamp and digest of each file."""
    kept = _kept(cache)
    rows = kept.items() if isinstance(kept, dict) else ()
    return {path: row for path, row in rows if isinstance(row, list) and len(row) == 3}


def downloads_of(layout: Layout) -> list[Download]:
    """Sources that are downloaded."""
    sources = map(expand_variables, layout.config.dataset.source)
    return [Download(source, layout.downloads) for source in sources if is_download(source)]


def source_files(layout: Layout) -> list[Path]:
    """Raw files in the order of their records; downloads may still be missing."""
    dataset = layout.config.dataset
    given = None if dataset.format == "auto" else dataset.format
    tables = [path for path, member in _tables(layout) if not member]
    files: list[Path] = []
    for source in map(expand_variables, dataset.source):
        if is_download(source):
            files.append(Download(source, layout.downloads).path)
        else:
            found = list_files(source, dataset.pattern, given)
            if Path(source).is_dir():  # where tables may be next to the structures
                found = [path for path in found if not _is_table(path, tables)]
            files += found
    if not files:
        raise AtomloomError("no structure files found", where=", ".join(dataset.source))
    return files


def named_sources(layout: Layout) -> list[Path]:
    """Files and folders of records and tables by their names in the config, as far as they are here.

    Downloads are not among them: they are archives, of which the plan spools every record.
    """
    found = [path for path, _ in _tables(layout)]
    for source in map(expand_variables, layout.config.dataset.source):
        if not is_download(source):
            found += list_files(source) if Path(source).is_file() else [Path(source)]
    return [path for path in dict.fromkeys(found) if path.exists()]


def table_files(layout: Layout) -> list[Path]:
    """Files of labels and folds, if any (for `archive::member`, the archive)."""
    files = list(dict.fromkeys(path for path, _ in _tables(layout)))
    for file in files:
        if not file.exists():
            raise AtomloomError(
                "no such file", where=file, todo="check dataset.labels.file and split.folds_file"
            )
    return files


def label_members(layout: Layout) -> set[tuple[str, str]]:
    """Members of archives that are label tables: the archive's absolute path and the member's name."""
    tables = [(path, member.removeprefix("./")) for path, member in _tables(layout)]
    return {(os.path.abspath(path), member) for path, member in tables if member}


def _tables(layout: Layout) -> list[tuple[Path, str]]:
    """Files of labels and folds, each with its member if it is an archive, else an empty text."""
    names = [*(table.file for table in layout.config.dataset.label_tables)]
    names += layout.config.split.files
    parts = [expand_variables(str(name)).partition("::") for name in names]
    return [(Path(file), member) for file, _, member in parts]


def _is_table(path: Path, tables: list[Path]) -> bool:
    return any(
        path.name == table.name and table.exists() and os.path.samefile(path, table)
        for table in tables
    )


def _look(path: str, known: list[Any] | None) -> list[Any]:
    """[size, time stamp, digest] of a file, from the cache if size and time stamp have not changed."""
    try:
        if known:
            stat = plain_stat(path)
            if known[:2] == [stat.st_size, stat.st_mtime_ns]:
                return known
        stat, digest = stat_and_digest(path, HASHED_UP_TO)
        return [stat.st_size, stat.st_mtime_ns, digest or f"{stat.st_size}@{stat.st_mtime_ns}"]
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error.strerror}", where=path) from None
