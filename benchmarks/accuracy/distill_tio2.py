"""Errors and speed of the distillation preset: a small network from GFN1-xTB's labels of the demo's TiO2 frames.

    python -m benchmarks.accuracy.distill_tio2 [--cores N]

Runs config/presets/distill-tio2.yaml by snakemake, which resumes, and takes its result
from the run's own files. Writes benchmarks/results/distill_tio2.json.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.common.results import ROOT, Parser, write_result

PRESET = "config/presets/distill-tio2.yaml"


def main() -> None:
    """Run the preset and write the result file."""
    parser = Parser(__doc__)
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    snakemake = [sys.executable, "-m", "snakemake", "--cores", str(options.cores)]
    subprocess.run([*snakemake, "--configfile", PRESET], cwd=ROOT, check=True)
    runs = (ROOT / "results" / "distill-tio2" / "runs").glob("*/student.json")
    folder = max(runs, key=lambda path: path.stat().st_mtime).parent

    def content(name: str) -> dict:
        return json.loads((folder / name).read_text())

    card, student, metrics = content("run.json"), content("student.json"), content("metrics.json")
    result = {
        "preset": PRESET,
        "frames": card["dataset"],
        "student_against_teacher": student,
        "test": {name: splits["test"] for name, splits in metrics.items()},
        "epochs": card["epochs_run"],
        "train_seconds": card["seconds"],
        "commit": card["code"]["commit"],
        "environment": card["environment"],
    }
    if options.write:
        write_result("distill_tio2", result)
    faster = student["teacher_seconds"] / student["student_seconds"]
    errors = ", ".join(f"{name} {values['mae']:.4f}" for name, values in result["test"].items())
    print(
        f"student of {student['teacher']}: MAE on test frames {errors}; {faster:.0f} times as fast"
    )


if __name__ == "__main__":
    main()
