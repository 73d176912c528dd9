"""Files of the workflow that are not Python modules: Snakefile, rules, environments, profiles, configs, demo data.

In a checkout they lie around the package; an installed package has a copy of them inside (setup.py).
"""

from __future__ import annotations

from pathlib import Path

from atomloom.errors import AtomloomError

SNAKEFILE = "workflow/Snakefile"


def project_folder() -> Path:
    """Folder with `Snakefile`, `workflow/`, `envs/`, `profiles/`, `config/` and `resources/`.

    Raises:
        AtomloomError: when the package was installed without them.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "project", package.parents[1]):
        if (folder / SNAKEFILE).is_file():
            return folder
    raise AtomloomError(
        "the files of the workflow are not there", where=package, todo="install atomloom again"
    )
