"""A tree counted again and again is counted right, whatever happened to it meanwhile."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from atoll import errors
from atoll.snapshot.records import Usage
from atoll.snapshot.tree import Tree, measure

LONG_AGO_NS = 1_000_000_000


def aged(root: Path) -> None:
    """As if nothing had happened lately: what is counted now may be remembered."""
    for folder, _, _ in os.walk(root, topdown=False):
        os.utime(folder, ns=(LONG_AGO_NS, os.stat(folder).st_mtime_ns % LONG_AGO_NS))


def test_files_folders_and_links_are_inodes(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_bytes(b"x" * 10_000)
    (tmp_path / "a/again").hardlink_to(tmp_path / "a/file")
    (tmp_path / "a/b/link").symlink_to("/etc")
    found = measure(tmp_path)
    assert found.inodes == 5
    assert found.bytes >= 10_000
    with pytest.raises(errors.NotFound, match="gone"):
        measure(tmp_path / "gone")


def test_a_folder_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/one").write_bytes(b"x" * 5000)
    aged(tmp_path)
    tree = Tree(tmp_path)
    first = tree.count()
    read: list[str] = []
    scandir = os.scandir

    def reading(path: str) -> object:
        read.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", reading)
    assert tree.count() == first
    assert read == ["files"]  # those of a file may grow without a sign
    (tmp_path / "files/one").write_bytes(b"x" * 50_000)
    (tmp_path / "a/b/new").mkdir()
    found = tree.count()
    assert (found.inodes, found.bytes > first.bytes) == (first.inodes + 1, True)
    assert sorted(read[1:]) == ["a/b", "a/b/new", "files"]


def test_what_changed_within_a_tick_is_read_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    before = tree.count()
    times = tmp_path.stat()
    (tmp_path / "new").mkdir()
    os.utime(tmp_path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tree.count().inodes == before.inodes + 1


@pytest.mark.parametrize("seed", range(8))
def test_any_changes_are_counted_as_if_for_the_first_time(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tree = Tree(tmp_path)
    folders = [tmp_path]
    for step in range(60):
        folder = chance.choice(folders)
        name = folder / f"n{chance.randrange(6)}"
        what = chance.randrange(5)
        if what == 0 and not name.exists():
            name.mkdir()
            folders.append(name)
        elif what == 1 and not name.is_dir():
            name.write_bytes(b"x" * chance.randrange(20_000))
        elif what == 2 and name.is_dir():
            shutil.rmtree(name)
            folders = [one for one in folders if one.is_dir()]
        elif what == 3 and name.is_file():
            name.unlink()
        elif what == 4 and name.is_dir():
            name.rename(folder / f"moved{step}")
            folders = [one for one in folders if one.is_dir()]
        if chance.random() < 0.3:
            aged(tmp_path)
        assert tree.count() == measure(tmp_path)


def test_a_tree_deeper_than_any_path_is_counted_as_far_as_it_goes(tmp_path: Path) -> None:
    name = "d" * 200
    fd = os.open(tmp_path, os.O_RDONLY)
    opened = [fd]
    try:
        for _ in range(25):
            os.mkdir(name, dir_fd=opened[-1])
            opened.append(os.open(name, os.O_RDONLY, dir_fd=opened[-1]))
        found = measure(tmp_path)
        assert isinstance(found, Usage)
        assert 15 < found.inodes < 26
        for parent in reversed(opened[:-1]):
            os.rmdir(name, dir_fd=parent)
    finally:
        for one in opened:
            os.close(one)
