"""Docstrings of the package make sense with the name hidden, and rates are told by *per*."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "workflow" / "atomloom"

OPENING = re.compile(r"\A(Of|Likewise|What|As|Where|How|Why|Who|Whose|Which|Those|None)\b")
"""First words that need the name in front of them."""

COUNTED = "energy energies eV row rows number numbers edges atoms ms virial record file folder"
OF_EACH = "atom structure epoch step row frame record chunk replica entry target split"
RATE = re.compile(rf"\b({'|'.join(COUNTED.split())}) an? ({'|'.join(OF_EACH.split())})\b")


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Texts that stand alone as statements: of modules, classes, functions, fields, constants."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in node.body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield text


def texts(tree: ast.Module) -> Iterator[str]:
    """Everything in quotes on one line each, docstrings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())


def found(strings: Callable[[ast.Module], Iterator[str]], wrong: re.Pattern) -> list[str]:
    """Places in the package where a text matches a pattern."""
    return [
        f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in strings(ast.parse(path.read_text()))
        if wrong.search(text)
    ]


def test_a_docstring_makes_sense_with_the_name_hidden():
    assert found(docstrings, OPENING) == []


def test_a_rate_is_told_by_per():
    assert found(texts, RATE) == []


def test_what_must_not_be_written_is_found():
    tree = ast.parse('"""Of atoms."""\nX = 1\n"""Energy in eV an\natom."""\n')
    assert list(docstrings(tree)) == ["Of atoms.", "Energy in eV an\natom."]
    assert [bool(OPENING.search(text)) for text in docstrings(tree)] == [True, False]
    assert [bool(RATE.search(text)) for text in texts(tree)] == [False, True]
