"""Public data sets that are downloaded once: `jarvis:NAME` and `mp:QUERY` as sources.

A download is one file in a folder given by the caller, put there in one step, alongside
`<name>.origin.json` with its origin, date and digest, so that later runs know it without a network
and without hashing it again. Its content is the readers' business. Libraries that know addresses
are imported only when something is fetched.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from atomloom.errors import AtomloomError
from atomloom.store.files import file_digest, read_json, write_atomically, write_json
from atomloom.store.keys import short_hash

KINDS = ("jarvis", "mp")
ORIGIN_SUFFIX = ".origin.json"

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20
_IDS_A_REQUEST = 200
_MP_ID = re.compile(r"(mp|mvc)-\w+")


def is_download(source: str) -> bool:
    """Whether a source of the config is a download rather than a path."""
    return source.partition(":")[0] in KINDS and not os.path.exists(source)


@dataclass(frozen=True)
class Download:
    """Source that is downloaded, and where it is kept."""

    source: str
    """Name in the config, such as `jarvis:dft_3d`."""
    folder: Path
    """Folder of all downloads."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        kind, _, rest = self.source.partition(":")
        if kind == "jarvis":
            return self.folder / kind / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', rest)}.json.zip"
        return self.folder / kind / f"{short_hash(self.source)}.json.gz"

    @property
    def origin(self) -> Path:
        """Path of the record of origin, date and digest."""
        return self.path.with_name(self.path.name + ORIGIN_SUFFIX)

    def digest(self) -> str:
        """Digest of the file as downloaded, whether it still exists or not; empty before the download."""
        return _recorded_digest(self.origin) if self.origin.exists() else ""

    def fetch(self, log: Callable[[str], None]) -> Path:
        """Download the file if it is missing; return its path.

        A file that was put there by hand is used as it is.

        Raises:
            AtomloomError: when there is no such data set, network, key or disk space.
        """
        about: dict[str, str] = {}
        if not self.path.exists():
            log(f"{self.source}: downloading to {self.path}")
            kind, _, rest = self.source.partition(":")
            get = _get_jarvis if kind == "jarvis" else _get_materials_project
            about = get(self, rest)
        elif self.origin.exists():
            return self.path
        size = self.path.stat().st_size
        content = {
            "source": self.source,
            **about,
            "bytes": size,
            "digest": file_digest(self.path),
            "date": time.strftime("%Y-%m-%d"),
        }
        write_json(self.origin, content)
        log(f"{self.source}: {size / 1e6:.1f} MB")
        return self.path


def damaged_downloads(folder: Path) -> Iterator[Path]:
    """Files below a folder of downloads whose content is no longer what was downloaded."""
    for origin in sorted(folder.rglob(f"*{ORIGIN_SUFFIX}")):
        path = origin.with_name(origin.name.removesuffix(ORIGIN_SUFFIX))
        try:
            if path.exists() and file_digest(path) != _recorded_digest(origin):
                yield path
        except AtomloomError:
            yield origin  # without it, the file is used as it is


def _recorded_digest(origin: Path) -> str:
    return str(read_json(origin, "digest", todo="remove it: it is written again")["digest"])


# --- JARVIS ---------------------------------------------------------------------------------------


def _get_jarvis(download: Download, name: str) -> dict[str, str]:
    """Fetch a data set in jarvis-tools' list from figshare, as the published zip."""
    from jarvis.db.figshare import get_db_info

    known = get_db_info()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise AtomloomError(
            "JARVIS has no data set of this name",
            where=download.source,
            todo=f"did you mean {' or '.join(close)}?"
            if close
            else f"known are: {', '.join(known)}",
        )
    url, member, _, reference = known[name]
    write_atomically(download.path, lambda path: _stream(download, url, path, member))
    return {"url": url, "member": member, "reference": " ".join(reference.split())}


def _stream(download: Download, url: str, path: Path, member: str) -> None:
    import requests

    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code != 200:
                _refuse(download, f"{url} answers {response.status_code} {response.reason}", url)
            with open(path, "wb") as file:
                for block in response.iter_content(_BLOCK):
                    file.write(block)
            wanted = int(response.headers.get("content-length", 0))
    except requests.RequestException as error:
        _refuse(download, f"no connection to {url} ({type(error).__name__})", url)
    size = path.stat().st_size
    if size < wanted or not zipfile.is_zipfile(path):
        _refuse(download, f"{url} broke off after {size:,} bytes, or is not a zip", url)
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            _refuse(download, f"{url} has no {member}", url)


def _refuse(download: Download, why: str, what: str) -> NoReturn:
    raise AtomloomError(
        f"cannot be downloaded: {why}",
        where=download.source,
        todo=f"run `atomloom plan` where there is a network, or put {what} at {download.path} yourself",
    )


# --- Materials Project ----------------------------------------------------------------------------


def _get_materials_project(download: Download, query: str) -> dict[str, str]:
    """Fetch summaries (structures and scalar properties) by pymatgen's client, as a JSON list."""
    from pymatgen.core import SETTINGS
    from pymatgen.ext.matproj import MPRester, MPRestError

    key = os.environ.get("MP_API_KEY") or SETTINGS.get("PMG_MAPI_KEY", "")
    if not key:
        raise AtomloomError(
            "the Materials Project needs an API key",
            where=download.source,
            todo="export MP_API_KEY=... (materialsproject.org/api gives one)",
        )
    found: list[dict[str, Any]] = []
    try:
        with MPRester(key) as client:
            for criteria in _criteria(download, query):
                sub_url = "materials/summary/?_all_fields=True"
                found += client.request(sub_url, payload=criteria, mp_decode=False)
    except (ValueError, MPRestError) as error:
        reason = " ".join(str(error).split())[:200]
        _refuse(download, f"the Materials Project says: {reason}", "a JSON list of summaries (.gz)")
    found.sort(key=lambda entry: str(entry.get("material_id")))
    if _is_list_of_ids(query):
        missing = set(query.split(",")) - {str(entry.get("material_id")) for entry in found}
        if missing:
            raise AtomloomError(
                f"the Materials Project has no {', '.join(sorted(missing)[:10])}",
                where=download.source,
            )
    if not found:
        raise AtomloomError("no material matches", where=download.source)
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    payload = gzip.compress(text.encode(), mtime=0)
    write_atomically(download.path, lambda path: path.write_bytes(payload))
    return {"url": "https://api.materialsproject.org/materials/summary/", "query": query}


def _criteria(download: Download, query: str) -> Iterator[dict[str, str]]:
    """Filters of each request: `mp-149,mp-13` are ids, `chemsys=Si-O&is_stable=true` filters."""
    if _is_list_of_ids(query):
        ids = query.split(",")
        for first in range(0, len(ids), _IDS_A_REQUEST):
            yield {"material_ids": ",".join(ids[first : first + _IDS_A_REQUEST])}
        return
    pairs = [part.partition("=") for part in query.split("&")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise AtomloomError(
            "neither ids nor filters",
            where=download.source,
            todo="write `mp:mp-149,mp-13`, or `mp:chemsys=Si-O&is_stable=true`",
        )
    yield {name: value for name, _, value in pairs}


def _is_list_of_ids(query: str) -> bool:
    return all(_MP_ID.fullmatch(part) for part in query.split(","))
