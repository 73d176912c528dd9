"""Mutation testing: small errors, written into a copy of the package one at a time; a test should fail.

    python tests/mutants.py [ROOM ...] [--count 16] [--seed 1] [--only FILE] [--survivors] [--jobs 1]

**What is tried.** Sites come from the syntax trees of the rooms in `ROOMS`: comparisons, arithmetic,
`and`/`or`, `not`, constants (0 to 1, n to n + 1, 2x of a fraction), axes, reductions (min and max, sum and
mean, any and all), `continue` and `break`, the first two arguments of a call, conditions, statements left
out. Rooms take turns, and within a room every site is as likely as any other, by a fixed seed. `NAMED`
adds errors at the joints of the pipeline, which were once noticed by no test.

**What is left out**, since it determines no result: what stands in a message (log, error, f-string),
annotations, decorators, `__repr__`; statements about time, threads, caches, sizes of blocks and CUDA
(`ABOUT_COST`), which change how long a result takes; files that need a GPU or several processes
(`ELSEWHERE`).

**Which tests.** Those that import the function or its module, or are called like it, come first, then those
that import a module which does, the others of the room, and those where stages meet (`JOINTS`). Tests that
start Snakemake are left out. Slow tests, and more files than the likeliest few (`MOST`), meet only survivors
that are tried again. A test that fails must pass without the error: all of them are run so at the end.

The outcome is `tests/mutants.json`: how many were killed, room by room, and the survivors, each with a reason
why no test can notice it, once somebody has written one. Trying some rooms renews what is said of these;
`--survivors` tries again those without a reason; `--only` tries any file and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("workflow/atomloom")
OUTCOME = ROOT / "tests" / "mutants.json"

ROOMS = ("structures", "readers", "graphs", "data", "inference", "training", "stages")
JOINED = "joints"
"""Stands for `NAMED` where rooms are named."""
PARTS = (JOINED, *ROOMS)
ELSEWHERE = (
    "training/cuda_graphs.py",
    "training/distributed.py",
    "training/clock.py",
    "training/logging/",
    "data/memory.py",
    "readers/downloads.py",
)
"""Needs a GPU, several processes or a network, or tells time and memory."""
JOINTS = (
    "tests/unit/stages/test_what_stages_write.py",
    "tests/unit/stages/test_joining.py",
    "tests/unit/stages/test_train_from_disk.py",
    "tests/unit/test_api.py",
)
"""Tests that run several stages one after another."""
PRELOADED = ("torch", "lightning_fabric", "numba", "pandas", "pyarrow.parquet", "zarr", "scipy")
PRELOADED += ("ase.io", "ase.build", "ase.calculators.calculator", "pymatgen.core")
"""Imported once, before a process is forked for each mutation."""

GENERATED = (".venv", ".snakemake", ".mypy_cache", ".hypothesis", "results", "store", "logs")
"""Folders of the root that are not copied."""
OURS = ("atomloom", "tests")
"""Packages that are imported from the copy."""
BROKEN = 70
"""Exit code of a process in which pytest could not run."""
MOST = 8
MANY = 24
"""Files of tests that a mutation meets at most, the likeliest; and that a survivor meets when it is tried again."""

SPEAKING = {"log", "warn", "print", "format_exc"}
WORDS = {"where", "todo", "reason", "text"}
"""Keyword arguments that are told."""
ABOUT_COST = re.compile(
    r"\b(time|perf_counter|monotonic|seconds|threads?|set_num_threads|prefetch|pin_memory|non_blocking"
    r"|cache|collect|empty_cache|block|BLOCK\w*|ROW_GROUP|nbytes|cuda)\b"
)
SYMMETRIC = {"min", "max", "minimum", "maximum", "array_equal", "logical_and", "logical_or", "gcd"}
UNORDERED = SYMMETRIC | {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "zip", "cast"}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
TWINS = [("min", "max"), ("minimum", "maximum"), ("nanmin", "nanmax"), ("argmin", "argmax")]
TWINS += [("any", "all"), ("floor", "ceil"), ("zeros", "ones"), ("amin", "amax")]
CALLS = {a: b for pair in TWINS for a, b in (pair, pair[::-1])}
METHODS = CALLS | {"sum": "mean", "mean": "sum"}


@dataclass(frozen=True)
class Mutation:
    """One error in one file."""

    file: str
    """Path in the package."""
    line: int
    function: str
    """The function it stands in, with its class."""
    kind: str
    before: str
    after: str
    start: int
    """First byte of what is replaced."""
    end: int

    def __str__(self) -> str:
        """One line of a log."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file}:{self.line} {self.function} [{self.kind}] {before} -> {after}"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation."""

    killed: bool
    by: str
    """The test that failed; empty where the package could not be imported."""
    seconds: float


# --- sites ----------------------------------------------------------------------------------------


class _Sites(ast.NodeVisitor):
    """Collects the mutations of a module."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.found: list[Mutation] = []
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._scope: list[str] = []
        self._functions = 0

    # --- where nothing is tried ---

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scope.append(node.name)
        self._visit_all(node.body)
        self._scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        self._scope.append(node.name)
        self._functions += 1
        self._visit_all([*node.args.defaults, *node.args.kw_defaults, *node.body])
        self._functions -= 1
        self._scope.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.value])

    def visit_arguments(self, node: ast.arguments) -> None:
        self._visit_all([*node.defaults, *node.kw_defaults])

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg in WORDS:
            return
        if node.arg in ("axis", "dim") and (other := _other_axis(node.value)):
            self._add("axis", node.value, other)
        else:
            self.visit(node.value)

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit(self, node: ast.AST) -> None:
        """Go on, unless it is a statement about cost."""
        simple = isinstance(node, ast.stmt) and not hasattr(node, "body")
        if simple and ABOUT_COST.search(self._text(node)):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        super().visit(node)

    # --- expressions ---

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, operator in enumerate(node.ops):
            other = [*node.ops]
            other[place] = COMPARISONS[type(operator)]()
            self._add("comparison", node, ast.Compare(node.left, other, node.comparators))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (ast.JoinedStr, ast.List)
        plain = [n.value for n in (node.left, node.right) if isinstance(n, ast.Constant)]
        of_text = any(isinstance(value, str | bytes) for value in plain) or any(
            isinstance(n, texts) for n in (node.left, node.right)
        )
        if type(node.op) in ARITHMETIC and not of_text:
            other = ARITHMETIC[type(node.op)]()
            self._add("arithmetic", node, ast.BinOp(node.left, other, node.right))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add("and, or", node, ast.BoolOp(other, node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.UAdd):
            self._add("sign, not", node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("constant", node, str(not value))
        elif isinstance(value, int):
            self._add("constant", node, str(value + 1))
        elif isinstance(value, float):
            self._add("constant", node, repr(2 * value or 1.0))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        is_method = isinstance(function, ast.Attribute)
        name = getattr(function, "attr", getattr(function, "id", ""))
        if name in SPEAKING or name.endswith("Error"):
            return
        if other := (METHODS if is_method else CALLS).get(name):
            new = ast.Attribute(function.value, other) if is_method else ast.Name(other)
            self._add("twin", function, new)
        first = node.args[:2]
        if (
            len(first) == 2
            and name not in UNORDERED
            and not any(isinstance(argument, ast.Starred) for argument in first)
            and ast.dump(first[0]) != ast.dump(first[1])
        ):
            swapped = [first[1], first[0], *node.args[2:]]
            self._add("arguments", node, ast.Call(function, swapped, node.keywords))
        self.generic_visit(node)

    # --- statements ---

    def visit_If(self, node: ast.If) -> None:
        if not ABOUT_COST.search(self._text(node.test)):
            self._negate(node.test)
            self.visit(node.test)
        self._visit_all([*node.body, *node.orelse])

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add("loop", node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self._add("loop", node, "continue")

    def visit_Expr(self, node: ast.Expr) -> None:
        function = node.value.func if isinstance(node.value, ast.Call) else None
        name = getattr(function, "attr", getattr(function, "id", ""))
        if function is not None and name not in SPEAKING:
            self._add("statement", node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add("statement", node, "pass")
        if type(node.op) in ARITHMETIC:
            other = ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
            self._add("arithmetic", node, ast.unparse(other))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, ast.Subscript | ast.Attribute) for target in node.targets):
            self._add("statement", node, "pass")
        self.generic_visit(node)

    # --- text ---

    def _at(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column

    def _text(self, node: Any) -> str:
        start = self._at(node.lineno, node.col_offset)
        return self.source[start : self._at(node.end_lineno, node.end_col_offset)].decode()

    def _negate(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.UnaryOp) or len(getattr(test, "ops", "..")) > 1:
            self._add("condition", test, f"(not ({self._text(test)}))")

    def _add(self, kind: str, node: Any, after: ast.AST | str) -> None:
        if not self._functions:
            return
        if isinstance(after, ast.AST):
            after = f"({ast.unparse(ast.fix_missing_locations(after))})"
        start = self._at(node.lineno, node.col_offset)
        end = self._at(node.end_lineno, node.end_col_offset)
        scope = ".".join(self._scope)
        before = self._text(node)
        self.found.append(Mutation(self.file, node.lineno, scope, kind, before, after, start, end))


def _compiles(package: Path, mutation: Mutation) -> bool:
    try:
        compile(mutated((package / mutation.file).read_bytes(), mutation), mutation.file, "exec")
    except SyntaxError:
        return False
    return True


def _other_axis(node: ast.expr) -> str:
    """0 of 1, 1 of 0, 0 of -1; empty where it is another."""
    return {"0": "1", "1": "0", "-1": "0"}.get(ast.unparse(node), "")


def sites(file: str, source: bytes) -> list[Mutation]:
    """All mutations of a module, in the order of its text."""
    found = _Sites(file, source)
    found.visit(ast.parse(source))
    return found.found


def mutated(source: bytes, mutation: Mutation) -> bytes:
    """A module with the error in it."""
    return source[: mutation.start] + mutation.after.encode() + source[mutation.end :]


def sample(package: Path, where: str, count: int, seed: int) -> list[Mutation]:
    """Mutations of a room or a file by chance, no more than one on a line."""
    path = package / where
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    names = [file.relative_to(package).as_posix() for file in files]
    found = [
        site
        for name in names
        if name == where or not name.startswith(ELSEWHERE)
        for site in sites(name, (package / name).read_bytes())
    ]
    random.Random(f"{seed} {where}").shuffle(found)
    lines = {(site.file, site.line): site for site in reversed(found)}
    drawn = (site for site in found if lines[site.file, site.line] is site)
    return list(itertools.islice((site for site in drawn if _compiles(package, site)), count))


# --- errors at the joints -------------------------------------------------------------------------

NAMED: dict[str, tuple[str, str]] = {
    "forces are joined by place in the chunk, not by record": (
        "record=first + converted.record.astype(np.int64)",
        "record=first + np.arange(len(converted.record))",
    ),
    "components of stress in another order": ("= (0, 4, 8, 5, 2, 1)", "= (0, 4, 8, 1, 2, 5)"),
    "the index's histogram of neighbours is the last chunk's": (
        "_add_counts(\n            neighbors, _neighbor",
        "_add_counts(\n            np.zeros(1, dtype=np.int64), _neighbor",
    ),
    "the plateau rule looks at the training loss": (
        "plateau.see(scores.error)",
        "plateau.see(train_loss)",
    ),
    "structures are drawn by errors of whole energies": (
        "(output.energy.detach() - batch.targets[:, 0]) / batch.node_ptr.diff()",
        "output.energy.detach() - batch.targets[:, 0]",
    ),
    "each process validates with its own batch-norm statistics": (
        "share_from_first(self.fabric, self.model.buffers())",
        "pass",
    ),
    "room for one window out of core": (
        "2 * (window + batch) + source.reading",
        "(window + batch) + source.reading",
    ),
    "a window of the whole budget": (
        "(budget - source.reading) // 2 - batch",
        "(budget - source.reading) - batch",
    ),
    "the student's drift with the other sign": ("total[-1] - total[0]", "total[0] - total[-1]"),
    "the student's drift of all atoms": (
        "(total[-1] - total[0]) / len(atoms)",
        "(total[-1] - total[0])",
    ),
    "calibration in 10 bins": ("CALIBRATION_BINS = 15", "CALIBRATION_BINS = 10"),
    "a chunk one record longer than the max": ("count >= max_size", "count > max_size"),
    "a chunk one record longer than the min": (
        "count >= min_size and closes",
        "count > min_size and closes",
    ),
}
"""Error -> the text it stands for, once in the package, and what stands there instead."""


def named(package: Path) -> list[Mutation]:
    """The named errors, with their places.

    Raises:
        LookupError: if the text of one is not there, or is there twice: then it wants to be written anew.
    """
    sources = {path: path.read_bytes() for path in sorted(package.rglob("*.py"))}
    found = []
    for name, (before, after) in NAMED.items():
        places = [
            (path, match.start())
            for path, source in sources.items()
            for match in re.finditer(re.escape(before.encode()), source)
        ]
        if len(places) != 1:
            raise LookupError(f"`{name}`: its text stands in {len(places)} places: {before!r}")
        path, start = places[0]
        line = sources[path][:start].count(b"\n") + 1
        file = path.relative_to(package).as_posix()
        end = start + len(before.encode())
        found.append(Mutation(file, line, _function_at(sources[path], line), name, before, after, start, end))  # fmt: skip
    return found


def _function_at(source: bytes, line: int) -> str:
    """The innermost function around a line; empty where there is none."""
    kinds = (ast.FunctionDef,)
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return max(around, key=lambda node: node.lineno).name if around else ""


# --- tests ----------------------------------------------------------------------------------------


def _imports(path: Path) -> set[str]:
    """Modules of atomloom that a file imports, and what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atomloom"):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("atomloom")}
    return found


class Tests:
    """Files of tests, and which of them may notice a mutation."""

    def __init__(self, root: Path) -> None:
        files = sorted((root / "tests").rglob("test_*.py"))
        names = {path.relative_to(root).as_posix(): path for path in files}
        self._length = {name: path.stat().st_size for name, path in names.items()}
        self._imports = {
            name: _imports(path)
            for name, path in names.items()
            if not name.startswith("tests/workflow/") and path.stem != "test_mutants"
        }
        package = root / PACKAGE
        self._users: dict[str, set[str]] = {}
        for path in package.rglob("*.py"):
            for name in _imports(path):
                self._users.setdefault(name, set()).add(_module(path.relative_to(package)))

    def users(self, file: Path) -> set[str]:
        """Modules that import that of a file."""
        return self._users.get(_module(file), set())

    def of(self, mutation: Mutation, most: int = MOST) -> list[str]:
        """Those that may notice a mutation, the likeliest and shortest first, and no more than `most`."""
        module = _module(Path(mutation.file))
        function = f"{module}.{mutation.function.partition('.')[0]}"
        room, stem = mutation.file.split("/")[0], Path(mutation.file).stem.removesuffix("s")
        ranked = []
        for name, imports in self._imports.items():
            called = [word.removesuffix("s") for word in Path(name).stem.split("_")]
            near = 8 * (function in imports) + 4 * (module in imports) + 4 * (stem in called)
            near += 2 * bool(self.users(Path(mutation.file)) & imports)
            near += 3 * (Path(name).parent.name == room) + (name in JOINTS)
            if near:
                ranked.append((-near, self._length[name], name))
        return [name for _, _, name in sorted(ranked)[:most]]


def _module(path: Path) -> str:
    return "atomloom." + path.with_suffix("").as_posix().replace("/", ".")


class _Watch:
    """Notes which test runs and which failed, and gives each so many seconds of the processor."""

    def __init__(self, note: Path, seconds: float) -> None:
        self.note, self.seconds = note, seconds
        self.failed: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.note.write_text(nodeid)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.note.write_text("\n".join(dict.fromkeys(self.failed)))


def run_tests(
    root: Path, tests: Sequence[str], marks: str = "", seconds: float = 60.0, first: bool = True
) -> tuple[int, list[str]]:
    """Run tests on a copy in a process of its own.

    Args:
        root: the copy's folder.
        tests: files or single tests.
        marks: which of them, as of pytest's `-m`.
        seconds: of the processor for each test.
        first: whether the first that fails ends it.

    Returns:
        pytest's exit code, or minus the number of the signal that ended it; tests that failed, or under
        which the process ended.
    """
    note = root / ".running"
    note.write_text("")
    child = os.fork()
    if not child:
        code = BROKEN
        try:
            os.setpgid(0, 0)
            os.chdir(root)
            where = [str(root), str(root / PACKAGE.parent)]
            sys.path[:] = [*where, *(p for p in sys.path if Path(p or ".") != ROOT / "tests")]
            for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
                del sys.modules[name]
            os.environ["PYTHONPATH"] = os.pathsep.join(reversed(where))
            with open(root / ".log", "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root)]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # preloaded
            options += ["-x"] if first else []
            if marks:
                options += ["-m", marks]
            code = pytest.main([*options, *tests], plugins=[_Watch(note, seconds)])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = _ended(child, 20 * seconds)
    return code, note.read_text().splitlines()


def _ended(child: int, seconds: float) -> int:
    """Exit code of a process; one that waits for ever is ended, with what it has started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- trying ---------------------------------------------------------------------------------------


class Copy:
    """A throw-away copy of package and tests, in which one file at a time is another."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "copy"
        made = {root / name for name in (*GENERATED, ".git")}

        def generated(where: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(where, name) in made]

        shutil.copytree(root, self.root, ignore=generated)
        self.tests = Tests(self.root)

    def attempt(self, mutation: Mutation, seconds: float, slow: bool) -> Verdict:
        """Write the error, run tests until one fails, and take it back."""
        begun = time.monotonic()
        path = self.root / PACKAGE / mutation.file
        source = path.read_bytes()
        tests = self.tests.of(mutation, most=MANY if slow else MOST)
        if not tests:
            raise LookupError(f"no test for {mutation.file}")
        quick = "not slow and not alone"
        rounds = [(tests[:1], quick), (tests[1:4], quick), (tests[4:], quick)]
        rounds += [(tests, "slow or alone")] if slow else []
        killed, by = False, ""
        try:
            self._write(path, mutated(source, mutation))
            for some, marks in rounds:
                if not some:
                    continue
                code, failed = run_tests(self.root, some, marks, seconds)
                if code in (pytest.ExitCode.INTERNAL_ERROR, BROKEN, -signal.SIGTERM):
                    raise RuntimeError(f"tests cannot run: {(self.root / '.log').read_text()}")
                if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    killed, by = True, failed[0] if failed else ""
                    break
        finally:
            self._write(path, source)
        return Verdict(killed, by, time.monotonic() - begun)

    def _write(self, path: Path, source: bytes) -> None:
        """Write a module, and drop what was compiled of it: time stamps are too coarse to tell."""
        path.write_bytes(source)
        kernels = b"njit" in source or b"kernel" in source  # others may take them in
        for other in self.tests.users(path.relative_to(self.root / PACKAGE)) if kernels else ():
            own = self.root / PACKAGE.parent / other.replace(".", "/")
            for compiled in (own.parent / "__pycache__").glob(f"{own.stem}.*.nb?"):
                compiled.unlink()
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def attempt_all(
    root: Path, mutations: Sequence[Mutation], seconds: float = 60.0, slow: bool = False
) -> Iterator[tuple[Mutation, Verdict]]:
    """The verdict on each mutation, as it comes.

    Raises:
        RuntimeError: at the end, if a test that failed does so without any error.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(root, Path(folder))
        killers: set[str] = set()
        looked_at: set[str] = set()
        for mutation in mutations:
            verdict = copy.attempt(mutation, seconds, slow)
            if verdict.by:
                killers.add(verdict.by)
            elif verdict.killed:
                looked_at.update(copy.tests.of(mutation))
            yield mutation, verdict
        if looked_at and run_tests(copy.root, ["--collect-only", *sorted(looked_at)])[0]:
            raise RuntimeError(f"tests cannot be collected: {(copy.root / '.log').read_text()}")
        if killers:
            code, failed = run_tests(copy.root, sorted(killers), seconds=seconds, first=False)
            if code != pytest.ExitCode.OK:
                raise RuntimeError(f"tests fail without any error: {', '.join(failed)}")


def _in_turns(
    root: Path, mutations: Sequence[Mutation], seconds: float, slow: bool, jobs: int
) -> list[tuple[Mutation, Verdict]]:
    """All verdicts, by so many processes, each with a copy of its own."""
    children = []
    folder = Path(tempfile.mkdtemp(prefix="mutants-of-"))
    for job in range(jobs):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            found = []
            for mutation, verdict in attempt_all(root, mutations[job::jobs], seconds, slow):
                told = f"killed by {verdict.by or 'import'}" if verdict.killed else "SURVIVED"
                print(f"{mutation}: {told} ({verdict.seconds:.0f} s)", flush=True)
                found.append([asdict(mutation), asdict(verdict)])
                (folder / f"{job}.json").write_text(json.dumps(found))
            code = 0
        except (RuntimeError, LookupError) as error:
            print(f"error: {error}", flush=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = [pair for path in sorted(folder.glob("*.json")) for pair in json.loads(path.read_text())]  # fmt: skip
    shutil.rmtree(folder)
    if any(codes):
        raise SystemExit(1)
    return [(Mutation(**mutation), Verdict(**verdict)) for mutation, verdict in found]


Record = dict[str, Any]
"""A survivor, as it is written."""


def _identity(record: Record) -> tuple[str, ...]:
    return tuple(record[name] for name in ("file", "function", "kind", "before", "after"))


def _recorded(room: str, mutation: Mutation) -> Record:
    facts = asdict(mutation)
    return {"room": room} | {key: facts[key] for key in facts if key not in ("start", "end")}


def surviving(package: Path, known: Sequence[Record]) -> list[tuple[str, Mutation]]:
    """Room and mutation of each survivor without a reason, where it stands now.

    Raises:
        LookupError: if the text of one is gone: then its room is to be tried anew.
    """
    of_joints = named(package)
    found = []
    for record in known:
        if record["reason"]:
            continue
        source = (package / record["file"]).read_bytes()
        those = of_joints if record["room"] == JOINED else sites(record["file"], source)
        same = [m for m in those if _identity(_recorded("", m)) == _identity(record)]
        if not same:
            raise LookupError(f"{record['file']} has no longer {record['before']}: try its room")
        nearest = min(same, key=lambda mutation: abs(mutation.line - record["line"]))
        found.append((record["room"], nearest))
    return found


def outcome(
    known: Record, found: Sequence[tuple[str, Mutation, Verdict]], seed: int, again: bool
) -> Record:
    """What is written: counts by room, and the survivors.

    Args:
        known: what was written before.
        found: room, mutation and verdict of those that were tried.
        seed: what they were drawn by.
        again: whether these are survivors that were tried again; else all of a room's.
    """
    rooms = {room: dict(counts) for room, counts in known.get("rooms", {}).items()}
    tried = {room for room, _, _ in found}
    reasons = {_identity(record): record["reason"] for record in known.get("survivors", [])}
    survivors = [
        record
        for record in known.get("survivors", [])
        if record["room"] not in tried or (again and record["reason"])
    ]
    for room in tried:
        of_room = [verdict.killed for own, _, verdict in found if own == room]
        if again:
            rooms[room]["killed"] += sum(of_room)
        else:
            rooms[room] = {"tried": len(of_room), "killed": sum(of_room)}
    for room, mutation, verdict in found:
        if not verdict.killed:
            record = _recorded(room, mutation)
            survivors.append({**record, "reason": reasons.get(_identity(record), "")})
    total, killed = (sum(counts[name] for counts in rooms.values()) for name in ("tried", "killed"))
    return {
        "seed": seed,
        "tried": total,
        "killed": killed,
        "share_killed": round(killed / total, 4),
        "rooms": dict(sorted(rooms.items())),
        "survivors": sorted(survivors, key=lambda own: (own["room"], own["file"], own["line"])),
    }


def _written() -> Record:
    """What was written before; nothing at first."""
    return json.loads(OUTCOME.read_text()) if OUTCOME.exists() else {}


def main() -> None:
    """Try mutations, and say which survive."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(PARTS)}; all unless given")
    add("--count", type=int, default=16, help="how many of each room")
    add("--seed", type=int, default=1)
    add("--only", metavar="FILE", help="a file of the package; nothing is written")
    add("--survivors", action="store_true", help="try again those without a reason")
    add("--jobs", type=int, default=1)
    add("--seconds", type=float, default=60.0, help="of the processor, for one test")
    asked = parser.parse_args()
    if unknown := set(asked.rooms) - {*PARTS}:
        parser.error(f"no room {', '.join(unknown)}")
    package = ROOT / PACKAGE
    if asked.survivors:
        chosen = surviving(package, _written()["survivors"])
    else:
        chosen = []
        for room in [asked.only] if asked.only else asked.rooms or PARTS:
            drawn = sample(package, room, asked.count, asked.seed) if room != JOINED else named(package)  # fmt: skip
            chosen += [(room, mutation) for mutation in drawn]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in PRELOADED:
        __import__(name)
    room_of = {mutation: room for room, mutation in chosen}
    verdicts = _in_turns(ROOT, list(room_of), asked.seconds, asked.survivors, asked.jobs)
    found = [(room_of[mutation], mutation, verdict) for mutation, verdict in verdicts]
    known = {} if asked.only else _written()  # another run may have tried other rooms meanwhile
    content = outcome(known, found, asked.seed, asked.survivors)
    if not asked.only:
        OUTCOME.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{content['killed']} of {content['tried']} killed ({content['share_killed']:.1%})")
    for record in content["survivors"]:
        reason = record["reason"] or "NO REASON YET"
        print(
            f"{record['file']}:{record['line']} {record['before']} -> {record['after']}: {reason}"
        )


if __name__ == "__main__":
    main()
