"""The tests that documents name are there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PROMISED = ("reliability.md", "threat-model.md")
"""Documents whose tables promise a test a row."""


@functools.cache
def names(path: Path) -> frozenset[str]:
    """The tests of a file."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(one.name for one in ast.walk(tree) if isinstance(one, kinds) and one.name.startswith("test_"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_tests_named_exist(path: Path) -> None:
    named = TEST.findall(path.read_text())
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (REPOSITORY / file).is_file() or name not in names(REPOSITORY / file)
    ]
    assert missing == []


@pytest.mark.parametrize("document", PROMISED)
def test_every_row_has_its_test(document: str) -> None:
    """Of the tables that have such a column."""
    rows: list[str] = []
    has_tests = False
    for line in (REPOSITORY / "docs" / document).read_text().splitlines():
        if not line.startswith("|"):
            has_tests = False
        elif "shown by" in line:
            has_tests = True
        elif has_tests and not line.startswith("|---"):
            rows.append(line)
    assert len(rows) > 10
    assert [row for row in rows if not TEST.search(row)] == []
