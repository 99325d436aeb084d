"""The second disk of the guest: the working tree of now."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from tests.guest import image

PARTS = ("src", "tests", "scripts", "pyproject.toml")
BLOCK_BYTES = 4096


def write(target: Path, arguments: list[str], commit: str = "") -> None:
    """The working tree, or a commit, compiled, and the arguments of pytest, as a tar archive that is a disk."""
    with tempfile.TemporaryDirectory(dir=image.FOLDER, prefix="tree-") as name:
        tree = Path(name)
        if commit:
            committed = image.run("git", "archive", f"--output={tree}/commit.tar", commit, *PARTS, cwd=image.REPOSITORY)
            assert not committed, committed
            with tarfile.open(tree / "commit.tar") as archive:
                archive.extractall(tree)
            (tree / "commit.tar").unlink()
        else:
            copy(tree)
        (tree / "guest-arguments").write_text("".join(f"{argument}\n" for argument in arguments))
        image.compile_tree(tree / "src", f"{image.HOME[1:]}/src")
        with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(tree.iterdir()):
                archive.add(path, path.name)
    os.truncate(target, -(-target.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES)


def copy(tree: Path) -> None:
    for part in PARTS:
        source = image.REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / part)
