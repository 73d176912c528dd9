"""Labels through plan, convert and split: each record gets its own value, from wherever it stands."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import ase.db
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk

from atomloom.api import run_pipeline
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.stages.convert import convert_chunk
from atomloom.stages.plan import make_plan
from atomloom.stages.split import write_split
from tests.workflow.project import cif_text

ELEMENTS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba", "Be", "Cs", "Zn", "Cd")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cif").mkdir()
    return tmp_path


def write_cifs(count: int = 12) -> None:
    for place in range(count):
        element = ELEMENTS[place % len(ELEMENTS)]
        Path(f"cif/s{place:02d}.cif").write_text(cif_text(element, "O", 4.0 + 0.1 * place))


def write_labels(rows: list[dict], name: str = "labels.csv") -> None:
    pd.DataFrame(rows).to_csv(name, index=False)


def frame(place: int, comment: str) -> str:
    """One frame of extended XYZ."""
    length = 4.0 + 0.1 * place
    cell = f'Lattice="{length} 0 0 0 {length} 0 0 0 {length}" Properties=species:S:1:pos:R:3'
    return f"2\n{cell} {comment}\n{ELEMENTS[place % 12]} 0 0 0\nBr 2 2 2\n"


def entry(place: int, **beside) -> dict:
    """A row of a JSON with a structure of JARVIS, labels beside it."""
    length = 5.0 + 0.1 * place
    cell = [[length, 0, 0], [0, length, 0], [0, 0, length]]
    atoms = {"lattice_mat": cell, "coords": [[0, 0, 0], [0.5, 0.5, 0.5]]}
    atoms |= {"elements": [ELEMENTS[place % 12], "Cl"], "cartesian": False}
    return {"jid": f"j{place}", "atoms": atoms, **beside}


def config(source="cif", target="gap", labels="labels.csv", split=None, **dataset):
    content = {"name": "d", "source": source, "target": target, **dataset}
    content["checks"] = {"max_fraction": 0.9}
    if labels:
        content["labels"] = {"file": labels} if isinstance(labels, str) else labels
    model = {"name": "icomformer", "width": 8, "layers": 2}
    training = {"epochs": 2, "batch": {"structures": 8}, "device": "cpu", "threads": 1}
    split = {"duplicates": "report", **(split or {})}
    return parse_config({"dataset": content, "split": split, "model": model, "training": training})


def say_nothing(_: str) -> None:
    pass


def divided(settings) -> tuple[pd.DataFrame, dict[str, str], RunPaths]:
    """The data set by id, reasons of the quarantine by id, and where it all is."""
    layout = Layout(settings)
    plan = make_plan(layout, say_nothing)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, say_nothing)
    places = RunPaths(layout, plan)
    write_split(places, say_nothing)
    used = pd.read_parquet(places.split / "dataset.parquet").set_index("id")
    refused = pd.read_csv(places.split / "quarantine.csv").set_index("id")["reason"]
    return used, refused.to_dict(), places


def refusal(settings) -> str:
    with pytest.raises(AtomloomError) as error:
        divided(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_row_by_file_name_is_given_to_no_frame_of_a_file_of_several():
    Path("traj").mkdir()
    for name in range(3):
        Path(f"traj/m{name}.xyz").write_text("".join(frame(4 * name + i, "") for i in range(4)))
    Path("traj/one.xyz").write_text(frame(12, ""))
    write_labels([{"file": f"{name}.xyz", "gap": 1.0} for name in ("m0", "m1", "m2", "one")])
    layout = Layout(config("traj"))
    make_plan(layout, say_nothing)
    labels = pd.read_parquet(layout.plan_folder / "labels.parquet")
    assert labels["gap"].count() == 1
    assert labels["problem"].tolist() == [
        *(
            f"no label: `m{name}-{i:06d}` is not in labels.csv (`m{name}.xyz` is, but that file has 4 "
            "records)"
            for name in range(3)
            for i in range(4)
        ),
        "",
    ]


def test_a_label_beside_some_structures_and_inside_others_is_each_record_s_own():
    Path("a.json").write_text(json.dumps([entry(i, energy=-float(i)) for i in range(6)]))
    Path("b.xyz").write_text("".join(frame(i, f"energy={-10 - i}") for i in range(6)))
    Path("c.xyz").write_text(frame(6, ""))
    used, refused, _ = divided(config(["a.json", "b.xyz", "c.xyz"], "energy", None))
    assert used["energy"].to_dict() == {f"j{i}": -i for i in range(6)} | {
        f"b-{i:06d}": -10 - i for i in range(6)
    }
    assert refused == {"c": "no label: the record has no energy"}


def test_a_label_that_contradicts_the_structure_s_own_is_refused():
    rows = [entry(i, gap=float(i)) for i in range(12)]
    rows[2] = entry(2, gap=2.0)
    rows[2]["structure"] = {
        "lattice": {"matrix": np.diag([5.2] * 3).tolist()},
        "sites": [{"species": [{"element": "Rb", "occu": 1}], "abc": [0, 0, 0]}],
        "properties": {"gap": 7.5, "other": 1.0},
    }
    del rows[2]["atoms"]
    rows[3] = {**rows[2], "jid": "j3", "gap": 7.5000001}
    Path("a.json").write_text(json.dumps(rows))
    used, refused, _ = divided(config("a.json", labels=None))
    assert refused == {"j2": "gap is 2 alongside the structure and 7.5 in it"}
    assert used["gap"]["j3"] == 7.5000001


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "jsonl", "csv of structures", "xyz", "pymatgen", "db"])  # fmt: skip
def test_truth_is_1_and_untruth_0_in_every_format(kind):
    flags = [i % 3 == 0 for i in range(12)]
    source, labels = "cif", None
    if kind in ("csv", "parquet"):
        write_cifs()
        table = pd.DataFrame({"id": [f"s{i:02d}" for i in range(12)], "gap": flags})
        labels = f"l.{kind}"
        getattr(table, f"to_{kind}")(labels, index=False)
    elif kind == "xyz":
        source = "a.xyz"
        Path(source).write_text("".join(frame(i, f"gap={'FT'[f]}") for i, f in enumerate(flags)))
    elif kind == "csv of structures":
        source = "a.csv"
        rows = [[cif_text(ELEMENTS[i], "O", 4 + 0.1 * i), f] for i, f in enumerate(flags)]
        pd.DataFrame(rows, columns=["cif", "gap"]).to_csv(source, index=False)
    elif kind == "db":
        source = "a.db"
        with ase.db.connect(source) as database:
            for i, flag in enumerate(flags):
                database.write(bulk(ELEMENTS[i], "fcc", 4 + 0.1 * i), gap=flag)
    elif kind == "pymatgen":
        source = "a.json"
        site = {"species": [{"element": "Rb", "occu": 1}], "abc": [0, 0, 0]}
        cells = [{"matrix": np.diag([5 + 0.1 * i] * 3).tolist()} for i in range(12)]
        parts = zip(cells, flags, strict=True)
        entries = [{"lattice": c, "sites": [site], "properties": {"gap": f}} for c, f in parts]
        Path(source).write_text(json.dumps(entries))
    else:
        source = f"a.{kind}"
        entries = [json.dumps(entry(i, gap=flag)) for i, flag in enumerate(flags)]
        text = f"[{','.join(entries)}]" if kind == "json" else "\n".join(entries)
        Path(source).write_text(text)
    used, refused, _ = divided(config(source, labels=labels))
    assert used["gap"].tolist() == flags
    assert not refused


def test_an_infinite_number_in_a_structure_is_no_label():
    Path("a.xyz").write_text("".join(frame(i, f"gap={'inf' if i == 4 else i}") for i in range(12)))
    used, refused, _ = divided(config("a.xyz", labels=None))
    assert refused == {"a-000004": "no label: gap is inf, not a finite number"}
    assert len(used) == 11


def test_a_label_table_goes_before_what_stands_in_the_records():
    Path("b.xyz").write_text("".join(frame(i, f"energy={-10 - i}") for i in range(10)))
    write_labels([{"id": f"b-{i:06d}", "energy": i} for i in range(10)])
    used, _, _ = divided(config("b.xyz", "energy"))
    assert sorted(used["energy"]) == list(range(10))


def test_tables_of_labels_and_folds_among_the_structures_are_not_read_as_structures():
    write_cifs()
    write_labels([{"id": f"s{i:02d}", "cif": "data_\n", "gap": i} for i in range(12)], "cif/l.csv")
    Path("cif/folds.json").write_text(json.dumps({"fold_0": [1, 2], "structure": []}))
    split = {"kind": "folds", "folds_file": "cif/folds.json"}
    used, refused, _ = divided(config(labels="cif/l.csv", split=split))
    assert len(used) == 12
    assert not refused


# --- targets that some records lack ---


def test_a_record_with_some_of_the_targets_is_trained_and_judged_on_those():
    write_cifs(40)
    odd = 'U/eV <b>$x_1$</b>, "a"'
    rows = [
        {"id": f"s{i:02d}", odd: 0.1 * i if i % 2 else None, "bulk": 100 - i if i % 3 else None}
        for i in range(40)
    ]
    write_labels(rows)
    settings = config(target=[odd, "bulk"], unit={odd: "eV", "bulk": "GPa"})
    run = run_pipeline(settings, say_nothing)
    neither = [f"s{i:02d}" for i in range(0, 40, 6)]
    assert sorted(pd.read_csv(run.places.split / "quarantine.csv")["id"]) == neither
    known = json.loads((run.places.split / "split.json").read_text())["known"]
    given = pd.DataFrame(rows).set_index("id")
    for name, decimals in ((odd, 9), ("bulk", 9)):
        table = run.predictions.set_index("id")
        pd.testing.assert_series_equal(table[name], given[name].loc[table.index])
        for split, own in table.groupby("split"):
            errors = (own[f"{name}_predicted"] - own[name]).dropna()
            assert run.metrics[name][split]["count"] == len(errors) == known[name][split]
            assert run.metrics[name][split]["mae"] == pytest.approx(errors.abs().mean(), decimals)
    assert np.isfinite(run.history["train_loss"]).all()
    assert run.model.card.unit == {odd: "eV", "bulk": "GPa"}
    page = run.report.read_text()
    assert "U/eV &lt;b&gt;$x_1$&lt;/b&gt;" in page
    assert "GPa" in page


def test_a_target_that_no_structure_of_a_split_has_is_said_and_stops_nothing():
    write_cifs(20)
    sets = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    rows = [
        {"id": f"s{i:02d}", "gap": 1.0 * i, "bulk": 1.0 if i < 5 else None, "set": sets[i]}
        for i in range(20)
    ]
    write_labels(rows)
    lines: list[str] = []
    settings = config(target=["gap", "bulk"], split={"kind": "column", "column": "set"})
    run = run_pipeline(settings, lines.append)
    assert run.metrics["bulk"]["test"]["count"] == 0
    assert "test  bulk: no known value over 0" in lines
    assert "5 of 20 structures have a value of bulk" in lines
    assert np.isfinite(run.metrics["bulk"]["train"]["mae"])


def test_a_target_that_no_training_structure_has_is_refused_by_the_split():
    write_cifs()
    sets = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = [{"id": f"s{i:02d}", "gap": i, "bulk": i if i > 8 else None, "set": sets[i]} for i in range(12)]  # fmt: skip
    write_labels(rows)
    says = refusal(config(target=["gap", "bulk"], split={"kind": "column", "column": "set"}))
    assert "split: no training structure has a value of bulk" in says


# --- targets nobody has ---


@pytest.mark.parametrize(
    ("source", "labels", "target", "says"),
    [
        ("cif", None, "gap", "no record has a property `gap`; properties found: none"),
        ("b.xyz", None, "gap", "no record has a property `gap`; properties found: energy, gap_eV"),
        ("a.json", None, "gpa", "no record has a property `gpa`; properties found: gap"),
        ("cif", "labels.csv", "gpa", "labels.csv: no column `gpa`; columns are: id, gap"),
        (
            "b.xyz",
            "labels.csv",
            "gap",
            "labels.csv: no record has a value of `gap` (first: b-000000",
        ),
    ],
)
def test_a_target_that_nobody_has_is_found_by_the_plan(source, labels, target, says):
    write_cifs(3)
    write_labels([{"id": f"s{i:02d}", "gap": i} for i in range(3)])
    Path("b.xyz").write_text("".join(frame(i, "energy=1 gap_eV=2") for i in range(3)))
    Path("a.json").write_text(json.dumps([entry(i, gap=1.0) for i in range(3)]))
    with pytest.raises(AtomloomError) as error:
        make_plan(Layout(config(source, target, labels)), say_nothing)
    assert says in str(error.value)


def test_a_target_that_only_a_late_record_has_is_found():
    Path("b.xyz").write_text("".join(frame(i, "gap=2" if i == 11 else "") for i in range(12)))
    make_plan(Layout(config("b.xyz", labels=None)), say_nothing)


# --- data sets that are too small for their split ---


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "split",
    [
        {"kind": "ratio"},
        {"kind": "ratio", "group": "formula"},
        {"kind": "column", "column": "set"},
        {"kind": "column", "column": "set", "group": "formula"},
        {"kind": "folds", "folds_file": "folds.json"},
        {"kind": "sources", "test_sources": ["*.cif"]},
        {"kind": "sources", "test_sources": ["s00.cif"], "val_sources": ["*.cif"]},
    ],
    ids=lambda split: " ".join(map(str, split.values())),
)
def test_a_split_without_training_or_validation_rows_is_one_line(count, split):
    write_cifs(count)
    write_labels([{"id": f"s{i:02d}", "gap": i, "set": "test"} for i in range(count)])
    Path("folds.json").write_text(json.dumps({"fold_0": list(range(count))}))
    assert "split: no structure is left for" in refusal(config(split=split))


def test_a_table_of_labels_in_an_archive_of_structures_is_not_read_as_structures():
    write_cifs()
    table = "id,cif,gap\n" + "".join(f's{i:02d},"data_\n",{i}\n' for i in range(12))
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in sorted(Path("cif").iterdir()):
            archive.write(path, path.name)
        archive.writestr("labels.csv", table)
    used, refused, _ = divided(config("all.zip", labels="./all.zip::labels.csv"))
    assert len(used) == 12
    assert not refused


def test_a_record_s_own_value_that_a_label_table_overrules_is_said():
    Path("b.xyz").write_text("".join(frame(i, f"energy={i}") for i in range(12)))
    write_labels([{"id": f"b-{i:06d}", "energy": i + (i > 9)} for i in range(12)])
    lines: list[str] = []
    layout = Layout(config("b.xyz", "energy"))
    plan = make_plan(layout, lines.append)
    convert_chunk(layout, plan, plan.chunk_keys[0], lines.append)
    write_split(RunPaths(layout, plan), lines.append)
    assert "2 structures have another energy than the label table, which takes precedence" in lines


def test_a_test_set_that_tears_groups_apart_is_said():
    write_cifs()
    write_labels([{"id": f"s{i:02d}", "gap": i, "family": f"f{i % 7}"} for i in range(12)])
    Path("folds.json").write_text("\ufeff" + json.dumps({"fold_0": [0, 1, 5, 6]}))
    split = {"kind": "folds", "folds_file": "folds.json", "group": "family", "val_fraction": 0.4}
    layout, lines = Layout(config(split=split)), []
    plan = make_plan(layout, say_nothing)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, say_nothing)
    write_split(RunPaths(layout, plan), lines.append)
    assert lines[0] == (
        "warning: 2 groups of `family` are both in the test set and outside it, by split.kind: folds "
        "(first: f0)"
    )


def test_forces_of_a_record_whose_energy_no_table_knows_are_learnt():
    values = "energy=-1 gap=1"
    text = (
        "".join(frame(i, values) for i in range(12))
        .replace("pos:R:3 ", "pos:R:3:forces:R:3 ")
        .replace(" 0 0 0\n", " 0 0 0 1 0 0\n")
        .replace("2 2 2\n", "2 2 2 -1 0 0\n")
    )
    Path("b.xyz").write_text(text)
    write_labels([{"id": f"b-{i:06d}", "energy": i if i else None} for i in range(12)])
    settings = config("b.xyz", ["energy", "forces"])
    content = settings.model_dump(exclude={"model", "graph"})
    content["training"]["potential"]["reference_energies"] = dict.fromkeys((*ELEMENTS, "Br"), 0.0)
    potential = parse_config(content | {"model": {"name": "painn", "width": 8}})
    used, refused, _ = divided(potential)
    assert not refused
    assert np.isnan(used["energy"]["b-000000"])
    assert used["energy"][1:].tolist() == list(range(1, 12))


def test_too_many_records_without_a_label_stop_the_split_with_a_table_of_them():
    write_cifs()
    write_labels([{"id": f"s{place:02d}", "gap": place} for place in range(8)])
    content = config().model_dump(mode="json")
    content["dataset"]["checks"]["max_fraction"] = 0.3
    told = refusal(parse_config(content))
    assert "4 of 12 records are in quarantine" in told
    (table,) = Path("results").rglob("quarantine.csv")
    assert pd.read_csv(table)["id"].tolist() == ["s08", "s09", "s10", "s11"]
    content["dataset"]["checks"]["max_fraction"] = 0.34
    used, refused, _ = divided(parse_config(content))
    assert (len(used), len(refused)) == (8, 4)


def test_a_word_on_the_comment_line_of_a_frame_can_be_a_column_of_the_split():
    kinds = ["slab", '"two words"', "bulk", "bulk"]
    comments = [
        f"energy={-i} T={301.0 if i % 4 == 3 else 300} config_type={kinds[i % 4]}"
        for i in range(24)
    ]
    Path("a.xyz").write_text("".join(frame(i, comment) for i, comment in enumerate(comments)))
    sets = {
        "hot": {"column": "T", "equals": 301},
        "odd": {"column": "config_type", "equals": ["slab", "two words"]},
    }
    split = {"test": sets, "ratios": [0.5, 0.5]}
    used, refused, _ = divided(config("a.xyz", "energy", None, split=split))
    assert not refused
    for place, name in enumerate(used["split"]):
        assert name in (("odd",), ("odd",), ("train", "val"), ("hot",))[place % 4]
    assert (used["energy"] == -np.arange(24)).all()
    split["test"]["odd"]["column"] = "kind"
    assert refusal(config("a.xyz", "energy", None, split=split)).startswith(
        "split: no record has a column `kind` alongside it"
    )


def test_a_global_feature_can_also_say_which_test_set_a_frame_is_in():
    comments = [f"energy={-i} T={300 + 300 * (i % 2)}" for i in range(24)]
    Path("a.xyz").write_text("".join(frame(i, comment) for i, comment in enumerate(comments)))
    split = {"test": {"600K": {"column": "T", "equals": 600}}, "ratios": [0.5, 0.5]}
    settings = config("a.xyz", "energy", None, split=split, global_features=["T"])
    used, refused, _ = divided(settings)
    assert not refused
    assert ((used["split"] == "600K") == (used["T"] == 600)).all()
