"""A copy of Atoll that is newer, or broken: another version, further migrations of the state database."""

from __future__ import annotations

import shutil
from pathlib import Path

import atoll

VERSION = "9.9.0"
MIGRATION = "CREATE TABLE upgraded (id TEXT PRIMARY KEY); INSERT INTO upgraded SELECT id FROM containers;"
"""What a newer Atoll does to the tables of containers."""
FAILING = MIGRATION + " INSERT INTO upgraded SELECT 'x' FROM containers; INSERT INTO nowhere VALUES (1);"


def copy_of_atoll(folder: Path, *, migration: str) -> tuple[str, ...]:
    """The words before a command that make it run a copy in `folder` whose schema has one migration more."""
    package = folder / "atoll"
    shutil.copytree(Path(atoll.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    _replace(package / "__init__.py", f'__version__ = "{atoll.__version__}"', f'__version__ = "{VERSION}"')
    store = package / "container" / "store.py"
    _replace(store, "CREATE UNIQUE INDEX container_names ON containers (name) WHERE name <> '';\n        \"\"\",\n",
             "CREATE UNIQUE INDEX container_names ON containers (name) WHERE name <> '';\n        \"\"\",\n"
             f"        {migration!r},\n")  # fmt: skip
    return ("/usr/bin/env", f"PYTHONPATH={folder}", "PYTHONDONTWRITEBYTECODE=1")


def _replace(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{path}: does not have {before!r} once"
    path.write_text(text.replace(before, after))
