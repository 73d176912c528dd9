"""Export of a trained model as a torch program, which runs without atomloom.

The program takes the concatenated arrays of neighbour graphs, with any number of structures, atoms and
edges. That of a potential returns energies, forces and stress in real units: its derivative is traced
with it. That of a property model returns the output of its network; the card in the file holds the scale. Two kinds
of file (`.pt2`): a torch.export program, which runs wherever torch does, and a library that
AOTInductor compiled for this kind of machine. It knows nothing of training.

Legend: B structures, N atoms, E edges.
"""

from __future__ import annotations

import copy
import io
import json
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from atomloom import __version__
from atomloom.config.graph import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.inference.predict import LoadedModel, load_model
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.common.layers import BasisTable
from atomloom.models.derivatives import evaluate_potential
from atomloom.potentials.committee import Source, atomic_energies_of, read_dtype
from atomloom.potentials.evaluation import plain_structure, structure_table
from atomloom.store.files import expand_home, write_atomically
from atomloom.structures.structure import Structure

FORMAT = 1
CARD = "atomloom.json"
PLAIN_INPUTS = ("numbers", "positions", "cell", "node_graph", "src", "dst", "shift")
"""Inputs of every program, in order, as in `GraphBatch`."""
POTENTIAL_OUTPUTS = ("energy", "atom_energies", "forces", "stress")
"""[B] eV, [N] eV, both float64; [N, 3] eV/A, [B, 3, 3] eV/A^3 in the model's precision."""
DIMENSIONS = {
    "numbers": "atoms",
    "positions": "atoms",
    "cell": "structures",
    "node_graph": "atoms",
    "src": "edges",
    "dst": "edges",
    "shift": "edges",
    "multiplicity": "edges",
    "lattice": "structures",
}
"""Meaning of the first axis of each input."""


class _Program(nn.Module):
    """Model as a function of plain tensors."""

    def __init__(self, loaded: LoadedModel, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = loaded.model
        self.inputs = tuple(inputs)

    def batch(self, arrays: Sequence[Tensor]) -> GraphBatch:
        given = dict(zip(self.inputs, arrays, strict=True))
        positions, cell, shift = given["positions"], given["cell"], given["shift"]
        src, dst, node_graph = given["src"], given["dst"], given["node_graph"]
        offsets = (shift.unsqueeze(2) * cell.index_select(0, node_graph).index_select(0, dst)).sum(
            1
        )
        vectors = positions.index_select(0, src) + offsets - positions.index_select(0, dst)
        return GraphBatch(
            numbers=given["numbers"],
            positions=positions,
            cell=cell,
            node_graph=node_graph,
            node_ptr=_pointers(node_graph, cell.shape[0]),
            src=src,
            dst=dst,
            dst_ptr=_pointers(dst, positions.shape[0]),
            shift=shift,
            vectors=vectors,
            multiplicity=given.get("multiplicity"),
            lattice=given.get("lattice"),
        )


class _Potential(_Program):
    offsets: Tensor

    def __init__(self, loaded: LoadedModel, inputs: Sequence[str]) -> None:
        super().__init__(loaded, inputs)
        energies = atomic_energies_of(loaded)
        self.scale = float(energies.scale)
        offsets = energies.atom_offsets(np.arange(len(energies.element_energies)))
        self.register_buffer("offsets", torch.from_numpy(offsets))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = self.batch(arrays)
        said = evaluate_potential(self.model, batch, forces=True, stress=True)
        own = said.atom_energies.double() * self.scale
        own = own + self.offsets.index_select(0, batch.numbers)
        energy = own.new_zeros(batch.size).index_add(0, batch.node_graph, own)
        assert said.forces is not None
        assert said.stress is not None
        return energy, own, said.forces * self.scale, said.stress * self.scale


class _Property(_Program):
    def forward(self, *arrays: Tensor) -> tuple[Tensor]:
        return (self.model(self.batch(arrays)),)


def export_model(
    model: Source,
    path: str | Path,
    *,
    compiled: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    trust: str | Sequence[str] = (),
) -> Path:
    """Write a model as a torch program.

    Args:
        model: a model file or a loaded model.
        path: of the program, `NAME.pt2`.
        compiled: compile it with AOTInductor for this kind of machine (needs a C++ compiler; takes a
            minute); otherwise write a torch.export program.
        dtype: `float32` or `float64`; by default that of the file.
        device: `cpu` or `cuda`, on which the program will run.
        trust: modules or packages that the model file may name for its network.

    Raises:
        AtomloomError: when the model needs inputs that a program cannot take (triplets, global
            features), or cannot be traced or compiled.
    """
    path = Path(expand_home(path))
    if path.suffix != ".pt2":
        raise AtomloomError(
            "a program is a .pt2 file", where=path, todo="give a name ending in .pt2"
        )
    if isinstance(model, LoadedModel):
        loaded = replace(model, model=copy.deepcopy(model.model))  # it is moved and changed here
    else:
        loaded = load_model(model, trust)
    potential = loaded.card.is_potential
    _require_exportable(loaded)
    if dtype is not None:
        wanted = read_dtype(dtype)
        loaded = LoadedModel(loaded.model.to(wanted), loaded.card, wanted)
    program_class = _Potential if potential else _Property
    example = _example(loaded)
    inputs = [*PLAIN_INPUTS, *(n for n in ("multiplicity", "lattice") if n in example)]
    arrays = tuple(example[name].to(device) for name in inputs)
    program = program_class(loaded, inputs).to(device).eval()
    dims = {name: Dim(name, min=1) for name in ("structures", "atoms", "edges")}
    shapes = tuple({0: dims[DIMENSIONS[name]]} for name in inputs)
    try:
        exported = _traced(program, arrays, shapes)
    except Exception as error:  # torch raises many kinds
        raise AtomloomError(
            f"{loaded.card.model.name} cannot be traced: {_first_line(error)}",
            todo="use the model file itself, which needs atomloom",
        ) from error
    scaler = loaded.card.scaler
    assert scaler is not None  # as for all models without heads
    card = {
        "format": FORMAT,
        "kind": "potential" if potential else "property",
        "compiled": platform.machine() if compiled else "",
        "device": device,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "inputs": inputs,
        "outputs": list(POTENTIAL_OUTPUTS) if potential else ["outputs"],
        "model": loaded.card.model.model_dump(mode="json"),
        "graph": loaded.card.graph.model_dump(mode="json"),
        "targets": list(loaded.card.targets),
        "unit": loaded.card.unit,
        "scale": scaler.to_dict(),
        "torch": torch.__version__,
        "atomloom": __version__,
    }
    write_atomically(path, lambda temporary: _write(exported, card, compiled, temporary))
    return path


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """Program read from a file, with its card."""

    run: Any
    """Program that maps tensors to tensors."""
    card: Mapping[str, Any]
    """Card of the program."""

    @property
    def graph(self) -> GraphSpec:
        """Spec of the graphs it needs."""
        return GraphSpec.model_validate(self.card["graph"])

    def calculate(self, structures: Sequence[Any]) -> dict[str, np.ndarray]:
        """Compute outputs by name (`card["outputs"]`) for some structures, in one call.

        Raises:
            AtomloomError: when a structure is not one of a known library, or none has a neighbour.
        """
        own = [plain_structure(item) for item in structures]
        dtype, device = read_dtype(self.card["dtype"]), self.card["device"]
        graphs = build_graphs(structure_table(own), self.graph)
        if not len(graphs.src):
            raise AtomloomError("a program needs at least one edge", where="structures")
        rows = np.arange(len(graphs))
        batch = GraphLoader(graphs, rows, dtype=dtype, device=device).slice(rows)
        # Compiled programs rely on memory that is aligned like an allocation.
        arrays = [getattr(batch, name).clone() for name in self.card["inputs"]]
        with torch.no_grad():
            said = self.run(*arrays)
        return {
            name: value.cpu().numpy()
            for name, value in zip(self.card["outputs"], said, strict=True)
        }


def load_exported(path: str | Path) -> ExportedModel:
    """Read a program written by `export_model`.

    Raises:
        AtomloomError: when it is missing, not written by atomloom, of a newer format, or compiled for
            another kind of machine.
    """
    path = Path(expand_home(path))
    if not path.exists():
        raise AtomloomError("no program here", where=path)
    card = _card_of(path)
    if card["format"] != FORMAT:
        raise AtomloomError(
            f"has format {card['format']}, this atomloom reads {FORMAT}", where=path
        )
    if not card["compiled"]:
        with _quiet():
            return ExportedModel(torch.export.load(path).module(), card)
    if card["compiled"] != platform.machine():
        raise AtomloomError(f"was compiled for {card['compiled']}", where=path,
                            todo="export it again on this machine")  # fmt: skip
    with _quiet():
        return ExportedModel(torch._inductor.aoti_load_package(str(path)), card)


def _require_exportable(loaded: LoadedModel) -> None:
    spec = loaded.card.graph
    if spec.triplets is not None:
        raise AtomloomError("programs have no triplets", where=loaded.card.model.name)
    if loaded.card.direct:
        raise AtomloomError(
            f"programs have no heads for {', '.join(spec.name for spec in loaded.card.direct)}",
            where=loaded.card.model.name,
            todo="use the model file itself, which needs atomloom",
        )
    if loaded.card.global_features is not None:
        raise AtomloomError("programs have no global features", where=loaded.card.model.name)


def _example(loaded: LoadedModel) -> dict[str, Tensor]:
    """Tensors of five small crystals of an element that the model knows. Their sizes avoid 0, 1 and 3,
    which tracing would take for constants, and equal numbers, which it would take for the same."""
    number = 8
    if isinstance(loaded.card.scaler, AtomicEnergies):
        number = int(np.flatnonzero(np.isfinite(loaded.card.scaler.element_energies))[0])
    draw = np.random.default_rng(0)
    pitch = max(2.5, 0.4 * float(loaded.card.graph.cutoff))
    structures = []
    for count in (2, 3, 4, 2, 3):
        cell = np.diag([pitch, pitch, pitch * count]) + draw.normal(scale=0.05, size=(3, 3))
        height = (np.arange(count) + 0.5) / count
        positions = np.column_stack([np.full((count, 2), 0.5), height]) @ cell
        positions += draw.normal(scale=0.1, size=positions.shape)
        structures.append(
            Structure(np.full(count, number, np.uint8), positions, cell, np.ones(3, dtype=bool))
        )
    graphs = build_graphs(structure_table(structures), loaded.card.graph)
    rows = np.arange(len(graphs))
    batch = GraphLoader(graphs, rows, dtype=loaded.dtype).slice(rows)
    # Clones, as the loader's tensors are views of one array: a program must not rely on that.
    return {n: t.clone() for n in DIMENSIONS if (t := getattr(batch, n)) is not None}


def _traced(
    program: nn.Module, arrays: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...]
) -> torch.export.ExportedProgram:
    """Trace the program and its derivative as one graph of plain operations.

    torch.export alone does not see through a derivative taken inside (torch 2.13 loses constants
    there): it is first traced by make_fx.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with ExitStack() as changed:
        # Compiled passes, and interpolation used above some size, cannot be traced; models leave them
        # out while being compiled.
        changed.enter_context(mock.patch.object(torch.compiler, "is_compiling", return_value=True))
        changed.enter_context(mock.patch.object(BasisTable, "pays", return_value=False))
        changed.enter_context(_quiet())
        plain = make_fx(program, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arrays)
        exported = torch.export.export(plain, arrays, dynamic_shapes=shapes, strict=False)
    return exported


def _write(
    exported: torch.export.ExportedProgram, card: Mapping[str, Any], compiled: bool, path: Path
) -> None:
    if not compiled:
        exported.example_inputs = None
        buffer = io.BytesIO()  # torch raises its own error for a full disk
        with _quiet():
            torch.export.save(exported, buffer, extra_files={CARD: json.dumps(card)})
        path.write_bytes(buffer.getbuffer())
        return
    with _quiet(), tempfile.TemporaryDirectory(prefix="atomloom-") as folder:
        # torch requires the extension.
        made = Path(folder) / "program.pt2"
        try:
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(made),
                inductor_configs={"aot_inductor.metadata": {CARD: json.dumps(card)}},
            )
        except Exception as error:
            raise AtomloomError(
                f"AOTInductor cannot compile it: {_first_line(error)}",
                todo="export without compiling",
            ) from error
        shutil.copyfile(made, path)


def _card_of(path: Path) -> dict[str, Any]:
    """Read the card in a program's file, which is a zip."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{CARD}"):
                    return json.loads(archive.read(name))
                if name.endswith("metadata.json"):
                    found = json.loads(archive.read(name))
                    if CARD in found:
                        return json.loads(found[CARD])
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise AtomloomError(f"cannot be read: {error}", where=path) from None
    raise AtomloomError("is not a program of atomloom", where=path)


def _pointers(index: Tensor, size: int) -> Tensor:
    """[size+1] starts of the runs of an ascending index."""
    counts = index.new_zeros(size).index_add(0, index, torch.ones_like(index))
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without torch's internal warnings during tracing and compiling."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
