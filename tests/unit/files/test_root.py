"""A folder as the root of all paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.files import wire
from atoll.files.root import Root, explained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "file").write_text("mine")
    return inside


@pytest.fixture
def root(folder: Path) -> Iterator[Root]:
    fd = os.open(folder, os.O_PATH)
    yield Root(fd)
    os.close(fd)


def content(root: Root, path: str) -> bytes:
    with explained(path):
        fd = root.open_file(path)
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize("path", ["file", "/file", "../file", "/../../file", "./file", "//file"])
def test_every_path_begins_at_the_root(root: Root, path: str) -> None:
    assert content(root, path) == b"mine"


@pytest.mark.parametrize("target", ["../secret", "/secret", "/proc/self/root/etc/hostname", "/proc/self/cwd"])
def test_no_link_leads_out(root: Root, folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(errors.NotFound, match="/link"):
        content(root, "link")


def test_a_link_inside_is_followed_from_the_root(root: Root, folder: Path) -> None:
    (folder / "link").symlink_to("/file")
    assert content(root, "link") == b"mine"
    assert root.stat("link", follow=False).kind == wire.SYMLINK
    assert root.stat("link", follow=False).link == b"/file"


@pytest.mark.timeout(10)
def test_a_fifo_is_never_opened(root: Root, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with pytest.raises(errors.FailedPrecondition, match="no regular file"):
        content(root, "fifo")
    with pytest.raises(errors.FailedPrecondition, match="no regular file"):
        root.open_for_writing("fifo", mode=0o600, append=False)
    assert {entry.name: entry.kind for entry in root.list("")}[b"fifo"] == wire.OTHER


def test_writing_keeps_what_a_file_is_and_makes_one_that_is_not(root: Root, folder: Path) -> None:
    (folder / "file").chmod(0o640)
    for path, append in (("file", True), ("new", False)):
        os.close(root.open_for_writing(path, mode=-1, append=append))
    assert (folder / "file").stat().st_mode & 0o777 == 0o640
    assert (folder / "file").read_text() == "mine"
    os.close(root.open_for_writing("file", mode=-1, append=False))
    assert (folder / "file").read_text() == ""
    (folder / "nowhere").symlink_to("/not/there")
    with pytest.raises(errors.Aborted):
        root.open_for_writing("nowhere", mode=0o600, append=False)


def test_folders_are_made_and_removed(root: Root, folder: Path) -> None:
    root.make_folders("a/b/c")
    root.make_folders("a/b/c")
    (folder / "a" / "b" / "link").symlink_to("..")
    with explained("a"), pytest.raises(OSError, match="not empty"):
        root.remove("a", recursive=False)
    root.remove("a", recursive=True)
    assert os.listdir(folder) == ["file"]
    for path in ("", "/", ".", ".."):
        with pytest.raises(errors.InvalidArgument):
            root.remove(path, recursive=True)


def test_what_the_kernel_only_shows_as_files_is_refused() -> None:
    fd = os.open("/proc", os.O_PATH)
    try:
        with pytest.raises(errors.FailedPrecondition, match="procfs"):
            Root(fd).open_file("uptime")
        with pytest.raises(errors.FailedPrecondition, match="procfs"):
            list(Root(fd).list("/"))
    finally:
        os.close(fd)
