"""Command `predict`: from structures to a table, by trained models alone and in bounded memory.

Records are read, checked and evaluated a chunk at a time; each chunk's tables are written next to the
output when it is done, and joined at the end. A killed call resumes after the last complete chunk when
it is repeated, and writes the same files. Records that cannot be predicted are listed, with reasons, in
a CSV.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from atomloom import __version__
from atomloom.config.dataset import Checks
from atomloom.config.graph import GraphSpec
from atomloom.config.training import Batching
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.inference.model_file import ModelCard
from atomloom.inference.predict import LoadedModel, load_model, predict_all, unfit
from atomloom.inference.stack import Stack, is_stack, load_stack
from atomloom.models.registry import require_elements, require_sizes
from atomloom.potentials.committee import Committee
from atomloom.potentials.evaluation import evaluate_table, structure_table
from atomloom.readers.naming import tell_apart
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import (
    RawRecord,
    enumerate_records,
    list_files,
    source_name,
)
from atomloom.store.files import file_digest, write_atomically, write_spec, write_text
from atomloom.store.keys import BUILDER, CONVERTER, short_hash
from atomloom.store.parquet import read_arrow, write_table
from atomloom.structures.checks import check_structure
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure
from atomloom.targets import TargetSpec

GRAPH_ATOMS = 50_000
"""Max number of atoms whose graphs are in memory at a time; a structure with more is alone."""
ATOMS = [
    ("row", pa.int64()),
    ("atom", pa.int32()),
    ("element", pa.dictionary(pa.int8(), pa.string())),
]
"""First columns of a table of values per atom: `row` counts the rows of the table of structures."""
FORCES = ("force_x", "force_y", "force_z")
REFUSED = pa.schema(
    [
        (n, pa.int64() if n == "record" else pa.string())
        for n in ("id", "source", "record", "reason")
    ]
)
_CALLED = (
    (re.compile(r"the option `(\w+): ([^`]+)`"), r"--option \1=\2"),
    (re.compile(r"the option `?(\w+)`?"), r"--option \1"),
    (re.compile(r"dataset\.options"), "--option"),
    (re.compile(r"dataset\.labels\.id_column"), "--id-column"),
    (re.compile(r"dataset\.labels(\.file)?"), "--labels"),
    (re.compile(r"dataset\.(source|format|pattern|target)"), r"--\1"),
)
"""Advice of readers by config key -> how the option is given here."""
IDENTITY = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("record", pa.int64()),
    ("n_atoms", pa.int32()),
]
"""First columns of the table: `record` is the number within the source file."""


@dataclass(frozen=True)
class Prediction:
    """Request for predictions: sources, models, output."""

    models: tuple[Path, ...]
    """Model files; several of one kind give mean and standard deviation."""
    sources: tuple[str, ...]
    """Files, folders or archives with structures."""
    output: Path
    """The table, a parquet file; `NAME.quarantine.csv` and tables of values per atom, such as
    `NAME.forces.parquet`, are next to it."""
    bounds: Batching
    """Max structures, atoms and edges per batch."""
    forces: bool = False
    """Whether to write forces, for potentials."""
    chunk: int = 1000
    """Number of records per chunk."""
    device: str = "auto"
    format: str = "auto"
    """Format of the records, or `auto`."""
    pattern: str | None = None
    """Glob that files in folders and archives must match."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the readers."""
    trust: tuple[str, ...] = ()
    """Modules or packages that a model file may name for its network."""

    def beside(self, ending: str) -> Path:
        """Path of a file that belongs to the output."""
        return self.output.with_name(f"{self.output.stem}.{ending}")

    @cached_property
    def files(self) -> list[Path]:
        """All files of the sources."""
        return [f for s in self.sources for f in list_files(s, self.pattern, self.format)]

    def content(self) -> dict[str, Any]:
        """Everything the tables depend on that is known without reading the sources."""
        stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return {
            "models": [file_digest(path) for path in self.models],
            "sources": [[str(p), *s] for p, s in zip(self.files, stamps, strict=True)],
            "forces": self.forces,
            "chunk": self.chunk,
            "bounds": self.bounds.key_content(),
            "format": self.format,
            "options": dict(self.options),
            "versions": [__version__, CONVERTER, BUILDER],
        }


def predict_files(request: Prediction, log: Callable[[str], None]) -> Path:
    """Write the table, or resume writing it; return its path.

    Raises:
        AtomloomError: when a model or source cannot be read, models do not fit together, forces of a
            property model are requested, or not one record could be predicted.
    """
    try:
        return _predict_files(request, log)
    except AtomloomError as error:
        where, what, todo = map(as_called, (error.where, error.what, error.todo))
        raise AtomloomError(what, where=where, todo=todo) from None


def _predict_files(request: Prediction, log: Callable[[str], None]) -> Path:
    if request.output.suffix != ".parquet":
        raise AtomloomError("the output is a parquet file: give a name that ends in .parquet",
                            where=request.output)  # fmt: skip
    for path in request.models:
        if not path.exists():
            raise AtomloomError("no model here", where=path)
    if not request.files:
        raise AtomloomError("no file that a reader recognises", where=", ".join(request.sources))
    content = request.content()
    key = short_hash(content)
    if _key_of(request.output) == key:
        log(f"{request.output} exists already")
        return request.output
    predictor = _predictor(request)
    parts = _Parts(request, content, key, predictor.atoms)
    done, guessed, unseen = 0, 0, set[str]()
    for number, records in enumerate(_chunks(request, parts, predictor.checks)):
        if not parts.has(number):
            assert records is not None  # read, since they are not done
            tables = _predict_chunk(request, predictor, records)
            parts.write(number, tables)
            guessed += sum(map(bool, tables.unseen))
            unseen.update(*tables.unseen)
        done += parts.rows(number)
        log(f"chunk {number + 1}: {done:,} structures predicted")
    if not parts.count:
        raise AtomloomError("no structure found", where=", ".join(request.sources))
    predicted, refused, first = parts.join(predictor.schema)
    log(f"{predicted:,} structures predicted, {refused:,} in quarantine: {request.output}")
    if guessed:
        log(
            f"warning: {guessed:,} of the structures hold elements that the model has not seen in "
            f"training ({', '.join(sorted(unseen))}): their predictions are guesses"
        )
    if not predicted:
        raise AtomloomError(
            f"not one of {refused} records could be predicted (first: {first})",
            where=request.beside("quarantine.csv"),
        )
    return request.output


def as_called(text: str) -> str:
    """Message of readers and stages, with options as given on the command line."""
    for words, here in _CALLED:
        text = words.sub(here, text)
    return text


# --- models of both kinds ---


class _PotentialPredictor:
    """Predictor of energies and forces, by a potential or a committee."""

    def __init__(self, models: Sequence[LoadedModel], forces: bool, device: str) -> None:
        self.committee = Committee.open(list(models), device)
        self.forces = forces
        self.checks = _strictest([model.card.checks for model in models])
        self.spec: GraphSpec = self.committee.graph
        self.endings = ["", "_std"] if len(models) > 1 else [""]
        names = ["energy", "energy_per_atom"] + ["energy_std"] * (len(models) > 1)
        names += _of_structures(models[0].card, self.endings)
        self.schema = pa.schema([*IDENTITY, *((name, pa.float64()) for name in names)])

        self.atoms = _of_atoms(models[0].card, self.endings)
        if forces:
            self.atoms["forces"] = FORCES

    def require_element(self, number: int) -> None:
        self.committee.require_elements(np.array([number]))

    def require_size(self, atoms: int) -> None:
        """Accept any number of atoms, as potentials do."""

    def unseen(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Elements not seen in training: empty, since such structures are refused."""
        return ()

    def features(self, structures: Sequence[Structure]) -> tuple[None, dict[int, str]]:
        """No features: potentials take none."""
        return None, {}

    def predict(self, table: GraphTable, bounds: Batching, features: None) -> _Found:
        found = evaluate_table(self.committee, table, forces=self.forces, bounds=bounds)
        columns = {
            "energy": found.energy,
            "energy_per_atom": found.energy / np.diff(table.node_ptr),
        }
        if found.deviation is not None:
            columns["energy_std"] = found.deviation.energy
        answers = [found.heads] if found.deviation is None else [found.heads, found.deviation.heads]
        atoms = _sorted(self.committee.members[0].card, self.endings, answers, columns)
        if found.forces is not None:
            atoms["forces"] = dict(zip(FORCES, found.forces.T, strict=True))
        return columns, atoms


class _PropertyPredictor:
    """Predictor of targets, by one or several property models."""

    def __init__(self, models: Sequence[LoadedModel], device: str) -> None:
        self.models, self.device = models, device
        first = models[0].card
        for model in models:
            own = model.card
            if (own.graph, own.columns, own.direct) != (first.graph, first.columns, first.direct):
                raise AtomloomError(
                    "the models need different graphs or predict different targets",
                    where="--model",
                )
        self.spec = first.graph
        self.checks = _strictest([model.card.checks for model in models])
        for model in models:
            if model.card.features != first.features:
                raise AtomloomError("the models need different features", where="--model")
        if first.told:
            raise AtomloomError(
                f"{models[0].card.model.name} must be told {_some(first.told)} of each structure",
                where="--model",
                todo="use atomloom.load_model(...).predict(structures, global_features=...)",
            )
        self.endings = ["", "_std"] if len(models) > 1 else [""]
        names = [f"{name}{ending}" for name in first.columns for ending in self.endings]
        names += _of_structures(first, self.endings)
        if len(set(names)) < len(names):
            raise AtomloomError(
                "a target has the name of another one's standard deviation",
                where="--model",
                todo="predict by one model at a time",
            )
        self.schema = pa.schema([*IDENTITY, *((name, pa.float64()) for name in names)])
        self.atoms = _of_atoms(first, self.endings)

    def require_element(self, number: int) -> None:
        for model in self.models:
            require_elements(model.model, np.array([number]))

    def require_size(self, atoms: int) -> None:
        for model in self.models:
            require_sizes(model.model, np.array([atoms]))

    def unseen(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Elements on which some model was not trained."""
        return tuple({symbol for model in self.models for symbol in model.card.unseen(numbers)})

    def features(
        self, structures: Sequence[Structure]
    ) -> tuple[np.ndarray | None, Mapping[int, str]]:
        """[S, G] derived features, None without any, and the reasons of structures that lack some."""
        given = self.models[0].card.global_features
        if given is None or not structures:
            return None, {}
        found = self.models[0].features.compute(structure_table(structures))
        return np.stack([found.columns[name] for name in given.names], axis=1), found.reasons

    def predict(self, table: GraphTable, bounds: Batching, features: np.ndarray | None) -> _Found:
        said = [
            predict_all(m, table, None, bounds, self.device, global_features=features)
            for m in self.models
        ]
        found = np.stack([one.scalars for one in said])
        columns = {}
        for place, name in enumerate(self.models[0].card.columns):
            columns[name] = found[:, :, place].mean(axis=0)
            if len(self.models) > 1:
                columns[f"{name}_std"] = found[:, :, place].std(axis=0, ddof=1)
        heads = {name: np.stack([one.heads[name] for one in said]) for name in said[0].heads}
        answers = [{name: values.mean(axis=0) for name, values in heads.items()}]
        if len(self.models) > 1:
            answers.append({name: values.std(axis=0, ddof=1) for name, values in heads.items()})
        return columns, _sorted(self.models[0].card, self.endings, answers, columns)


class _StackPredictor:
    """Predictor of targets by a stack, with error bars. Its members have graphs of their own."""

    def __init__(self, stack: Stack, device: str) -> None:
        self.stack, self.device, self.atoms = stack, device, dict[str, tuple[str, ...]]()
        told = sorted({name for member in stack.members for name in member.card.told})
        if told:
            raise AtomloomError(
                f"the stack must be told {_some(told)} of each structure",
                where="--model",
                todo="use atomloom.load_stack(...).predict(structures, global_features=...)",
            )
        self.spec = GraphSpec(neighbors="none")
        self.checks = _strictest([member.card.checks for member in stack.members])
        names = [f"{name}{ending}" for name in stack.targets for ending in ("", "_std")]
        self.schema = pa.schema([*IDENTITY, *((name, pa.float64()) for name in names)])

    def require_element(self, number: int) -> None:
        for member in self.stack.members:
            require_elements(member.model, np.array([number]))

    def require_size(self, atoms: int) -> None:
        for member in self.stack.members:
            require_sizes(member.model, np.array([atoms]))

    def unseen(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Elements on which some member was not trained."""
        return tuple({symbol for m in self.stack.members for symbol in m.card.unseen(numbers)})

    def features(self, structures: Sequence[Structure]) -> tuple[None, dict[int, str]]:
        """No features: members that take some compute them with their predictions."""
        return None, {}

    def predict(self, table: GraphTable, bounds: Batching, features: None) -> _Found:
        atoms = [table[row] for row in range(len(table))]
        structures = [Structure(one.numbers, one.positions, one.cell, one.pbc) for one in atoms]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # unseen elements are told of at the end
            found, bars = self.stack.predict_with_errors(structures, bounds, self.device)
        columns = dict(zip(self.stack.targets, found.T, strict=True))
        own = {f"{n}_std": bar for n, bar in zip(self.stack.targets, bars.T, strict=True)}
        return {**columns, **own}, {}


_Predictor = _PotentialPredictor | _PropertyPredictor | _StackPredictor
_Found = tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]
"""Columns of the table of structures, and of the tables of values per atom."""


def _some(names: Sequence[str]) -> str:
    """Names in words, of many the first ones."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _names(spec: TargetSpec, ending: str) -> list[str]:
    """Columns of a target: its own name, or one per component, `dipole_x`."""
    parts = [f"_{part}" for part in spec.components] or [""]
    return [f"{spec.name}{part}{ending}" for part in parts]


def _of_structures(card: ModelCard, endings: Sequence[str]) -> list[str]:
    """Columns of targets per structure with heads."""
    specs = [spec for spec in card.direct if spec.per == "structure"]
    return [name for spec in specs for ending in endings for name in _names(spec, ending)]


def _of_atoms(card: ModelCard, endings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Columns of the tables of values per atom, by target."""
    return {
        spec.name: tuple(name for ending in endings for name in _names(spec, ending))
        for spec in card.direct
        if spec.per == "atom"
    }


def _sorted(
    card: ModelCard,
    endings: Sequence[str],
    answers: Sequence[Mapping[str, np.ndarray]],
    columns: dict[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Put values of heads per structure into `columns`; return those per atom.

    Args:
        card: of a model.
        endings: of the columns of each of `answers`.
        answers: predictions by name of the target, and perhaps their deviations.
        columns: of the table of structures.
    """
    atoms: dict[str, dict[str, np.ndarray]] = {}
    for spec in card.direct:
        own = columns if spec.per == "structure" else atoms.setdefault(spec.name, {})
        for ending, answer in zip(endings, answers, strict=True):
            values = answer[spec.name]
            names = _names(spec, ending)
            own.update(zip(names, values.reshape(len(values), -1).T, strict=True))
    return atoms


def _strictest(checks: Sequence[Checks]) -> Checks:
    """Strictest of the checks that the structures of all models passed."""
    return Checks(
        min_distance=max(c.min_distance for c in checks),
        max_volume_per_atom=min(c.max_volume_per_atom for c in checks),
    )


def _predictor(request: Prediction) -> _Predictor:
    if len(request.models) == 1 and is_stack(request.models[0]):
        if request.forces:
            raise AtomloomError("a stack has no forces", where="--forces", todo="leave it out")
        return _StackPredictor(load_stack(request.models[0], request.trust), request.device)
    models = [load_model(path, request.trust) for path in request.models]
    if all(model.card.is_potential for model in models):
        return _PotentialPredictor(models, request.forces, request.device)
    if request.forces:
        raise AtomloomError("a property model has no forces", where="--forces", todo="leave it out")
    return _PropertyPredictor(models, request.device)


# --- a chunk ---


@dataclass(frozen=True, eq=False)
class _Read:
    """Parsed records of a chunk."""

    structures: list[Structure]
    records: list[RawRecord]
    refused: list[tuple[RawRecord, str]]


@dataclass(frozen=True, eq=False)
class _Tables:
    """Results of a chunk."""

    predictions: pa.Table
    atoms: dict[str, pa.Table]
    """Tables of values per atom, by target."""
    refused: pa.Table
    unseen: list[tuple[str, ...]]
    """Elements of each predicted structure on which the model was not trained."""


def _chunks(request: Prediction, parts: _Parts, checks: Checks) -> Iterator[_Read | None]:
    """Iterate over chunks, reading the next one meanwhile; None for those that are done."""
    records = enumerate_records(request.files, request.format, request.options, request.pattern)

    def read(number: int) -> tuple[bool, _Read | None]:
        own = list(islice(records, request.chunk))
        if parts.has(number):
            return bool(own), None
        return bool(own), _parse(own, request.options, checks)

    with ThreadPoolExecutor(1, thread_name_prefix="atomloom-reader") as reader:
        number = 0
        coming = reader.submit(read, number)
        while True:
            some, chunk = coming.result()
            if not some:
                return
            number += 1
            coming = reader.submit(read, number)
            yield chunk


def _parse(records: Sequence[RawRecord], options: Mapping[str, Any], checks: Checks) -> _Read:
    found = _Read([], [], [])
    for record in records:
        try:
            structure = parse_record(record.format, record.payload, record.id, options)
            check_structure(structure, checks)
        except AtomloomError as error:
            found.refused.append((record, as_called(str(error))))
            continue
        found.structures.append(structure)
        found.records.append(record)
    return found


def _predict_chunk(request: Prediction, predictor: _Predictor, read: _Read) -> _Tables:
    refused = {id(record): reason for record, reason in read.refused}
    unknown: dict[int, str] = {}
    kept: list[int] = []
    for place, structure in enumerate(read.structures):
        reason = unfit(predictor.spec, structure) or _not_covered(predictor, structure, unknown)
        if reason:
            refused[id(read.records[place])] = reason
        else:
            kept.append(place)
    features, without = predictor.features([read.structures[place] for place in kept])
    refused |= {id(read.records[kept[row]]): reason for row, reason in without.items()}
    row_of = {place: row for row, place in enumerate(kept) if row not in without}
    kept = list(row_of)
    columns: list[dict[str, np.ndarray]] = []
    of_atoms: list[dict[str, dict[str, np.ndarray]]] = []
    rows: list[int] = []
    for block in _blocks(read.structures, kept):
        own = None if features is None else features[[row_of[place] for place in block]]
        good, bad, found = _predict_block(request, predictor, read.structures, block, own)
        refused |= {id(read.records[place]): reason for place, reason in bad}
        if good:
            rows += good
            columns.append(found[0])
            of_atoms.append(found[1])
    atoms = np.array([len(read.structures[place]) for place in rows], dtype=np.int32)
    values = {
        name: np.concatenate([part[name] for part in columns]) if columns else np.zeros(0)
        for name in predictor.schema.names[len(IDENTITY) :]
    }
    records = [read.records[place] for place in rows]
    return _Tables(
        pa.table({**_identity(request, records), "n_atoms": atoms, **values}, predictor.schema),
        {
            name: _atom_table(read.structures, rows, names, [part[name] for part in of_atoms])
            for name, names in predictor.atoms.items()
        },
        _refused_table(request, [*read.records, *(record for record, _ in read.refused)], refused),
        [predictor.unseen(read.structures[place].numbers) for place in rows],
    )


def _reason(error: AtomloomError) -> str:
    """Reason a model or its graphs give for a structure, without its name, which the table knows better,
    and without keys of the config the model was trained with."""
    return error.what if "`" in error.todo or not error.todo else f"{error.what}; {error.todo}"


def _not_covered(predictor: _Predictor, structure: Structure, known: dict[int, str]) -> str:
    """Reason why the models do not cover a structure's elements or size; empty if they do."""
    try:
        predictor.require_size(len(structure))
    except AtomloomError as error:
        return _reason(error)
    for number in set(structure.numbers.tolist()):
        if number not in known:
            try:
                predictor.require_element(number)
                known[number] = ""
            except AtomloomError as error:
                known[number] = _reason(error)
        if known[number]:
            return known[number]
    return ""


def _blocks(structures: Sequence[Structure], places: Sequence[int]) -> Iterator[list[int]]:
    """Iterate over runs of structures of at most GRAPH_ATOMS atoms."""
    block: list[int] = []
    atoms = 0
    for place in places:
        if block and atoms + len(structures[place]) > GRAPH_ATOMS:
            yield block
            block, atoms = [], 0
        block.append(place)
        atoms += len(structures[place])
    if block:
        yield block


def _predict_block(
    request: Prediction,
    predictor: _Predictor,
    structures: Sequence[Structure],
    block: list[int],
    features: np.ndarray | None,
) -> tuple[list[int], list[tuple[int, str]], Any]:
    """Predict a block: indices predicted, indices refused with reasons, and predictions of the first."""

    def predict(rows: Sequence[int]) -> Any:
        table = structure_table([structures[block[row]] for row in rows])
        own: Any = None if features is None else features[rows]
        return predictor.predict(build_graphs(table, predictor.spec), request.bounds, own)

    every = list(range(len(block)))
    try:
        return block, [], predict(every)
    except AtomloomError:
        pass  # at least one cannot be predicted: find it by trying one by one
    good, bad = [], []
    for row in every:
        try:
            predict([row])
            good.append(row)
        except AtomloomError as error:
            bad.append((block[row], _reason(error)))
    return [block[row] for row in good], bad, predict(good) if good else None


def _identity(
    request: Prediction, records: Sequence[RawRecord]
) -> dict[str, list[str] | list[int]]:
    return {
        "id": [record.id for record in records],
        "source": [source_name(request.files[r.file], r.member) for r in records],
        "record": [record.number for record in records],
    }


def _atom_schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([*ATOMS, *((name, pa.float64()) for name in names)])


def _atom_table(
    structures: Sequence[Structure],
    rows: Sequence[int],
    names: Sequence[str],
    parts: Sequence[Mapping[str, np.ndarray]],
) -> pa.Table:
    """Table of values per atom, one row each; `row` counts the predicted structures of the chunk."""
    counts = [len(structures[place]) for place in rows]
    numbers = [structures[place].numbers for place in rows]
    values = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0)
        for name in names
    }
    elements = np.concatenate(numbers) if numbers else np.zeros(0, np.uint8)
    return pa.table(
        {
            "row": np.repeat(np.arange(len(counts)), counts),
            "atom": np.concatenate(
                [np.arange(n, dtype=np.int32) for n in counts] or [np.zeros(0, np.int32)]
            ),
            "element": pa.DictionaryArray.from_arrays(elements.astype(np.int8), list(SYMBOLS)),
            **values,
        },
        _atom_schema(names),
    )


def _refused_table(
    request: Prediction, records: Sequence[RawRecord], reasons: Mapping[int, str]
) -> pa.Table:
    own = sorted((r for r in records if id(r) in reasons), key=lambda r: (r.file, r.number))
    reason = [" ".join(reasons[id(record)].split()) for record in own]
    return pa.table({**_identity(request, own), "reason": reason}, REFUSED)


# --- files ---


class _Parts:
    """Tables of the chunks that are done, in a folder next to the output."""

    def __init__(
        self,
        request: Prediction,
        content: Mapping[str, Any],
        key: str,
        atoms: Mapping[str, Sequence[str]],
    ) -> None:
        """Args:
        request: for predictions.
        content: everything the tables depend on.
        key: digest of that.
        atoms: columns of the tables of values per atom, by target.
        """
        self.request, self.key, self.atoms = request, key, atoms
        self.folder = request.output.with_name(f".{request.output.stem}.{key}.parts")
        self.count = 0
        self._told_apart: dict[tuple[str, str], str] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_spec(self.folder, content)

    def has(self, number: int) -> bool:
        """Whether a chunk is done, and its tables are intact."""
        try:
            for name in ("predictions", "refused", *self.atoms):  # the first is written last
                self._read(name, number)
        except AtomloomError:
            return False
        return True

    def write(self, number: int, tables: _Tables) -> None:
        """Write the tables of a chunk."""
        self._write(number, "refused", tables.refused)
        for name, table in tables.atoms.items():
            self._write(number, name, table)
        self._write(number, "predictions", tables.predictions)

    def rows(self, number: int) -> int:
        """Number of structures predicted in a chunk, which is added to those to join."""
        self.count = max(self.count, number + 1)
        return self._read("predictions", number).num_rows

    def join(self, schema: pa.Schema) -> tuple[int, int, str]:
        """Write the output; returns numbers of structures predicted and refused, and the first reason for
        a refusal."""
        request = self.request
        self._told_apart = self._tell_apart()
        refused = [self._table("refused", n) for n in range(self.count)]
        quarantine = pa.concat_tables(refused).to_pandas()
        write_text(request.beside("quarantine.csv"), quarantine.to_csv(index=False))
        for name, columns in self.atoms.items():
            write_atomically(
                request.beside(f"{name}.parquet"),
                partial(self._join, name, schema=_atom_schema(columns)),
            )
        # The table comes last: if it exists with its key, everything does.
        schema = schema.with_metadata({"atomloom": json.dumps({"key": self.key})})
        write_atomically(request.output, lambda path: self._join("predictions", path, schema))
        shutil.rmtree(self.folder)
        first = ""
        if len(quarantine):
            first = f"{quarantine['id'][0]}, {quarantine['reason'][0]}"
        return pq.read_metadata(request.output).num_rows, len(quarantine), first

    def _tell_apart(self) -> dict[tuple[str, str], str]:
        """Distinct ids of records of several files with the same name, by id and source."""
        columns = ["id", "source"]
        parts = [
            self._read(name, number).select(columns)
            for name in ("predictions", "refused")
            for number in range(self.count)
        ]
        records = pa.concat_tables(parts).group_by(columns, use_threads=False).aggregate([])
        if pc.count_distinct(records["id"]).as_py() == records.num_rows:
            return {}
        ids, sources = (records[name].to_pylist() for name in columns)
        told_apart, _ = tell_apart(ids, ids, sources)
        pairs = zip(ids, sources, told_apart, strict=True)
        return {(id, source): new for id, source, new in pairs if new != id}

    def _table(self, name: str, number: int) -> pa.Table:
        """Read a table of a chunk, with ids that distinguish its records from those of other files."""
        table = self._read(name, number)
        if name in self.atoms or not self._told_apart:
            return table
        pairs = zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True)
        ids = [self._told_apart.get(pair, pair[0]) for pair in pairs]
        return table.set_column(0, "id", pa.array(ids, pa.string()))

    def _join(self, name: str, path: Path, schema: pa.Schema) -> None:
        first = 0
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for number in range(self.count):
                table = self._table(name, number)
                if name in self.atoms:
                    rows = pa.array(table["row"].to_numpy() + first)
                    table = table.set_column(0, "row", rows)
                    first += self._read("predictions", number).num_rows
                writer.write_table(table.cast(schema))

    def _write(self, number: int, name: str, table: pa.Table) -> None:
        write_table(self._path(number, name), table)

    def _read(self, name: str, number: int) -> pa.Table:
        todo = f"remove {self.folder} and predict again"
        return read_arrow(self._path(number, name), todo=todo)

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:08d}.{name}.parquet"


def _key_of(path: Path) -> str | None:
    """Key of a finished table; None without one."""
    if not path.exists():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return json.loads(metadata.get(b"atomloom", b"{}")).get("key")
