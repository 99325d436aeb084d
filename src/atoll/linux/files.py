"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(target: Path, *, mode: int = 0o600) -> Generator[IO[bytes]]:
    """A new file in the folder of `target`, which takes that name behind the work inside; durable when it is left.

    Where the work fails nothing of it is left, and `target` is as it was. Raises `OSError`; blocks.
    """
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".atoll-")
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: what was made, renamed and removed there. Raises `OSError`; blocks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
