"""Commands on the model file of a run: `predict`, `evaluate --model` and `export`, as they are called.

Modules that need torch are imported where they are used, so that a command starts fast.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from atomloom.commands.options import (
    Add,
    add_reading,
    add_trust,
    count,
    few,
    log_to,
    pairs,
    reader_options,
)
from atomloom.config.foundation import POTENTIALS, TRAINED_ON, published_file
from atomloom.errors import AtomloomError
from atomloom.store.files import expand_home


def add_comparison(sub: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate --model`, which takes no config."""
    sub.description = (
        "Measure the errors of the run of a config, or, with --model and --source, those of a model file "
        "on new data with labels."
    )
    sub.add_argument(
        "--model", type=Path, metavar="FILE", help="model.safetensors of a run, or its name"
    )
    sub.add_argument(
        "--source",
        nargs="+",
        metavar="PATH",
        help="files, folders or archives with structures and labels",
    )
    sub.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="FILE",
        help="label tables (labels in the records)",
    )
    sub.add_argument(
        "--id-column", metavar="NAME", help="column of the tables with ids (the first)"
    )
    sub.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TARGET=COLUMN",
        help="what a target of the model is called in the data; may be repeated",
    )
    sub.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="TARGET=UNIT",
        help="unit of the labels, if not that of the model; may be repeated",
    )
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="table of labels and predictions, NAME.parquet or NAME.csv",
    )
    sub.add_argument("--json", action="store_true", help="print metrics as JSON")
    add_reading(sub)


def add_predict(add: Add) -> None:
    text = "predict structures with a trained model: energies and forces, or properties"
    sub = add("predict", help=text, description=text)
    sub.add_argument(
        "--model",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="model.safetensors of a run, or its name; of several, mean and standard deviation",
    )
    sub.add_argument(
        "--source",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files, folders or archives with structures",
    )
    sub.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the table, NAME.parquet"
    )
    sub.add_argument(
        "--forces", action="store_true", help="potentials: also write NAME.forces.parquet"
    )
    sub.add_argument(
        "--chunk", type=count, default=1000, metavar="N", help="records per chunk (1000)"
    )
    add_reading(sub)
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sub.add_argument("--threads", type=few, metavar="N", help="CPU threads")
    sub.add_argument("--log", type=Path, metavar="FILE", help="also append messages to this file")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_predict)


def add_export(add: Add) -> None:
    text = "write a trained model as a torch program that runs without atomloom"
    sub = add("export", help=text, description=text)
    sub.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="FILE",
        help="model.safetensors of a run, or its name",
    )
    sub.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the program, NAME.pt2"
    )
    sub.add_argument(
        "--compile",
        action="store_true",
        help="compile it with AOTInductor for this kind of machine (needs a C++ compiler)",
    )
    sub.add_argument(
        "--dtype", choices=("float32", "float64"), help="precision (that of the model)"
    )
    sub.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where it will run (cpu)"
    )
    add_trust(sub)
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_export, log=None)


def add_import(add: Add) -> None:
    text = "write a checkpoint of SevenNet, or a published potential, as a model file"
    sub = add("import", help=text, description=text)
    sub.add_argument(
        "model", metavar="FILE", help=f"checkpoint.pth, or one of {', '.join(POTENTIALS)}"
    )
    sub.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the model, NAME.safetensors"
    )
    sub.add_argument(
        "--modality", metavar="NAME", help="level of theory, if there are several (its default)"
    )
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_import, log=None)


def _import(options: argparse.Namespace) -> None:
    from atomloom.inference.model_file import write_model
    from atomloom.inference.sevennet import read_sevennet

    if options.output.suffix != ".safetensors":
        raise AtomloomError(
            "is not a name for a model file", where=options.output, todo="NAME.safetensors"
        )
    path = published_file(expand_home(options.model))
    tensors, card = read_sevennet(path, options.modality)
    if options.model in POTENTIALS:
        card = replace(card, facts={**card.facts, "trained_on": [TRAINED_ON]})
    write_model(Path(expand_home(options.output)), tensors, card)
    print(f"{options.output}: {card.model.display_name}, {len(card.elements or ())} elements")


def _predict(options: argparse.Namespace) -> None:
    import torch

    from atomloom.commands.predict import Prediction, predict_files
    from atomloom.config.training import Batching

    if options.threads:
        torch.set_num_threads(options.threads)
    request = Prediction(
        models=tuple(options.model),
        sources=tuple(options.source),
        output=options.output,
        forces=options.forces,
        chunk=options.chunk,
        bounds=Batching(
            structures=options.batch_structures,
            atoms=options.batch_atoms,
            edges=options.batch_edges,
        ),
        device=options.device,
        format=options.format,
        pattern=options.pattern,
        options=reader_options(options),
        trust=tuple(options.trust),
    )
    predict_files(request, log_to(options))


def _export(options: argparse.Namespace) -> None:
    from atomloom.potentials.export import export_model

    path = export_model(
        options.model,
        options.output,
        compiled=options.compile,
        dtype=options.dtype,
        device=options.device,
        trust=options.trust,
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def compare(options: argparse.Namespace) -> None:
    """Measure the errors of a model file on labelled data."""
    import torch

    from atomloom.commands.evaluate import Comparison, compare_with_labels

    if options.threads:
        torch.set_num_threads(options.threads)
    request = Comparison(
        model=options.model,
        sources=tuple(options.source),
        labels=tuple(options.labels),
        id_column=0 if options.id_column is None else options.id_column,
        names=pairs(options.target, "--target"),
        units=pairs(options.unit, "--unit"),
        output=options.output,
        format=options.format,
        pattern=options.pattern,
        options=reader_options(options),
        bounds={
            "structures": options.batch_structures,
            "atoms": options.batch_atoms,
            "edges": options.batch_edges,
        },
        trust=tuple(options.trust),
    )
    found = compare_with_labels(request, log_to(options))
    if options.json:
        print(json.dumps(found.metrics, indent=1, ensure_ascii=False))
    else:
        print("\n".join(found.lines()))
