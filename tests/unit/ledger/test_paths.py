"""Folders as a kind, and the removal of a tree that somebody hostile has written."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.ledger.kind import Entry, Found
from atoll.ledger.paths import DirectoryKind
from atoll.ledger.tree import MAX_DEPTH, mount_id, open_compared, remove_tree


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    blocking = Blocking(2)
    yield blocking
    blocking.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def entry(key: str) -> Entry:
    return Entry(seq=1, owner="box", kind="k", key=key, data={}, entered_at=datetime.now(UTC), boot_id="b")


async def test_a_folder_is_acquired_looked_for_and_released_again_and_again(root: Path, blocking: Blocking) -> None:
    kind = DirectoryKind("sandbox-dir", root, blocking)
    for _ in range(2):
        assert await kind.acquire("box", mode=0o750) == root / "box"
    assert stat.S_IMODE((root / "box").stat().st_mode) == 0o750
    (root / "box" / "file").write_text("x")
    assert await kind.exists(entry("box"))
    assert await kind.scan() == [Found(kind="sandbox-dir", key="box", owner="box")]
    for _ in range(2):
        await kind.release(entry("box"))
    assert not await kind.exists(entry("box"))
    assert await kind.scan() == []


@pytest.mark.parametrize("key", ["..", ".", "a/b", "/etc", "a/../..", "", "a\x00b"])
async def test_a_key_does_not_lead_out(root: Path, blocking: Blocking, key: str) -> None:
    kind = DirectoryKind("d", root, blocking)
    with pytest.raises(errors.InvalidArgument, match="key"):
        await kind.acquire(key)
    with pytest.raises(errors.InvalidArgument, match="key"):
        await kind.release(entry(key))


async def test_what_is_in_the_way_is_not_replaced(root: Path, blocking: Blocking) -> None:
    (root / "file").write_text("x")
    (root / "folder").mkdir()
    with pytest.raises(errors.FailedPrecondition, match="root/file"):
        await DirectoryKind("d", root, blocking).acquire("file")
    with pytest.raises(errors.FailedPrecondition, match="not a folder"):
        await DirectoryKind("d", root, blocking).release(entry("file"))
    assert sorted(os.listdir(root)) == ["file", "folder"]


async def test_scans_see_their_own_sort_only(root: Path, blocking: Blocking) -> None:
    (root / "file").write_text("x")
    (root / "folder").mkdir()
    (root / ".hidden").mkdir()
    (root / "link").symlink_to("folder")
    assert [found.key for found in await DirectoryKind("d", root, blocking).scan()] == ["folder"]
    assert await DirectoryKind("d", root / "nowhere", blocking).scan() == []


def test_links_are_removed_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / "dangling").symlink_to("nowhere")
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").exists()
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(errors.FailedPrecondition, match="not a folder"):
        remove_tree(link)
    assert (outside / "kept").exists()


def test_every_sort_of_file_goes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    os.mkfifo(tree / "a" / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tree}/sock")
    (tree / "closed").mkdir(mode=0)
    (tree / os.fsdecode(b"\xff\xfe\n")).write_text("x")
    remove_tree(tree)
    assert not tree.exists()


def test_a_tree_deeper_than_any_recursion_goes_with_few_open_files(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for depth in range(1500):
        os.mkdir("d", dir_fd=fd)
        if depth % 250 == 0:
            os.close(os.open(f".deep-{depth // 250}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert MAX_DEPTH < 100
    remove_tree(top)
    assert not top.exists()


def test_nothing_to_remove_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nowhere")
    remove_tree(tmp_path / "nowhere" / "deeper")


def test_a_mount_is_told_by_its_id(tmp_path: Path) -> None:
    ids: list[int] = []
    for path in (tmp_path, tmp_path.parent, Path("/proc")):
        fd = os.open(path, os.O_PATH)
        ids.append(mount_id(fd))
        os.close(fd)
    assert ids[0] == ids[1] != ids[2]


def test_without_openat2_the_mounts_of_parent_and_folder_are_compared(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for parent, name, is_same in ((tmp_path, "below", True), (Path("/"), "proc", False)):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if is_same:
                os.close(open_compared(name, fd))
            else:
                with pytest.raises(OSError, match="Invalid cross-device link"):
                    open_compared(name, fd)
        finally:
            os.close(fd)
