"""Cost of a file system on which each open and each stat takes 5 ms, for 20,000 structures.

    python -m benchmarks.speed.slow_files [--folder SCRATCH]

A library that is loaded before others (LD_PRELOAD, compiled here by `cc`) counts the calls of each command that
name a file of the project, and lets each wait. Given are, by stage, the calls, the seconds of the processors
without waiting, the seconds in which at least one call waits, and how many times as long the stage takes if none of
these is hidden behind work. Frames are in one file, and in files of one frame each, which are opened whatever a
program does.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.results import Parser, machine, rounded, write_result
from benchmarks.common.structures import extxyz_frame, random_crystals

STRUCTURES = 20_000
ATOMS = 8
MILLISECONDS = 5
STAGES = ("plan", "convert", "graphs", "index", "split")
CONFIG = """
dataset:
  name: slow
  source: data
  target: energy
model: {name: icomformer, width: 32}
"""
CALLS = {
    "open": ("(const char *path, int flags, int mode)", "(path, flags, mode)"),
    "open64": ("(const char *path, int flags, int mode)", "(path, flags, mode)"),
    "openat": ("(int at, const char *path, int flags, int mode)", "(at, path, flags, mode)"),
    "openat64": ("(int at, const char *path, int flags, int mode)", "(at, path, flags, mode)"),
    "stat": ("(const char *path, void *facts)", "(path, facts)"),
    "stat64": ("(const char *path, void *facts)", "(path, facts)"),
    "lstat": ("(const char *path, void *facts)", "(path, facts)"),
    "lstat64": ("(const char *path, void *facts)", "(path, facts)"),
    "fstatat": ("(int at, const char *path, void *facts, int flags)", "(at, path, facts, flags)"),
    "fstatat64": ("(int at, const char *path, void *facts, int flags)", "(at, path, facts, flags)"),
    "access": ("(const char *path, int mode)", "(path, mode)"),
    "fopen": ("(const char *path, const char *mode)", "(path, mode)"),
    "fopen64": ("(const char *path, const char *mode)", "(path, mode)"),
}
"""Function of the C library -> its parameters and arguments."""
HEAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>
static long calls;
static double waited, until;
static pthread_mutex_t one_by_one = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *told;
static int wait_us;
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
__attribute__((constructor)) static void begin(void) {
    root = getenv("SLOW_ROOT"); told = getenv("SLOW_TOLD");
    wait_us = 1000 * atoi(getenv("SLOW_MS") ? getenv("SLOW_MS") : "0");
}
void slow(const char *path) {
    if (!root || !path || !*path || (path[0] == '/' && strncmp(path, root, strlen(root)))) return;
    pthread_mutex_lock(&one_by_one);
    double begun = now(), end = begun + 1e-6 * wait_us;
    calls++;
    if (end > until) { waited += end - (begun > until ? begun : until); until = end; }
    pthread_mutex_unlock(&one_by_one);
    if (wait_us) usleep(wait_us);
}
__attribute__((destructor)) static void end(void) {
    root = NULL;
    FILE *file = told && calls ? fopen(told, "a") : NULL;
    if (file) { fprintf(file, "%ld %f\\n", calls, waited); fclose(file); }
}
"""


def shim(folder: Path) -> Path:
    """The library, compiled."""
    library = folder / "slow.so"
    # By itself, since the declarations of the C library name other types.
    own = ["void slow(const char *); void *dlsym(void *, const char *);"] + [
        f"void *{name}{takes} {{ static void *(*next){takes};"
        f' if (!next) next = dlsym((void *) -1, "{name}");'
        f" slow(path); return next{given}; }}"
        for name, (takes, given) in CALLS.items()
    ]
    (folder / "counted.c").write_text(HEAD)
    (folder / "wrapped.c").write_text("\n".join(own))
    sources = [str(folder / name) for name in ("counted.c", "wrapped.c")]
    flags = ["-shared", "-fPIC", "-O2", "-w", "-fno-builtin", "-o", str(library)]
    subprocess.run(["cc", *flags, *sources, "-ldl"], check=True)
    return library


def write_frames(folder: Path, files: int) -> None:
    """All structures, in a number of files."""
    (folder / "data").mkdir(parents=True)
    crystals = random_crystals(STRUCTURES, ATOMS)
    each = STRUCTURES // files
    for number in range(files):
        frames = map(extxyz_frame, crystals[number * each : (number + 1) * each])
        (folder / "data" / f"{number:05d}.extxyz").write_text("".join(frames))
    (folder / "slow.yaml").write_text(CONFIG)


def measured(folder: Path, library: Path) -> dict[str, dict[str, float]]:
    """Calls, processor seconds, and seconds of waiting, of each stage in a folder with frames."""
    rows = []
    for milliseconds in (0, MILLISECONDS):
        for made in ("results", "store"):
            shutil.rmtree(folder / made, ignore_errors=True)
        rows.append([called(folder, library, stage, milliseconds) for stage in STAGES])
    return {
        stage: {"calls": quick[0], "processor_seconds": quick[2], "waiting_seconds": slow[1]}
        for stage, quick, slow in zip(STAGES, *rows, strict=True)
    }


def called(folder: Path, library: Path, stage: str, milliseconds: int) -> tuple[int, float, float]:
    """Calls, seconds in which at least one waits, and processor seconds of a command."""
    told = folder / "calls"
    told.unlink(missing_ok=True)
    given = {"SLOW_TOLD": told, "SLOW_ROOT": folder, "SLOW_MS": milliseconds, "LD_PRELOAD": library}
    workers = ["--workers", "1"] if stage in ("convert", "graphs") else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        # -P, as of a command that is installed: the folder is not one in which Python looks for modules.
        [sys.executable, "-P", "-m", "atomloom", stage, "--config", "slow.yaml", *workers],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in given.items()},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [line.split() for line in told.read_text().splitlines()]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return sum(int(row[0]) for row in rows), sum(float(row[1]) for row in rows), seconds


def summed(stages: dict[str, dict[str, float]]) -> dict[str, object]:
    """A table of stages with their sum, and times as long with waiting that nothing hides."""
    whole = {name: sum(one[name] for one in stages.values()) for name in stages["plan"]}
    times = 1 + whole["waiting_seconds"] / whole["processor_seconds"]
    return {"stages": stages, **whole, "times": times}


def main() -> None:
    """Measure, print, write the result."""
    parser = Parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where the scratch folder goes; the system's")
    options = parser.parse_args()
    result = {"structures": STRUCTURES, "atoms": ATOMS, "milliseconds": MILLISECONDS}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        library = shim(Path(scratch))
        for name, files in (("one_file", 1), ("a_file_each", STRUCTURES)):
            folder = Path(scratch).resolve() / name
            write_frames(folder, files)
            result[name] = summed(measured(folder, library))
            print(f"{name:<12} {json.dumps(rounded(result[name]))}", flush=True)
    if options.write:
        write_result("slow_files", rounded(result) | {"machine": machine("numpy")})
    print(
        f"{STRUCTURES:,} structures take {result['one_file']['times']:.2f} times as long where each open and stat "
        f"takes {MILLISECONDS} ms if they are in one file, {result['a_file_each']['times']:.1f} times in a file each"
    )


if __name__ == "__main__":
    main()
