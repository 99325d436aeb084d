"""`atoll cp`: files and folders into a container and out of it, and a tar on stdin or stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

from atoll import errors
from atoll.cli import work
from atoll.cli.outcome import say
from atoll.cli.run import interruptible
from atoll.client import Client
from atoll.client.files import Files, OnTransfer, TransferProgress, Transferred

SCRATCH = "/var/tmp"  # noqa: S108 - for what may be larger than memory; the names in it are random and private


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One side of a copy: a path here, or in a container; `-` is a tar on a standard stream."""

    path: str
    container: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`NAME:PATH`, or a local path; one with a `:` in it is written with a `/` before that."""
        name, colon, path = text.partition(":")
        if colon and name and name.count("/") <= 1 and not name.startswith((".", "/")):
            return cls(container=name, path=path or "/")
        return cls(path=text)

    @property
    def is_stream(self) -> bool:
        return not self.container and self.path == "-"


def require(source: Place, target: Place) -> None:
    """Raise `InvalidArgument` unless one side, and only one, is in a container."""
    if bool(source.container) == bool(target.container):
        raise errors.InvalidArgument("cp: one side must be NAME:PATH, and the other a path here or -")


async def copy(client: Client, source: Place, target: Place, *, quiet: bool) -> int:
    async with interruptible():
        container = await work.container_of(client, source.container or target.container)
        with _bar(quiet) as told:
            if target.container:
                done = await _into(container.files, source, target.path, told)
            else:
                done = await _out_of(container.files, source.path, target, told)
    for path in done.skipped:
        say(f"{path}: is neither a file, a folder nor a link; left out")
    return 0


async def _into(files: Files, source: Place, target: str, told: OnTransfer | None) -> Transferred:
    if source.is_stream:
        with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="atoll-cp-") as folder:
            _unpack(folder)
            return await files.upload(folder, target, on_progress=told)
    if (name := _name_of_folder(source.path)) and await _is_folder(files, target):
        target = f"{target.rstrip('/')}/{name}"
    return await files.upload(source.path, target, on_progress=told)


async def _out_of(files: Files, source: str, target: Place, told: OnTransfer | None) -> Transferred:
    if not target.is_stream:
        goal = Path(target.path)
        is_whole = source.endswith("/.")
        if goal.is_dir() and not is_whole and (await files.stat(source)).is_folder:  # noqa: ASYNC240 - one stat
            goal = goal / Path(source).name
        return await files.download(source, goal if target.path != "." else Path.cwd(), on_progress=told)
    if sys.stdout.isatty():
        raise errors.InvalidArgument("cp: a tar is nothing for a terminal; name a path, or use a pipe")
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="atoll-cp-") as folder:
        name = Path(source.rstrip("/.") or "/").name or "root"
        done = await files.download(source, Path(folder, name), on_progress=told)
        with tarfile.open(fileobj=cast("BinaryIO", sys.stdout.buffer), mode="w|") as archive:
            archive.add(Path(folder, name), arcname=name)
        sys.stdout.buffer.flush()
    return done


def _name_of_folder(path: str) -> str:
    """What a local folder is called; empty for a file, and for `FOLDER/.`, which is what is in it."""
    return Path(path).resolve().name if os.path.isdir(path) and not path.endswith("/.") else ""


async def _is_folder(files: Files, path: str) -> bool:
    try:
        return (await files.stat(path)).is_folder
    except errors.NotFound:
        return False


def _unpack(folder: str) -> None:
    """The tar on standard input, whose names and links may not lead out of the folder."""
    if sys.stdin.isatty():
        raise errors.InvalidArgument("cp -: nothing comes from a terminal; name a path, or use a pipe")
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
            for member in archive:
                _require_inside(member, folder)
                archive.extract(member, folder, set_attrs=not member.issym())
    except tarfile.TarError as error:
        raise errors.InvalidArgument(f"cp -: what comes on standard input is no tar: {error}") from None


def _require_inside(member: tarfile.TarInfo, folder: str) -> None:
    """Raise `InvalidArgument` for a member that would be made outside of the folder, by its name or a link."""
    parts = Path(member.name).parts
    place = os.path.realpath(Path(folder, member.name).parent)
    is_outside = os.path.commonpath([place, os.path.realpath(folder)]) != os.path.realpath(folder)
    if ".." in parts or member.name.startswith("/") or is_outside:
        raise errors.InvalidArgument(f"cp -: {member.name[:200]!r} leads out of the archive")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise errors.InvalidArgument(f"cp -: {member.name[:200]!r} is neither a file, a folder nor a link")
    if member.islnk() and (".." in Path(member.linkname).parts or member.linkname.startswith("/")):
        raise errors.InvalidArgument(f"cp -: {member.name[:200]!r} is a link that leads out of the archive")


@contextlib.contextmanager
def _bar(quiet: bool) -> Generator[OnTransfer | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def told(now: TransferProgress) -> None:
            files = f"{now.files}/{now.total_files} files" if now.total_files else f"{now.files} files"
            progress.update(bar, description=files, total=now.total_size or None, completed=now.size)

        yield told
