"""Submission of a job to Slurm, PBS or LSF; prints SYSTEM:ID. Called by Snakemake, see config.yaml."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from atomloom.errors import AtomloomError
from atomloom.pipeline.site import Site, read_site

LOGS = Path(".snakemake/batch_logs")
IDS = {"slurm": r"(\d+)", "pbs": r"(\S+)", "lsf": r"Job <(\d+)>"}
"""Batch system -> the id of a job in what its command prints."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Submit the job script that is the last argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of the rule or the group")
    for name in ("threads", "mem-mb", "minutes", "gpus", "nodes", "tasks-per-node"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("script", type=Path)
    job = parser.parse_args(arguments)
    try:
        site = read_site(Path("config/cluster.yaml"))
    except AtomloomError as error:
        sys.exit(f"submit: {error}")
    LOGS.mkdir(parents=True, exist_ok=True)
    call = COMMANDS[site.batch_system](job, site)
    try:
        told = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"submit: {error}")
    found = re.search(IDS[site.batch_system], told)
    if found is None:
        sys.exit(f"submit: {call[0]} printed no id of a job: {told.strip()[:200]!r}")
    print(f"{site.batch_system}:{found[1]}")


def slurm(job: argparse.Namespace, site: Site) -> list[str]:
    """Call of sbatch; threads are those of all tasks of a node."""
    call = ["sbatch", "--parsable", f"--job-name={job.name}", f"--output={LOGS}/{job.name}-%j.log"]
    call += [f"--nodes={job.nodes}", f"--ntasks-per-node={job.tasks_per_node}"]
    call += [f"--cpus-per-task={max(1, job.threads // job.tasks_per_node)}"]
    call += [f"--mem={job.mem_mb}M", f"--time={job.minutes}"]
    if job.gpus:
        model = f"{site.gpu_model}:" if site.gpu_model else ""
        call += [f"--gres=gpu:{model}{max(1, job.gpus // job.nodes)}"]
    call += [f"--account={site.account}"] if site.account else []
    call += [f"--partition={queue}"] if (queue := queue_of(job, site)) else []
    return [*call, *site.options, str(job.script)]


def pbs(job: argparse.Namespace, site: Site) -> list[str]:
    """Call of qsub, which passes no environment on by itself; its names have 15 characters."""
    one_node(job)
    call = ["qsub", "-V", "-N", job.name[:15], "-j", "oe", "-o", f"{LOGS}/"]
    gpus = f":ngpus={job.gpus}" if job.gpus else ""
    gpus += f":gpu_model={site.gpu_model}" if job.gpus and site.gpu_model else ""
    call += ["-l", f"select=1:ncpus={job.threads}:mem={job.mem_mb}mb{gpus}"]
    call += ["-l", f"walltime={job.minutes // 60:02d}:{job.minutes % 60:02d}:00"]
    call += ["-A", site.account] if site.account else []
    call += ["-q", queue] if (queue := queue_of(job, site)) else []
    return [*call, *site.options, str(job.script)]


def lsf(job: argparse.Namespace, site: Site) -> list[str]:
    """Call of bsub; memory is that of the whole job, with its unit, which LSF 10 understands."""
    one_node(job)
    call = ["bsub", "-J", job.name, "-o", f"{LOGS}/{job.name}-%J.log", "-n", str(job.threads)]
    call += ["-R", "span[hosts=1]", "-R", f"rusage[mem={job.mem_mb}MB/job]"]
    call += ["-M", f"{job.mem_mb}MB", "-W", str(job.minutes)]
    if job.gpus:
        call += [
            "-gpu",
            f"num={job.gpus}" + (f":gmodel={site.gpu_model}" if site.gpu_model else ""),
        ]
    call += ["-P", site.account] if site.account else []
    call += ["-q", queue] if (queue := queue_of(job, site)) else []
    return [*call, *site.options, str(job.script)]


def queue_of(job: argparse.Namespace, site: Site) -> str | None:
    """Partition or queue of a job."""
    return site.gpu_partition if job.gpus else site.partition


def one_node(job: argparse.Namespace) -> None:
    """Refuse a job on several nodes, whose processes only Slurm's srun starts."""
    if job.nodes > 1:
        sys.exit("submit: training.nodes above 1 needs Slurm; elsewhere, start it by torchrun")


COMMANDS = {"slurm": slurm, "pbs": pbs, "lsf": lsf}

if __name__ == "__main__":
    main()
