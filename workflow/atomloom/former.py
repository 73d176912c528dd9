"""Former names: a module that moved is still found under its old name, with a one-line warning.

Code written for the previous version keeps working with this one; the next version may drop this.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "data.leaks": "data.duplicates",
    "data.opening": "data.placement",
    "data.sharded": "data.on_disk",
    "data.slabs": "data.collate",
    "files": "store.files",
    "forms": "store.forms",
    "graphs.folding": "graphs.orbits",
    "graphs.line": "graphs.line_graph",
    "inspection": "commands.inspection",
    "keys": "store.keys",
    "layout": "pipeline.paths",
    "maintenance": "commands.maintenance",
    "models.chebyshev_kernels": "models.chebyshev.kernels",
    "models.features": "models.common.features",
    "models.layers": "models.common.layers",
    "models.message_passing": "models.common.message_passing",
    "models.painn_kernels": "models.painn.kernels",
    "notebook": "api",
    "order": "pipeline.stage_table",
    "parquet": "store.parquet",
    "plan": "pipeline.plan",
    "potentials.skin": "potentials.verlet_list",
    "progress": "pipeline.progress",
    "quarantine": "pipeline.quarantine",
    "runcard": "pipeline.run_card",
    "shards": "store.shards",
    "stages.bench": "commands.bench",
    "stages.cost": "commands.cost",
    "stages.predict": "commands.predict",
    "structures.boxes": "structures.vacuum",
    "structures.downloads": "readers.downloads",
    "structures.naming": "readers.naming",
    "structures.readers": "readers.registry",
    "structures.readers.aims": "readers.formats.aims",
    "structures.readers.ase_db": "readers.formats.ase_db",
    "structures.readers.ase_json": "readers.formats.ase_json",
    "structures.readers.base": "readers.base",
    "structures.readers.cif": "readers.formats.cif",
    "structures.readers.cif_content": "readers.formats.cif_content",
    "structures.readers.cif_symmetry": "readers.formats.cif_symmetry",
    "structures.readers.cif_tags": "readers.formats.cif_tags",
    "structures.readers.csv_table": "readers.formats.csv_table",
    "structures.readers.deepmd": "readers.formats.deepmd",
    "structures.readers.entries": "readers.entries",
    "structures.readers.extxyz": "readers.formats.extxyz",
    "structures.readers.fitsnap": "readers.formats.fitsnap",
    "structures.readers.jarvis_dict": "readers.formats.jarvis_dict",
    "structures.readers.json_document": "readers.formats.json_document",
    "structures.readers.levels": "readers.levels",
    "structures.readers.ordering": "readers.ordering",
    "structures.readers.outcar": "readers.formats.outcar",
    "structures.readers.plain_json": "readers.formats.plain_json",
    "structures.readers.poscar": "readers.formats.poscar",
    "structures.readers.pymatgen_dict": "readers.formats.pymatgen_dict",
    "structures.readers.runner": "readers.formats.runner",
    "structures.readers.vasp": "readers.formats.vasp",
    "structures.readers.vasprun": "readers.formats.vasprun",
    "structures.readers.xsf": "readers.formats.xsf",
    "structures.sources": "readers.sources",
    "timing": "pipeline.timing",
    "training.batchsize": "training.batch_size",
    "training.certificate": "training.precision_report",
    "training.data": "data.dataset",
    "training.devices": "inference.devices",
    "training.ema": "training.optim.ema",
    "training.globals": "inference.global_features",
    "training.history": "training.logging.history",
    "training.loggers": "training.logging.loggers",
    "training.loop": "training.trainer",
    "training.losses": "training.objectives.losses",
    "training.metrics": "inference.metrics",
    "training.modelfile": "inference.model_file",
    "training.norms": "training.batch_norm",
    "training.optimizers": "training.optim.optimizers",
    "training.potential": "training.objectives.potential",
    "training.predict": "inference.predict",
    "training.references": "inference.scalers.atomic_energies",
    "training.schedules": "training.optim.schedules",
    "training.sharding": "training.distributed",
    "training.state": "training.checkpoint",
    "training.targets": "inference.scalers.target_scaler",
    "training.wholeset": "training.optim.full_batch",
}
"""Former name of a module -> its name, both within the package."""

NAMES = {
    "data.collate": {"Slab": "PackedBatch", "Slicer": "Collator"},
    "data.on_disk": {"ShardedGraphs": "OnDiskGraphs"},
    "data.placement": {"LoaderChoice": "Placement"},
    "graphs.orbits": {"Folding": "Orbits", "fold": "find_orbits", "unfolded": "trivial_orbits"},
    "inference.scalers.atomic_energies": {"EnergyReference": "AtomicEnergies"},
    "inference.scalers.target_scaler": {"Standardizer": "TargetScaler"},
    "pipeline.paths": {"PlannedLayout": "RunPaths"},
    "potentials.verlet_list": {"SkinGraphs": "VerletList"},
    "training.checkpoint": {"SaveTimer": "CheckpointTimer"},
    "training.distributed": {
        "put_together": "unsharded",
        "share_out": "shard_model",
        "whole": "full_state",
    },
    "training.optim.full_batch": {"WholeSet": "FullBatch"},
    "training.precision_report": {"certify": "compare_precisions"},
}
"""Module -> former names in it -> their names."""


class FormerModules(MetaPathFinder, Loader):
    """Finder of the modules of `MODULES`; asked after every other finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != __package__ or name not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=any(m.startswith(f"{name}.") for m in MODULES))

    def exec_module(self, module: ModuleType) -> None:
        """Let `module` answer with the attributes of the module of the present name."""
        package, _, name = module.__name__.partition(".")
        present = import_module(f"{package}.{MODULES[name]}")
        names = NAMES.get(MODULES[name], {})
        warn(module.__name__, present.__name__)
        module.__getattr__ = lambda wanted: getattr(present, names.get(wanted, wanted))  # type: ignore[method-assign] # how a module answers for names it does not have


class FormerName(FutureWarning):
    """Use of a former name."""


def warn(former: str, present: str) -> None:
    """Warn, in one line, that a name has changed."""
    warnings.warn(
        f"{former} is now {present}; the former name will be removed in the next version",
        FormerName,
        stacklevel=3,
    )


@contextmanager
def told_by(say: Callable[[str], None]) -> Iterator[None]:
    """Hand lines on former names to `say`, each once, instead of warning as Python does."""
    told: set[str] = set()
    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.simplefilter("always", FormerName)

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if not issubclass(category, FormerName):
                shown(message, category, *place, **rest)
            elif str(message) not in told:
                told.add(str(message))
                say(str(message))

        warnings.showwarning = show
        yield


def install() -> None:
    """Register the finder of former modules."""
    if not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(FormerModules())
