"""The checkpoint file of a container: `<root>/containers/<id>/status`, 0600, replaced atomically.

    write .status-<n>  fsync  rename to status  fsync the folder

After a crash at any point the file holds the old text or the new one, whole. All calls block.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from pathlib import Path

from atoll.linux.files import sync_folder
from atoll.linux.plain import read_small

FILE = "status"
LIMIT_BYTES = 16 << 20
"""More than any checkpoint has."""
_TEMPORARY = ".status-"
_serial = itertools.count(1)


def read_checkpoint(folder: Path) -> bytes:
    """The text; `FileNotFoundError` where none was ever written, another `OSError` for what can be no checkpoint."""
    return read_small(folder / FILE, LIMIT_BYTES)


def write_checkpoint(folder: Path, text: bytes, abandoned: threading.Event | None = None) -> None:
    """Replace the checkpoint; durable when it returns. `OSError` names the path, and the old one stands.

    Once `abandoned` is set the old one stands too: nobody waits for this write any more.
    """
    temporary = folder / f"{_TEMPORARY}{os.getpid()}-{next(_serial)}"
    try:
        _write_durably(temporary, text)
        if abandoned is not None and abandoned.is_set():
            raise TimeoutError(f"{temporary}: the disk took too long")
        _replace(folder, temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write_durably(path: Path, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(text)
        file.flush()
        os.fsync(fd)


def _replace(folder: Path, temporary: Path) -> None:
    """Rename, then make the rename durable; where the disk refuses that, put the old text back."""
    target = folder / FILE
    try:
        before = read_checkpoint(folder)
    except OSError:  # there is none, or none that could be put back
        before = None
    os.rename(temporary, target)
    try:
        sync_folder(folder)
    except OSError:
        if before is None:
            target.unlink(missing_ok=True)
        else:
            _write_durably(temporary, before)
            os.rename(temporary, target)
        raise


def delete_checkpoint(folder: Path) -> None:
    """Take the checkpoint away: renamed to a sibling of the folder, then unlinked. Idempotent."""
    aside = folder.with_name(f"{folder.name}.del-{FILE}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder / FILE, aside)
    aside.unlink(missing_ok=True)


def drop_temporaries(folder: Path) -> None:
    """Remove what writes that a crash cut short have left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Move an unreadable checkpoint to a name of its own, `status.unreadable[-n]`, and keep it there."""
    for attempt in itertools.count():
        kept = folder / (f"{FILE}.unreadable" + (f"-{attempt}" if attempt else ""))
        if not os.path.lexists(kept):
            os.rename(folder / FILE, kept)
            sync_folder(folder)
            return kept
    raise AssertionError("itertools.count ended")
