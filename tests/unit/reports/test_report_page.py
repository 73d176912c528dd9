"""The page: complete, self-contained, escaped, and honest about what is absent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from atomloom.errors import AtomloomError
from atomloom.reports import figures, html, write_report
from atomloom.reports.formats import NONE, number
from atomloom.reports.page import formula_markup, relinked
from atomloom.reports.tables import predictions_of

VOID = {"meta", "link", "br", "hr", "img", "input"}
SIZE = 1_500_000


class Page(HTMLParser):
    """Tags in balance, ids, addresses and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.addresses.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run, inputs=None) -> tuple[Page, str]:
    text = write_report(inputs or run.inputs, run.folder / "report.html").read_text(
        encoding="utf-8"
    )
    page = Page(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    return page, text


def test_the_page_has_every_section_with_its_content(make_run):
    page, text = page_of(make_run())
    for expected in (
        "iComFormer on minerals: test MAE 0.0",
        "structures (mean absolute deviation",
        "4,966,497",
        "learning rate 0.001",
        "minerals",
        "2 min 05 s",
        "in quarantine 60",
        "no label 20",
        "atoms … and … are … A apart 40",
        "the first 50 of 60",
        "quarantine.csv",
        "validation MAE of band_gap (eV)",
        "predicted band_gap (eV)",
        "Error by element",
        "Worst 10 predictions",
        "snakemake --cores all --configfile config.yaml",
        "atomloom reproduce 0123456789abcdef",
        "0123456789abcdef",
        "fedcba9876543210",
        "Time per epoch by part. Over all epochs: data 10 %, forward 30 %, backward 60 %.",
        "convert 3 9.0 s 4.0 s 315 MB",
    ):
        assert expected in page.text, expected
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()
    assert text.rstrip().endswith("</html>")


def test_the_summary_is_the_metrics_in_one_sentence(make_run):
    run = make_run()
    run.edit_json(
        "metrics.json",
        band_gap={"test": {"mae": 0.043, "rmse": 0.06, "r2": 0.99, "mad": 1.2, "count": 41}},
    )
    page, _ = page_of(run)
    assert (
        "iComFormer on minerals: test MAE 0.0430 eV over 41 structures "
        "(mean absolute deviation 1.20 eV)"
    ) in page.text
    assert "MAE / MAD 3.6 %" in page.text


def test_the_page_asks_nothing_of_the_network_and_runs_its_own_script_alone(make_run):
    run = make_run()
    page, text = page_of(run)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]*);", text) == [f"'sha256-{digest}'"]
    files = {path.name for path in run.folder.iterdir()}
    links = [a for a in page.addresses if not a.startswith(("#", "data:", "https://"))]
    assert {link.rstrip("/") for link in links} <= files
    assert "quarantine.csv" in links
    # What the browser would fetch by itself: nothing but the icon, which is in the page.
    assert not re.findall(r"<(?:img|iframe|object|embed|source|video|audio|base)\b", text)
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"\son\w+=", text)


def test_the_page_follows_light_and_dark_narrow_and_print(make_run):
    _, text = page_of(make_run())
    assert "prefers-color-scheme: dark" in text
    assert '<meta name="color-scheme" content="light dark">' in text
    assert "width=device-width" in text
    assert "@media print" in text
    declared = set(re.findall(r"(--[\w-]+):", text))
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= declared


def test_the_data_are_shown_before_any_error(make_run):
    run = make_run(targets=("bulk", "poisson"), unit={"bulk": "GPa", "poisson": ""})
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame.loc[frame["split"] == "val", "poisson"] = np.nan
    xenon = frame.index[frame["split"] == "test"][0]
    frame.loc[xenon, ["formula", "elements"]] = "XeF2", "F,Xe"
    frame.to_parquet(run.folder / "predictions.parquet")
    page, text = page_of(run)
    before, _, after = page.text.partition(" Scores iComFormer on minerals:")
    assert "MAE" in after
    assert "MAE" not in before
    assert "error" not in before
    counts = frame["split"].value_counts()
    assert f"400 labelled structures: {counts['train']} training, " in before
    bulk = frame.loc[frame["split"] == "train", "bulk"]
    assert (
        f"bulk GPa training {counts['train']} 0 {bulk.mean():.3f} {bulk.std(ddof=0):.3f} "
        f"{bulk.min():.3f} {bulk.median():.3f} {bulk.max():.3f}"
    ).replace("-", "\N{MINUS SIGN}") in before
    assert "poisson validation" not in before  # no label of it is known there
    assert "Sizes of structures: 2 to 19 atoms" in before
    assert "dashed: in no training structure" in before
    with_ti = frame[frame["elements"].str.contains("Ti")]["split"].value_counts()
    assert f"Ti {with_ti['train']} {with_ti['val']} {with_ti['test']} {with_ti.sum()}" in before
    assert "Xe: structures: 0 training, 0 validation, 1 test" in text


def test_labels_that_are_classes_are_counted_by_class(make_run):
    run = make_run()
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame["band_gap"] = (frame["band_gap"] > 0).astype(float)
    found = predictions_of(frame, "band_gap")
    figure, beyond = figures.label_figure(found)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1"]
    assert beyond == 0
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches[:2])
    shares = frame.loc[frame["split"] == "train", "band_gap"].value_counts(normalize=True)
    assert heights == pytest.approx(sorted(100 * shares))


def test_a_few_odd_labels_do_not_hide_the_rest(make_run):
    run = make_run(count=2000)
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame.loc[[0, 1], "band_gap"] = [1e6, -1e6]
    figure, beyond = figures.label_figure(predictions_of(frame, "band_gap"))
    assert beyond == 2
    low, high = figure.axes[0].get_xlim()
    assert -20 < low < high < 20


def test_every_file_beside_the_report_is_linked_and_named(make_run, tmp_path):
    run = make_run()
    (run.folder / "forces.parquet").write_bytes(b"x" * 1500)
    (run.folder / ".hidden").write_text("")
    (run.folder / "odd #1 & <b>.txt").write_text("")
    (run.folder / "checkpoints").mkdir()
    page, _ = page_of(run)
    assert (
        "run forces.parquet reference and predicted forces, one row per number 1.50 kB" in page.text
    )
    assert "run metrics.json errors by target and split" in page.text
    assert "checkpoints/" in page.addresses
    assert ".hidden" not in page.text
    for address in page.addresses:
        if not address.startswith(("#", "data:", "https:")):
            assert (run.folder / unquote(address)).exists()
    assert "odd%20%231%20&%20%3Cb%3E.txt" in page.addresses
    assert "odd #1 & <b>.txt" in page.text


def test_the_sweeps_that_a_run_belongs_to_are_named(make_run):
    run = make_run()
    assert "a sweep" not in page_of(run)[0].text
    for key, runs in (("aa", "0123456789abcdef,ff"), ("bb", "cc"), ("dd", "")):
        (run.folder / "sweeps" / key).mkdir(parents=True)
        table = pd.DataFrame({"trial": [3, 4], "run": ["00", runs]})
        table.to_csv(run.folder / "sweeps" / key / "sweep.csv", index=False)
    (run.folder / "sweeps" / "ee").mkdir()
    (run.folder / "sweeps" / "ee" / "sweep.csv").write_text("trial,ru")
    page, _ = page_of(run, replace(run.inputs, results=run.folder))
    assert page.text.count("of a sweep") == 1
    assert "This run is trial 4 of a sweep" in page.text
    assert "sweeps/aa/sweep.html" in page.addresses


def test_commands_name_the_folder_of_the_results_and_the_config(make_run):
    run = make_run()
    config = run.folder / "my config.yaml"
    config.write_text("")
    page, _ = page_of(run, replace(run.inputs, results=Path("other place/x"), config=config))
    assert "atomloom reproduce 0123456789abcdef --results 'other place'" in page.text
    assert f"git checkout {'a' * 40} snakemake --cores all --configfile '{config}'" in page.text
    usual, _ = page_of(run, replace(run.inputs, results=Path("results/x")))
    assert "--results" not in usual.text


@pytest.mark.parametrize(
    ("model", "source", "cited"),
    [
        ("icomformer", "data/x.cif", ["ICLR (2024)"]),
        ("painn", ["jarvis:dft_3d"], ["ICML", "npj Comput. Mater. 6, 173 (2020)"]),
        ("mine:Net", "${D}/Matbench_phonons/x.gz", ["Matbench test set", "Materials Project"]),
        ("chebyshev", "/data/rmd17/a.xyz", ["Phys. Rev. B 96, 014112 (2017)", "045018 (2020)"]),
    ],
)
def test_the_page_says_what_to_cite(make_run, model, source, cited):
    run = make_run()
    card = json.loads((run.folder / "run.json").read_text())
    card["model"]["name"] = model
    card["config"]["dataset"]["source"] = source
    (run.folder / "run.json").write_text(json.dumps(card))
    page, _ = page_of(run)
    assert "The atomloom developers: atomloom, version 0.1.0" in page.text
    assert all(words in page.text for words in cited)
    assert page.text.count("@misc{") == len(cited) + 1
    assert ("the paper of this model is not known" in page.text) == (model == "mine:Net")


@pytest.mark.parametrize("several", [False, True], ids=["two", "several"])
def test_classes_have_their_own_scores_a_table_and_a_calibration(make_run, several):
    run = make_run(count=300, unit="")
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    test = np.flatnonzero(frame["split"] == "test")
    frame["band_gap"] = 0.0
    frame.loc[test[:10], "band_gap"] = 1.0
    shares = np.tile([0.9, 0.1, 0.0], (300, 1))
    shares[test[2:10]] = [0.2, 0.8, 0.0]
    if several:
        frame[["band_gap_p0", "band_gap_p1", "band_gap_p2"]] = shares
        frame["band_gap_predicted"] = shares.argmax(axis=1)
    else:
        frame["band_gap_predicted"] = shares[:, 1]
    frame.to_parquet(run.folder / "predictions.parquet")
    values = {"mae": 0.123, "rmse": 0.2, "count": len(test), "accuracy": 0.912, "f1": 0.834}
    run.edit_json("metrics.json", band_gap={"test": values | {"auc": 0.956, "calibration": 0.045}})
    page, _ = page_of(run)
    assert "accuracy F1 AUC calibration band_gap test" in page.text
    assert " 0.912 0.834 0.956 0.045" in page.text
    rows = (
        f"0 {len(test) - 10} 0 1 2 8" if not several else f"0 {len(test) - 10} 0 0 1 2 8 0 2 0 0 0"
    )
    assert f"true, below; predicted, right 0 1 {'2 ' * several}{rows}" in page.text
    assert "Calibration on test: share of right decisions" in page.text
    assert "do not belong together" in page.text, "0.123 is made up"
    assert "test accuracy 91 % over" in page.text
    assert "no better than always guessing" not in page.text
    assert "Predicted against reference" not in page.text, "numbers of classes are names"
    share = np.where(frame["band_gap"] == 1.0, shares[:, 1], shares[:, 0])[test]
    errors = 1.0 - share
    own = {"test": values | {"mae": float(errors.mean()), "accuracy": 0.5, "count": len(test)}}
    run.edit_json("metrics.json", band_gap=own)
    page, _ = page_of(run)
    assert "do not belong together" not in page.text
    assert "no better than always guessing" in page.text
    deviation = number(errors.std(ddof=1) / len(test) ** 0.5, 2)
    assert f"{number(errors.mean())} ± {deviation} standard error" in page.text


def test_text_from_files_stays_text(make_run):
    bad = "<img src=x onerror=alert(1)>"
    run = make_run(targets=(f"gap{bad}",), unit=bad)
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame["id"], frame["formula"], frame["elements"] = bad, bad + "2", bad
    frame.to_parquet(run.folder / "predictions.parquet")
    rows = {"id": [bad], "source": [bad], "record": [bad], "reason": [bad]}
    pd.DataFrame(rows).to_csv(run.folder / "quarantine.csv", index=False)
    card = json.loads((run.folder / "run.json").read_text())
    card["dataset"]["name"] = card["model"]["name"] = card["run_key"] = bad
    card["config"]["note"] = card["environment"]["cpu"] = card["code"]["commit"] = bad
    (run.folder / "run.json").write_text(json.dumps(card))
    (run.folder / "timings" / "plan").rename(run.folder / "timings" / "<b>plan")
    page, text = page_of(run)
    assert "img" not in page.tags
    assert "<b>plan" not in text
    assert "<img" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 20


def test_formulas_get_subscripts_and_nothing_else():
    assert formula_markup("Fe2O3") == "Fe<sub>2</sub>O<sub>3</sub>"
    assert formula_markup("Ca(OH)2") == "Ca(OH)<sub>2</sub>"
    assert formula_markup("Li0.5CoO2") == "Li<sub>0.5</sub>CoO<sub>2</sub>"
    assert formula_markup("<b>2") == "&lt;b&gt;2"
    assert formula_markup("") == ""


def test_what_is_absent_is_named_where_it_would_stand(make_run):
    run = make_run()
    page, _ = page_of(run, run.required)
    for note in (
        "no history: the run has no history.csv",
        "no quarantine table: the run has no quarantine.csv",
        "no graph statistics: the run has no index.json",
        "no times by stage: the run has no benchmark tables",
    ):
        assert note in page.text, note
    assert "Worst 10 predictions" in page.text
    absent = replace(
        run.inputs,
        **{n: run.folder / "nowhere" for n in ("history", "quarantine", "timings", "index")},
    )
    assert page_of(run, absent)[0].text == page.text


def test_an_empty_run_card_and_empty_metrics_still_give_a_page(make_run):
    run = make_run()
    (run.folder / "run.json").write_text("{}")
    (run.folder / "metrics.json").write_text("{}")
    page, _ = page_of(run)
    for note in (
        "no errors are known",
        "no scores",
        "no config: the run card has none",
        "no counts: the run card does not say",
        "no keys: the run card has none",
        "no command",
        "no predictions: neither the run card nor the metrics name a target",
    ):
        assert note in page.text, note


def test_wrong_types_in_the_run_card_do_no_harm(make_run):
    run = make_run()
    run.edit_json(
        "run.json",
        dataset=None,
        model="icomformer",
        config=[1],
        environment=3,
        code=None,
        started=5,
        finished="soon",
        seconds="long",
        epochs_run=None,
        best_epoch="last",
        determinism=None,
        keys=None,
        unit=None,
    )
    page, _ = page_of(run)
    assert "a model on an unnamed data set: test MAE" in page.text


def test_nan_in_any_file_becomes_a_dash_and_a_remark(make_run):
    run = make_run()
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame.loc[[0, 1], "band_gap_predicted"] = np.nan
    frame.loc[2, "band_gap"] = np.nan
    frame.to_parquet(run.folder / "predictions.parquet")
    history = pd.read_csv(run.folder / "history.csv")
    history.loc[3:6, ["train_loss", "val_mae"]] = np.nan
    history["learning_rate"] = np.nan
    history.to_csv(run.folder / "history.csv", index=False)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    metrics["band_gap"]["val"] = {"mae": float("nan"), "r2": None, "count": 3}
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    page, text = page_of(run)
    assert "2 predictions of band_gap are not finite numbers" in page.text
    assert "1 structure without a reference band_gap" in page.text
    assert f"validation 3 {NONE} {NONE} {NONE}" in page.text
    assert "NaN" not in text.partition("<script>")[0]
    assert "Learning rate;" not in page.text


def test_every_target_has_its_figures_with_its_unit(make_run):
    run = make_run(targets=("bulk", "poisson"), unit={"bulk": "GPa", "poisson": ""})
    page, _ = page_of(run)
    assert "test MAE of bulk 0.0" in page.text
    assert "test MAE of poisson 0.0" in page.text
    for expected in ("predicted bulk (GPa)", "predicted poisson", "validation MAE of bulk (GPa)"):
        assert expected in page.text
    assert "predicted poisson (" not in page.text
    assert page.text.count("Worst 10 predictions") == 2
    assert {"target-1", "target-2"} <= set(page.ids)


def test_targets_beyond_the_first_are_named_instead_of_drawn(make_run):
    targets = tuple(f"property_{i}" for i in range(html.FIGURED_TARGETS + 2))
    page, text = page_of(make_run(count=3000, targets=targets))
    assert page.text.count("Worst 10 predictions") == html.FIGURED_TARGETS
    assert f"no figures of {targets[-2]}, {targets[-1]}" in page.text
    assert all(target in page.text for target in targets)
    assert len(text.encode()) < SIZE


def test_a_target_without_predictions_is_named(make_run):
    run = make_run()
    metrics = json.loads((run.folder / "metrics.json").read_text())
    metrics["forces"] = metrics["band_gap"]
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    assert "no predictions of forces" in page_of(run)[0].text


@pytest.mark.parametrize("count", [3, 1500, 30_000])
def test_the_page_is_small_whatever_the_size_of_the_data(make_run, count):
    _, text = page_of(make_run(count=count))
    assert len(text.encode()) < SIZE


def test_what_a_careful_reader_would_ask_is_said_first(make_run):
    run = make_run(count=100)
    run.edit_json("run.json", best_epoch=20, code={"commit": None, "dirty": True})
    metrics = json.loads((run.folder / "metrics.json").read_text())
    metrics["band_gap"]["test"]["mae"] *= 3
    metrics["band_gap"]["val"]["mad"] = metrics["band_gap"]["val"]["mae"] / 2
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    page, _ = page_of(run)
    for remark in (
        "The test split holds only",
        "the two files do not belong together",
        "no better than guessing the mean",
        "60 records (38 % of all) went to quarantine",
        "The best epoch was the last one",
        "uncommitted changes",
    ):
        assert remark in page.text, remark


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        (
            40,
            "40 training or validation structures, which are also in a split nearer to the test",
        ),
        (0, "40 training or validation structures are also in a split nearer to the test"),
    ],
)
def test_duplicates_across_splits_are_told_and_those_taken_out_have_their_place(
    make_run, removed, says
):
    run = make_run()
    card = json.loads((run.folder / "run.json").read_text())
    card["dataset"] |= {"duplicates": 40, "removed_as_duplicates": removed}
    card["dataset"]["quarantined"] -= removed
    (run.folder / "run.json").write_text(json.dumps(card))
    page = page_of(run)[0].text
    assert says in page
    assert ("duplicates across splits, removed" in page) == bool(removed)


def test_an_untroubled_run_has_no_remarks(make_run):
    run = make_run(count=800)
    card = json.loads((run.folder / "run.json").read_text())
    card["dataset"] |= {"quarantined": 0, "records": 800}
    (run.folder / "run.json").write_text(json.dumps(card))
    assert "Worth knowing" not in page_of(run)[0].text


def test_without_a_test_split_the_next_best_is_judged_and_that_is_said(make_run):
    run = make_run()
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    frame[frame["split"] != "test"].to_parquet(run.folder / "predictions.parquet")
    metrics = json.loads((run.folder / "metrics.json").read_text())
    del metrics["band_gap"]["test"]
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    page, _ = page_of(run)
    assert "iComFormer on minerals: val MAE" in page.text
    assert "There is no test split" in page.text


def test_a_history_by_step_is_drawn_over_steps(make_run):
    run = make_run()
    history = pd.read_csv(run.folder / "history.csv")
    history["epoch"] //= 2
    history.to_csv(run.folder / "history.csv", index=False)
    page, _ = page_of(run)
    assert "step" in page.words
    assert "epoch" not in page.words


def test_one_epoch_is_enough(make_run):
    page, _ = page_of(make_run(epochs=1))
    assert "Loss over training" in page.text


def test_an_empty_quarantine_is_good_news(make_run):
    run = make_run()
    (run.folder / "quarantine.csv").write_text("id,source,record,reason\n")
    assert "Empty: every record was read and passed the checks." in page_of(run)[0].text
    (run.folder / "quarantine.csv").write_text("")
    assert "Empty: every record" in page_of(run)[0].text


def test_links_hold_from_where_the_report_is(make_run, tmp_path):
    run = make_run()
    output = write_report(run.inputs, tmp_path / "elsewhere" / "deep" / "report.html")
    assert 'href="../../run/quarantine.csv"' in output.read_text(encoding="utf-8")


def test_links_hold_in_a_copy_of_the_page_elsewhere():
    page = '<a href="runs/a%20%231/x.csv"></a><a href="logs/"></a><a href="#x"></a><a href="https://y/">'
    assert relinked(page, Path("/r"), Path("/r/runs/b")) == (
        '<a href="../a%20%231/x.csv"></a><a href="../../logs/"></a><a href="#x"></a><a href="https://y/">'
    )


def test_the_same_files_give_the_same_bytes(make_run):
    run = make_run()
    first = write_report(run.inputs, run.folder / "report.html").read_bytes()
    assert write_report(run.inputs, run.folder / "report.html").read_bytes() == first
    assert not list(run.folder.glob(".report*"))


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "predictions.parquet"])
def test_a_missing_required_file_is_an_error_that_names_it(make_run, name):
    run = make_run()
    (run.folder / name).unlink()
    with pytest.raises(AtomloomError, match=re.escape(name)):
        write_report(run.inputs, run.folder / "report.html")
    assert not (run.folder / "report.html").exists()


def test_the_template_travels_with_the_package():
    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["atomloom.reports"]
    folder = Path(html.__file__).parent
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    others = {p for p in folder.iterdir() if p.is_file() and p.suffix != ".py"}
    assert others == shipped != set()
    names = {re.split(r"[<>=\[ ]", entry)[0] for entry in project["project"]["dependencies"]}
    assert {"jinja2", "matplotlib", "pandas", "pyarrow"} <= names
