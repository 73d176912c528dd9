"""Account, partitions, GPU model and time limit of a cluster: `config/cluster.yaml`, beside the workflow.

They belong to the place where jobs run and not to a data set, so they stand in a file of their own,
which no key knows.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from atomloom.config.base import Section
from atomloom.config.mistakes import mistake
from atomloom.config.reading import read_config_file

NAME = r"^[A-Za-z0-9_.,+@-]+$"


class Site(Section):
    """Facts that a cluster wants to be told with every job; null: none, so its own default holds."""

    account: str | None = Field(default=None, pattern=NAME)
    """Account that jobs are charged to."""
    partition: str | None = Field(default=None, pattern=NAME)
    """Partition for jobs without a GPU."""
    gpu_partition: str | None = Field(default=None, pattern=NAME)
    """Partition for jobs with a GPU."""
    gpu_model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.]+$")
    """GPU type as the cluster calls it, such as a100."""
    extra: str | None = None
    """Further options for sbatch (qsub, bsub), as on its command line, for example `--constraint=nvme`."""
    max_runtime: int = Field(default=24 * 60, ge=1, le=1_000_000)
    """Minutes that the cluster gives a job at most: none asks for more, and a training goes on in the next attempt."""
    batch_system: Literal["slurm", "pbs", "lsf"] = "slurm"
    """Batch system to which profiles/cluster-generic submits."""

    @property
    def options(self) -> list[str]:
        """Words of `extra`."""
        return shlex.split(self.extra or "")

    @field_validator("extra")
    @classmethod
    def _quotes_are_closed(cls, value: str | None) -> str | None:
        shlex.split(value or "")  # ValueError otherwise
        return value

    def resources(self, gpus: int) -> dict[str, str]:
        """Resources of a job by the names of Snakemake's executor for Slurm; those not set are left out."""
        named = {
            "slurm_account": self.account,
            "slurm_partition": self.gpu_partition if gpus else self.partition,
            "gpu_model": self.gpu_model if gpus else None,
            "slurm_extra": self.extra,
        }
        return {name: value for name, value in named.items() if value is not None}


def read_site(path: Path) -> Site:
    """Read the file; without one, nothing is set.

    Raises:
        AtomloomError: when the file is no mapping of these keys.
    """
    content = read_config_file(path) if path.exists() else {}
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        known = f"its keys are {', '.join(Site.model_fields)}"
        raise mistake(error, content, Site, str(path), known) from None
