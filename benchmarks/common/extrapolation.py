"""Straight lines through costs measured at small sizes, what they come to at large ones, and the tables of that.

`docs/scale.md` shows the tables; a test holds it to `benchmarks/results/growth.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TARGETS = 1_000_000, 10_000_000, 100_000_000
MEANS = 1_000, 20_000, 100_000
"""Records per chunk that the page recommends for each of them."""
STAGES = "plan", "convert", "graphs", "index", "split", "load_memory", "load_disk"


def line(rows: Sequence[Mapping[str, Any]], size: str, *keys: str) -> tuple[float, float]:
    """Intercept and slope of a cost by the last two sizes where it was measured; neither is negative.

    A cost that was measured once is taken as in proportion.
    """

    def cost(row: Mapping[str, Any]) -> float:
        value: Any = row
        for key in keys:
            value = value[key]
        return float(value)

    known = [row for row in rows if keys[0] in row]
    large = known[-1]
    if len(known) == 1:
        return 0.0, cost(large) / large[size]
    small = known[-2]
    slope = max(0.0, (cost(large) - cost(small)) / (large[size] - small[size]))
    return max(0.0, cost(large) - slope * large[size]), slope


def extrapolate(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Costs at each of TARGETS, from the measured parts of a result."""
    rows, evaluated = found["stages"]["rows"], found["results"]["rows"]
    epoch = found["epoch"]

    def at(count: float, table: Sequence[Mapping[str, Any]], size: str, *keys: str) -> float:
        first, slope = line(table, size, *keys)
        return first + slope * count

    out = []
    for count, mean in zip(TARGETS, MEANS, strict=True):
        chunks = count // mean
        row: dict[str, Any] = {"structures": count, "mean": mean, "chunks": chunks}
        for name in STAGES:
            row[name] = {"seconds": at(count, rows, "structures", name, "seconds")}
            if name not in ("convert", "graphs"):  # whose jobs know their own chunk only
                row[name]["mb"] = at(count, rows, "structures", name, "mb")
        for name in ("convert", "graphs"):
            row[name]["mb"] = at(mean, found["chunk"]["rows"], "structures", name, "mb")
        row["order"] = {
            "seconds": count * epoch["seconds"] / epoch["structures"],
            "mb": count * epoch["peak_bytes_per_structure"] / 1e6,
        }
        row["dag"] = {
            unit: at(chunks, found["dag"]["rows"], "chunks", unit) for unit in ("seconds", "mb")
        }
        row["look_seconds"] = at(count, found["files"]["rows"], "files", "look_seconds")
        row["bytes"] = {
            name: at(count, rows, "structures", f"{name}_bytes")
            for name in ("structure", "graph", "result")
        }
        row["bytes"] |= {
            name: at(count, evaluated, "structures", "bytes", name)
            for name in evaluated[0]["bytes"]
        }
        # Two shards a chunk; a log and a time of each of its two jobs.
        row["files"] = 2 * chunks
        row["log_files"] = 4 * chunks
        out.append(row)
    return out


# --- tables ---------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Time in a unit that suits it."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{digits(seconds / length)} {unit}"
    return f"{digits(seconds)} s"


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{digits(count)} B"


def digits(value: float) -> str:
    """Two digits: no more is known of what was not measured."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.2g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---") + "\n"


PROCESSES = {
    "plan": "`plan`",
    "convert": "`convert`, all jobs; memory of one",
    "graphs": "`graphs`, all jobs; memory of one",
    "index": "`index`",
    "split": "`split`",
    "dag": "Snakemake, until the first job",
    "load_memory": "training, loading: graphs in memory",
    "load_disk": "training, loading: graphs on disk",
    "order": "of it the order of an epoch",
}
BYTES = {
    "structure": "shards of structures",
    "graph": "shards of graphs",
    "result": "plan, index, split",
    "predictions.csv": "`predictions.csv`",
    "predictions.parquet": "`predictions.parquet`",
}


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Tables of the page by name."""
    far = found["extrapolated"]
    million = [f"{row['structures'] // 1_000_000} million" for row in far]
    times = [
        [
            text,
            *(f"{duration(row[name]['seconds'])}, {size(1e6 * row[name]['mb'])}" for row in far),
        ]
        for name, text in PROCESSES.items()
    ]
    kept = [[text, *(size(row["bytes"][name]) for row in far)] for name, text in BYTES.items()]
    kept += [
        ["files of the store", *(f"{row['files']:,}" for row in far)],
        ["logs and times of jobs", *(f"{row['log_files']:,}" for row in far)],
    ]
    last = found["stages"]["rows"]
    growth = [
        [f"{row['structures']:,}"]
        + [
            f"{duration(row[name]['seconds'])}, {size(1e6 * row[name]['mb'])}"
            if name in row
            else "-"
            for name in STAGES
        ]
        for row in last
    ]
    shares = {(r["ranks"], r["structures_per_rank"]): r["ms"] for r in found["epoch"]["shares"]}
    each = sorted({row["structures_per_rank"] for row in found["balance"]["rows"]})
    ranks = sorted({row["ranks"] for row in found["balance"]["rows"]})
    work = {(r["ranks"], r["structures_per_rank"]): r for r in found["balance"]["rows"]}
    return {
        "processes": table(["process", *million], times),
        "bytes": table(["on disk", *million], kept),
        "chunks": table(
            ["setting", *million],
            [
                ["`dataset.chunks.mean`", *(f"{row['mean']}" for row in far)],
                ["chunks", *(f"{row['chunks']:,}" for row in far)],
            ],
        ),
        "files": table(
            ["one file per structure", *million],
            [
                [
                    "looking for changes, at each start",
                    *(duration(row["look_seconds"]) for row in far),
                ]
            ],
        ),
        "measured": table(["structures", *(name.replace("_", ", ") for name in STAGES)], growth),
        "trajectory": table(
            ["frames", "`split`, processor time", "per frame, ms"],
            [
                [
                    f"{row['frames']:,}",
                    duration(row["split"]["seconds"]),
                    digits(1e3 * row["split"]["seconds"] / row["frames"]),
                ]
                for row in found["trajectory"]["rows"]
            ],
        ),
        "balance": table(
            ["structures per rank", *(f"{rank} ranks" for rank in ranks)],
            [
                [
                    str(count),
                    *(
                        f"{work[rank, count]['dealt']:.0%} ({work[rank, count]['in_turn']:.0%})"
                        for rank in ranks
                    ),
                ]
                for count in each
            ],
        ),
        "sharing": table(
            ["sharing a batch, ms", *(f"{rank} ranks" for rank in ranks)],
            [
                [f"{count} structures per rank", *(f"{shares[rank, count]:.2g}" for rank in ranks)]
                for count in sorted({key[1] for key in shares})
            ],
        ),
    }


MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def with_tables(page: str, found: Mapping[str, Any]) -> str:
    """The page with its tables as a result has them."""
    own = tables(found)
    return MARK.sub(lambda match: f"{match[1]}{own[match[2]]}{match[3]}", page)


def named_tables(page: str) -> Iterator[str]:
    """Names of the tables that a page has places for."""
    return (match[2] for match in MARK.finditer(page))
