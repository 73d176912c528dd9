"""`atomloom export-run`: one archive of a run, for a paper's supplement or another machine.

It holds the card, the config, the model, all results, the report and the digests of what went in, with RO-Crate metadata.
Files are stored without compression, in a fixed order and with a fixed date: the same run gives the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from atomloom.commands.compare import missing_files, require_recorded
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.evidence import METADATA, Evidence, opened, sha256_of
from atomloom.pipeline.run_card import CARD, HISTORY
from atomloom.reports import ReportInputs, write_report
from atomloom.reports.formats import plural
from atomloom.store.files import read_json, write_atomically, write_json, write_text
from atomloom.store.parquet import read_table

Log = Callable[[str], None]

DATE = (1980, 1, 1, 0, 0, 0)
"""Date of all members, the earliest that a zip archive can hold."""
KINDS = {
    CARD: (
        "Run card: config, data by digest, code, environment, determinism, digests of results",
        "application/json",
    ),
    "config.yaml": ("Complete config, every default filled in", "application/yaml"),
    "inputs.json": ("Digests of raw files, records, labels and splits", "application/json"),
    "records.csv": ("Raw records: id, source, number and fingerprint", "text/csv"),
    "model.safetensors": ("Trained model, weights of the best epoch", "application/octet-stream"),
    "metrics.json": ("Errors of each target on each split", "application/json"),
    "metrics.csv": ("Errors of each target on each split", "text/csv"),
    "predictions.csv": ("Label and prediction of each structure", "text/csv"),
    "predictions.parquet": (
        "Label and prediction of each structure",
        "application/vnd.apache.parquet",
    ),
    HISTORY: ("Losses and errors, one row per epoch", "text/csv"),
    "parity.png": ("Predictions against labels", "image/png"),
    "report.html": ("Report", "text/html"),
    "student.json": ("Speed of the model and its agreement with its teacher", "application/json"),
    "index.json": ("Counts and statistics of the graphs", "application/json"),
    "quarantine.csv": ("Records that could not be used, with reasons", "text/csv"),
    "duplicates.csv": ("Structures that are also in a split nearer to the test", "text/csv"),
    "README.txt": ("How to use this archive", "text/plain"),
}
"""Member -> its content and media type."""
TABLES = ("Label and prediction of each number", "application/vnd.apache.parquet")
"""Content and media type of the tables of further targets."""


def export_run(name: str, output: Path | None, results: Path, log: Log) -> Path:
    """Pack a run as one archive.

    Args:
        name: the run's folder or card, or its short name or key.
        output: the archive, or a folder for `DATASET-KEY.zip`; by default the current one.
        results: folder in which names and keys are looked for.
        log: takes one line at a time.

    Raises:
        AtomloomError: when there is no such run, it has no model, its files are not those that the card records,
            or the archive cannot be written.
    """
    with opened(name, results) as run, tempfile.TemporaryDirectory(prefix="atomloom-") as temporary:
        if run.origin is None:
            raise AtomloomError("is not a run's folder", where=name, todo="give the folder")
        if run.file("model.safetensors") is None:
            raise AtomloomError("no model here: train it again", where=run.folder)
        require_recorded(run)
        if missing := missing_files(run):
            raise AtomloomError(
                f"without {', '.join(missing)}, which the card records",
                where=run.folder,
                todo=again("train" if HISTORY in missing else "evaluate"),
            )
        path = output or Path()
        if path.is_dir():
            path /= f"{_dataset_name(run)}-{run.key[:8]}.zip"
        folder = Path(temporary)
        for each in _files(run, log):
            shutil.copyfile(each, folder / each.name)
        _add_inputs(run, folder, log)
        config = yaml.safe_dump(dict(run.section("config")), sort_keys=False, allow_unicode=True)
        write_text(folder / "config.yaml", config)
        if run.metrics is None:
            log("the run was not evaluated: the archive holds neither errors nor predictions")
        else:
            write_report(_report_inputs(folder), folder / "report.html")
        present = {each.name for each in folder.iterdir()} | {"README.txt"}
        write_text(folder / "README.txt", "\n".join(_readme(run, present, path.name)) + "\n")
        write_json(folder / METADATA, _metadata(run, folder))
        write_atomically(path, partial(_pack, folder))
    return path


def _files(run: Evidence, log: Log) -> Iterator[Path]:
    """Files of a run that belong into an archive; states, other epochs and tables of others do not."""
    recorded = run.section("results")
    for path in sorted(run.folder.iterdir()):
        table = path.suffix == ".parquet"
        if not path.is_file() or not (table or path.name in KINDS):
            continue
        if table and recorded and path.name not in recorded:
            log(f"{path.name} is left out: the card does not record it")
            continue
        yield path


def _dataset_name(run: Evidence) -> str:
    return str(run.section("config", "dataset").get("name", "run"))


def _add_inputs(run: Evidence, folder: Path, log: Log) -> None:
    """Add what the project tells of the run's inputs, as far as it is there."""
    assert run.origin is not None
    keys, dataset = run.section("keys"), run.origin.parents[1]
    plan, split, index = (
        dataset / part / str(keys.get(key))
        for part, key in (("plan", "plan"), ("split", "dataset"), ("index", "index"))
    )
    inputs: dict[str, Any] = {"keys": dict(keys), **run.section("data")}
    if (plan / "sources.json").exists():
        inputs["sources"] = read_json(plan / "sources.json")
    if (split / "split.json").exists():
        inputs["split"] = read_json(split / "split.json")
    write_json(folder / "inputs.json", inputs)
    if (plan / "members.parquet").exists():
        members = read_table(
            plan / "members.parquet", ["id", "source", "number", "fingerprint"], todo=""
        )
        members["fingerprint"] = [value.hex() for value in members["fingerprint"]]
        members.to_csv(folder / "records.csv", index=False)
    else:
        log("the plan is not here any more: the archive lists no records")
    for path in (split / "quarantine.csv", split / "duplicates.csv", index / "index.json"):
        if path.exists():
            shutil.copyfile(path, folder / path.name)


def _report_inputs(folder: Path) -> ReportInputs:
    """Files in the archive from which its report is made, so that links lead to them."""
    quarantine, index, history = (
        path if (path := folder / name).exists() else None
        for name in ("quarantine.csv", "index.json", HISTORY)
    )
    return ReportInputs(
        run=folder / CARD,
        metrics=folder / "metrics.json",
        predictions=folder / "predictions.parquet",
        history=history,
        quarantine=quarantine,
        index=index,
    )


def _readme(run: Evidence, present: Set[str], archive: str) -> Iterator[str]:
    """Text for whoever has only the archive."""
    environment, code = run.section("environment"), run.section("code")
    threads = environment.get("threads", 0)
    version, commit = environment.get("atomloom", "unknown"), code.get("commit")
    dirty = ", with local changes (digest of the sources in run.json)" if code.get("dirty") else ""
    yield f"Run {run.key} on the data set {_dataset_name(run)}, by atomloom {version}."
    yield ""
    for path in [name for name in KINDS if name in present] + sorted(present - {*KINDS}):
        yield f"{path:24s} {_kind_of(path)[0]}"
    yield f"{METADATA:24s} RO-Crate 1.1 metadata with the SHA-256 of each file"
    yield ""
    yield "Raw data, graphs and states of the training are not in here."
    yield ""
    yield "Use the model"
    yield "  atomloom predict --model model.safetensors --source STRUCTURES --output table.parquet"
    yield ""
    yield "Make the run again"
    yield f"  needs atomloom {version}" + (f" at commit {commit}{dirty}" if commit else "")
    yield f"  on {environment.get('device', 'an unknown device')} with {plural(threads, 'thread')}"
    yield f"  ({run.section('determinism').get('promise', 'nothing is promised')})"
    count = run.section("data", "files").get("count", 0)
    yield f"  and the raw data, {plural(count, 'file')}, by digest in inputs.json:"
    for source in run.section("config", "dataset").get("source", []):
        yield f"    {source}"
    yield "  If they are elsewhere, write a here.yaml such as `dataset: {source: /where/they/are}`, then"
    yield f"  atomloom reproduce {archive} --config here.yaml"
    parent = run.section("parent").get("run")
    if parent:
        yield f"  It continues run {parent}, whose folder with its state/ is needed, too."
    if weights := run.section("start_from").get("weights"):
        named = run.section("config", "training").get("start_from")
        yield f"  It started from the model {named} (weights {weights}), which is needed, too."


def _pack(folder: Path, path: Path) -> None:
    """Write the archive of a folder's files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(folder.iterdir()):
            member = zipfile.ZipInfo(file.name, DATE)
            member.external_attr = 0o100644 << 16
            member.file_size = file.stat().st_size
            with open(file, "rb") as content, archive.open(member, "w") as copy:
                shutil.copyfileobj(content, copy, 1 << 20)


# --- RO-Crate 1.1 ---


def _metadata(run: Evidence, folder: Path) -> dict[str, Any]:
    """Metadata of the archive: its files, the software, and the training that made them."""
    files = [_file_entity(path) for path in sorted(folder.iterdir())]
    names = [{"@id": file["@id"]} for file in files]
    made = [{"@id": name} for name in ("model.safetensors", HISTORY) if (folder / name).exists()]
    environment, code = run.section("environment"), run.section("code")
    dataset, target = _dataset_name(run), run.card.get("target")
    targets = ", ".join(target) if isinstance(target, list) else str(target or "")
    model = run.section("model").get("name", "a model")
    data = run.section("data")
    graph: list[dict[str, Any]] = [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"{model} on {dataset}, run {run.key}",
            "description": f"A model that predicts {targets} from atomic structures, its errors and "
            "predictions, and what is needed to train it again.",
            "datePublished": str(run.card.get("finished", ""))[:10],
            "hasPart": names,
            "mentions": {"@id": "#training"},
        },
        {
            "@id": "#training",
            "@type": "CreateAction",
            "name": f"Training of run {run.key}",
            "startTime": run.card.get("started"),
            "endTime": run.card.get("finished"),
            "instrument": {"@id": "#atomloom"},
            "object": [{"@id": "#raw-data"}, {"@id": "config.yaml"}],
            "result": made,
        },
        {
            "@id": "#atomloom",
            "@type": "SoftwareApplication",
            "name": "atomloom",
            "softwareVersion": environment.get("atomloom"),
            "identifier": code.get("commit") or code.get("sources"),
        },
        {
            "@id": "#raw-data",
            "@type": "Dataset",
            "name": dataset,
            "description": "Raw structures and labels, not in this archive; digests in inputs.json",
            "identifier": data.get("members") or run.section("keys").get("dataset"),
        },
    ]
    return {
        "@context": [
            "https://w3id.org/ro/crate/1.1/context",
            {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"},
        ],
        "@graph": [_known(entity) for entity in graph] + files,
    }


def _known(entity: Mapping[str, Any]) -> dict[str, Any]:
    """Entity without properties of which nothing is known."""
    return {name: value for name, value in entity.items() if value not in (None, "")}


def _kind_of(name: str) -> tuple[str, str]:
    """Content and media type of a member; other tables than those named are of further targets."""
    return KINDS.get(name, TABLES)


def _file_entity(path: Path) -> dict[str, Any]:
    what, kind = _kind_of(path.name)
    return {
        "@id": path.name,
        "@type": "File",
        "name": what,
        "encodingFormat": kind,
        "contentSize": str(path.stat().st_size),
        "sha256": sha256_of(path),
    }
