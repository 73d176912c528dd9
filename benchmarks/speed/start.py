"""Start of a job: time of commands on next to no data, over that of an interpreter that does nothing.

    python -m benchmarks.speed.start [--before CHECKOUT] [--repeats N]

The commands are those of the rules, for one chunk of eight crystals, and some that people call; each runs in its
own process with compiled kernels and bytecode cached, in turn with the others and, with `--before`, with the same of
another checkout. Figures are medians; milliseconds of the processors are what a busy machine changes least.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.results import ROOT, Parser, machine, rounded, write_result
from benchmarks.common.structures import extxyz_frame, random_crystals

STRUCTURES = 8
ATOMS = 8
REPEATS = 7
CONFIG = """
dataset: {name: start, source: data, target: energy}
split: {ratios: [0.5, 0.25, 0.25]}
model: {name: icomformer, width: 32}
training: {epochs: 1}
"""
CONFIGURED = ("--config", "start.yaml")
COMMANDS = {
    "--help": (),
    "runs": ("results",),
    "status": CONFIGURED,
    "plan": CONFIGURED,
    "convert": CONFIGURED,
    "graphs": CONFIGURED,
    "index": CONFIGURED,
    "split": CONFIGURED,
    "evaluate": CONFIGURED,
    "report": CONFIGURED,
}
PER_CHUNK = ("convert", "graphs")


def main() -> None:
    """Measure, print, write the result."""
    parser = Parser(__doc__)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help=f"({REPEATS})")
    options = parser.parse_args()
    checkouts = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: made_in(Path(scratch, name), path) for name, path in checkouts.items()}
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.repeats):
            for name, path in checkouts.items():
                for label, call in calls(folders[name]).items():
                    spent = timed(call, folders[name], path)
                    taken.setdefault((label, name), []).append(spent)
    result: dict[str, object] = {"structures": STRUCTURES, "repeats": options.repeats}
    bare = {name: medians(taken["nothing", name]) for name in checkouts}
    result["nothing"] = dict(zip(("processor_ms", "wall_ms"), bare["now"], strict=True))
    for label in COMMANDS:
        row = {}
        for name in checkouts:
            own = medians(taken[label, name])
            row[name] = {
                kind: value - floor
                for kind, value, floor in zip(
                    ("processor_ms", "wall_ms"), own, bare[name], strict=True
                )
            }
        result[label.strip("-")] = row
        print(
            f"{label:<9}",
            *(f"{name} {one['processor_ms']:7.0f} ms of processor" for name, one in row.items()),
        )
    if options.write:
        write_result(
            "start", rounded(result) | {"machine": machine("numpy", "numba", "pandas", "torch")}
        )


def made_in(folder: Path, checkout: Path) -> Path:
    """A folder with a run that is finished by the program of a checkout, whose caches are then warm."""
    (folder / "data").mkdir(parents=True)
    frames = map(extxyz_frame, random_crystals(STRUCTURES, ATOMS))
    (folder / "data" / "all.extxyz").write_text("".join(frames))
    (folder / "start.yaml").write_text(CONFIG)
    order = ["plan", "convert", "graphs", "index", "split", "train", "evaluate", "report"]
    for stage in order:
        timed(program(stage, *CONFIGURED), folder, checkout)
    return folder


def calls(folder: Path) -> dict[str, list[str]]:
    """What is called, by name."""
    (chunk,) = (path.name.partition(".")[0] for path in (folder / "store/structures").glob("*.zip"))
    found = {"nothing": [sys.executable, "-c", "pass"]}
    for name, arguments in COMMANDS.items():
        found[name] = program(name, *arguments, *(("--chunk", chunk) if name in PER_CHUNK else ()))
    return found


def program(*arguments: str) -> list[str]:
    """A call of the command line, as of the installed command."""
    return [sys.executable, "-P", "-m", "atomloom", *arguments]


def timed(call: list[str], folder: Path, checkout: Path) -> tuple[float, float]:
    """Milliseconds of the processors and of the clock that a call takes."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "workflow"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(call, cwd=folder, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * spent, 1e3 * wall


def medians(taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Medians of both."""
    processor, wall = zip(*taken, strict=True)
    return statistics.median(processor), statistics.median(wall)


if __name__ == "__main__":
    main()
