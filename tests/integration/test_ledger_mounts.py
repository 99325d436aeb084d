"""Removal never goes through a mount: what is mounted on, or below, stays whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.database import Database
from atoll.ledger import fsck, records
from atoll.ledger.kind import Intent
from atoll.ledger.ledger import Ledger
from atoll.ledger.paths import DirectoryKind
from atoll.ledger.tree import remove_tree
from atoll.linux.syscalls import MS_BIND, mount, umount2
from tests.integration.conftest import Roots


class Host:
    """A folder with things worth keeping, and mounts of it elsewhere."""

    def __init__(self, base: Path, undo: ExitStack) -> None:
        self.base = base
        self.precious = base / "precious"
        self.precious.mkdir()
        (self.precious / "kept").write_text("x")
        self._undo = undo

    def bind(self, source: Path, target: Path) -> None:
        mount(source, target, "", MS_BIND, "")
        self._undo.callback(umount2, target)

    def tmpfs(self, target: Path) -> None:
        mount("tmpfs", target, "tmpfs", 0, "size=64k")
        self._undo.callback(umount2, target)

    @property
    def whole(self) -> bool:
        return (self.precious / "kept").read_text() == "x"


@pytest.fixture
def host(roots: Roots) -> Iterator[Host]:
    with ExitStack() as undo:
        yield Host(roots.base, undo)


@pytest.mark.parametrize("where", [".", "a", "a/b/c"])
@pytest.mark.parametrize("sort", ["bind", "tmpfs"])
def test_a_mount_stops_the_removal(host: Host, where: str, sort: str) -> None:
    tree = host.base / "tree"
    point = tree / where
    point.mkdir(parents=True)
    (tree / "file").write_text("x")
    if sort == "bind":
        host.bind(host.precious, point)
    else:
        host.tmpfs(point)
        (point / "kept").write_text("x")
    with pytest.raises(errors.FailedPrecondition, match="is a mount point: unmount it first"):
        remove_tree(tree)
    assert (point / "kept").read_text() == "x"
    assert host.whole


def test_a_file_with_a_mount_on_it_stops_the_removal(host: Host) -> None:
    tree = host.base / "tree"
    tree.mkdir()
    (tree / "netns").touch()
    host.bind(host.precious / "kept", tree / "netns")
    with pytest.raises(errors.Unavailable, match="cannot be removed: Device or resource busy"):
        remove_tree(tree)
    assert host.whole


async def test_the_walk_owes_what_is_mounted_and_pays_it_later(host: Host) -> None:
    root, db = host.base / "dirs", await Database.open(host.base / "state.db", (records.SCHEMA,))
    root.mkdir()
    blocking = Blocking(2)
    async with TaskOwner("test") as owner:
        directory = DirectoryKind("dir", root, blocking)
        ledger = await Ledger.open(db, {"dir": directory}, owner, first_retry_s=3600)
        await ledger.enter(Intent(owner="box", kind="dir", key="box"))
        path = await directory.acquire("box")
        mount(host.precious, path, "", MS_BIND, "")
        (debt,) = await ledger.release_all("box", within=30)
        assert "unmount it first" in str(debt)
        assert host.whole
        umount2(path)
        assert await ledger.retry("box") == []
        assert os.listdir(root) == []
    await db.close()
    blocking.close()


async def test_fsck_finds_and_removes_what_a_crash_left(host: Host) -> None:
    root, db = host.base / "dirs", await Database.open(host.base / "state.db", (records.SCHEMA,))
    root.mkdir()
    blocking = Blocking(2)
    async with TaskOwner("test") as owner:
        ledger = await Ledger.open(db, {"dir": DirectoryKind("dir", root, blocking)}, owner)
        (root / "stray" / "deep").mkdir(parents=True)
        await ledger.enter(Intent(owner="box", kind="dir", key="box"))
        findings = await fsck.plan(ledger, lambda: {"box"})
        assert [(f.problem, f.key) for f in findings.findings] == [("vanished", "box"), ("stray", "stray")]
        assert (await fsck.repair(ledger, findings)).clean
        assert os.listdir(root) == []
        assert (await fsck.plan(ledger, lambda: {"box"})).clean
    await db.close()
    blocking.close()
