"""Build step: the files of the workflow that are not Python modules go into the package, as `atomloom/project/`.

Everything else about the build is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT = ("Snakefile", "workflow/Snakefile", "workflow/rules", "workflow/report", "envs")
PROJECT += ("profiles", "config", "resources")


class BuildWithProject(build_py):
    """Build of the package with the files that `atomloom init` and the workflow need."""

    def run(self):
        super().run()
        if self.editable_mode:  # the checkout itself is found
            return
        target = Path(self.build_lib, "atomloom", "project")
        shutil.rmtree(target, ignore_errors=True)
        for name in PROJECT:
            for path in [Path(name), *Path(name).rglob("*")]:
                if path.is_file() and path.suffix not in {".py", ".pyc"}:
                    (target / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target / path)


setup(cmdclass={"build_py": BuildWithProject})
