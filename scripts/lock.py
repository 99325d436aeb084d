#!/usr/bin/env python3
"""Pin the dependencies of pyproject.toml, with hashes, for every Python and machine that Atoll supports.

The resolver (uv) lives in a virtual environment of its own for the time it takes. `lock.py NAME ...` moves the named
packages to their newest release; without names, what is pinned stays pinned as far as pyproject.toml allows.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import venv

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RESOLVER = "uv>=0.5"
# The build backend is needed wherever Atoll is installed from its source, as `make setup` does.
LOCKS = {
    "requirements.lock": ["pyproject.toml", "scripts/build-requirements.in"],
    "requirements-dev.lock": ["pyproject.toml", "--group", "dev"],
}


def main() -> None:
    """Write both lock files."""
    with tempfile.TemporaryDirectory(prefix="atoll-lock-") as folder:
        venv.create(folder, with_pip=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", RESOLVER], check=True)
        constraints: list[str] = []
        for name, inputs in reversed(LOCKS.items()):
            options = [option for package in sys.argv[1:] for option in ("--upgrade-package", package)]
            subprocess.run(
                [
                    f"{folder}/bin/uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
                    "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-header",
                    "--output-file", name, *options, *constraints, *inputs,
                ],
                check=True,
                cwd=REPOSITORY,
            )  # fmt: skip
            constraints = ["--constraint", name]  # what both files name has one version


if __name__ == "__main__":
    main()
