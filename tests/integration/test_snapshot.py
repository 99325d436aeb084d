"""Snapshots on the real kernel: overlay mounts, deep stacks, volatile, deletion of odd trees."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from atoll import errors
from atoll.database import Connection
from atoll.snapshot.records import Kind, Usage
from atoll.snapshot.snapshotter import Snapshotter
from tests.integration.conftest import Roots
from tests.integration.images import Stack, mounted, stack

SMALL = Usage(bytes=4096, inodes=2)


@pytest.fixture
async def store(roots: Roots) -> AsyncIterator[Stack]:
    async with stack(roots.root) as one:
        yield one


async def committed(store: Stack, name: str, parent: str | None, files: dict[str, str]) -> str:
    """A committed snapshot of these files."""
    staged = await store.snapshots.stage()
    for path, text in files.items():
        (staged.fs / path).write_text(text)
    planned = [store.snapshots.plan_staged(staged, name, parent, SMALL)]
    await store.db.write(lambda connection: store.snapshots.record_staged(connection, planned))
    store.snapshots.settle_staged(planned)
    return name


async def test_active_snapshot_writes_to_itself_only(store: Stack, roots: Roots) -> None:
    base = await committed(store, "base", None, {"f": "base", "g": "base"})
    with mounted(await store.snapshots.prepare("a", base), roots.base / "a") as a:
        (a / "f").write_text("mine")
        (a / "g").unlink()
        with mounted(await store.snapshots.prepare("b", base), roots.base / "b") as b:
            assert ((b / "f").read_text(), (b / "g").read_text()) == ("base", "base")
    assert (store.snapshots.fs(base) / "f").read_text() == "base"


async def test_view_is_read_only(store: Stack, roots: Roots) -> None:
    base = await committed(store, "base", None, {"f": "1"})
    upper = await committed(store, "upper", base, {"g": "2"})
    for key, parent, names in (("one", base, ["f"]), ("two", upper, ["f", "g"])):
        with mounted(await store.snapshots.view(key, parent), roots.base / key) as root:
            assert sorted(os.listdir(root)) == names
            with pytest.raises(OSError, match="Read-only"):
                (root / "x").write_text("no")


async def test_snapshot_without_parent_is_a_bind_mount(store: Stack, roots: Roots) -> None:
    with mounted(await store.snapshots.prepare("lone", None), roots.base / "mnt") as root:
        (root / "f").write_text("1")
    assert (store.snapshots.fs("lone") / "f").read_text() == "1"


async def test_image_of_a_hundred_and_twenty_layers_mounts(store: Stack, roots: Roots) -> None:
    """Their names are more than the page that mount(2) takes."""
    name = None
    for number in range(120):
        name = await committed(store, f"sha256:{number:064x}", name, {f"f{number}": str(number)})
    mounts = await store.snapshots.prepare("deep", name)
    assert len(",".join(mounts[0].options)) > 4096
    with mounted(mounts, roots.base / "mnt") as root:
        assert len(os.listdir(root)) == 120
        (root / "f0").write_text("changed")
    assert (store.snapshots.fs("deep") / "f0").read_text() == "changed"


async def test_volatile_snapshot_mounts_again(store: Stack, roots: Roots) -> None:
    base = await committed(store, "base", None, {"f": "1"})
    mounts = await store.snapshots.prepare("a", base)
    assert "volatile" in mounts[0].options
    with mounted(mounts, roots.base / "mnt") as root:
        (root / "new").write_text("2")
    with mounted(await store.snapshots.mounts("a"), roots.base / "mnt") as root:
        assert (root / "new").read_text() == "2"


async def test_commit_makes_a_parent(store: Stack, roots: Roots) -> None:
    base = await committed(store, "base", None, {"f": "1"})
    with mounted(await store.snapshots.prepare("a", base), roots.base / "mnt") as root:
        (root / "new").write_text("x" * 10_000)
    await store.snapshots.commit("changed", "a")
    assert store.snapshots.stat("changed").kind == Kind.COMMITTED
    assert (await store.snapshots.usage("changed")).inodes == 2
    assert (await store.snapshots.usage("changed")).bytes >= 10_000
    with pytest.raises(errors.NotFound):
        store.snapshots.stat("a")
    with mounted(await store.snapshots.prepare("c", "changed"), roots.base / "mnt") as root:
        assert sorted(os.listdir(root)) == ["f", "new"]
    with pytest.raises(errors.FailedPrecondition, match="only an active"):
        await store.snapshots.commit("again", "changed")
    await store.snapshots.prepare("d", "changed")
    with pytest.raises(errors.AlreadyExists):
        await store.snapshots.commit("changed", "d")


async def test_removal_waits_for_the_children(store: Stack) -> None:
    base = await committed(store, "base", None, {"f": "1"})
    await store.snapshots.prepare("a", base)
    with pytest.raises(errors.FailedPrecondition, match="rest on it"):
        await store.snapshots.remove(base)
    await store.snapshots.remove("a")
    await store.snapshots.remove("a")
    await store.snapshots.remove(base)
    await emptied(store)
    assert (store.snapshots.walk(), store.snapshot_folders()) == ((), [])


async def test_parent_and_name_are_checked(store: Stack) -> None:
    base = await committed(store, "base", None, {})
    await store.snapshots.prepare("a", base)
    with pytest.raises(errors.AlreadyExists):
        await store.snapshots.prepare("a", base)
    for parent in ("none", "a"):
        with pytest.raises(errors.NotFound):
            await store.snapshots.prepare("b", parent)
    with pytest.raises(errors.FailedPrecondition):
        await store.snapshots.mounts(base)
    assert len(store.snapshot_folders()) == 2


async def test_prepare_can_be_a_part_of_a_transaction(store: Stack) -> None:
    base = await committed(store, "base", None, {})

    def refuse(connection: Connection) -> None:
        connection.execute("SELECT 1")
        raise errors.Aborted("the rest of it failed")

    with pytest.raises(errors.Aborted):
        async with store.snapshots.preparing("a", base) as plan:
            await store.db.write(lambda connection: (plan.record(connection), refuse(connection)))
    assert (len(store.snapshots.walk()), len(store.snapshot_folders())) == (1, 1)
    async with store.snapshots.preparing("a", base) as plan:
        await store.db.write(plan.record)
    assert store.snapshots.stat("a").parent == base
    with pytest.raises(errors.Aborted):
        async with store.snapshots.removing("a") as removal:
            await store.db.write(lambda connection: (removal.record(connection), refuse(connection)))
    assert store.snapshots.fs("a").is_dir()
    async with store.snapshots.removing("a") as removal:
        await store.db.write(removal.record)
    assert len(store.snapshot_folders()) == 1


async def test_cancelled_transaction_is_asked_for(store: Stack) -> None:
    """The write goes on although its caller went away; the snapshot is there exactly where its record is."""
    base = await committed(store, "base", None, {})

    async def prepare(key: str) -> None:
        async with store.snapshots.preparing(key, base) as plan:
            await store.db.write(plan.record)

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            task = group.create_task(prepare(f"c{number}"))
            for _ in range(number):
                await asyncio.sleep(0.0001)
            task.cancel()
    known = {snapshot.name: str(snapshot.number) for snapshot in store.snapshots.walk()}
    await store.snapshots.recover()
    assert known == {snapshot.name: str(snapshot.number) for snapshot in store.snapshots.walk()}
    assert sorted(known.values()) == store.snapshot_folders()


async def test_of_a_prepare_and_the_removal_of_its_parent_one_wins(store: Stack) -> None:
    for turn in range(20):
        base = await committed(store, f"base{turn}", None, {})
        async with asyncio.TaskGroup() as group:
            prepared = group.create_task(outcome(store.snapshots.prepare(f"c{turn}", base)))
            removed = group.create_task(outcome(store.snapshots.remove(base)))
        assert (prepared.result(), removed.result()) in (
            ("done", "FailedPrecondition"),
            ("NotFound", "done"),
        )
        assert store.snapshots.has(base) == store.snapshots.has(f"c{turn}") == (prepared.result() == "done")


async def outcome(work: object) -> str:
    try:
        await work  # type: ignore[misc]
    except errors.AtollError as error:
        return type(error).__name__
    return "done"


async def test_deep_and_odd_trees_are_deleted(store: Stack, roots: Roots) -> None:
    """Deeper than a path can be and than Python recurses; without permissions, with links to the outside."""
    precious = roots.base / "precious"
    precious.mkdir()
    (precious / "file").write_text("stay")
    await store.snapshots.prepare("deep", None)
    fs = store.snapshots.fs("deep")
    (fs / "link").symlink_to(precious)
    os.mknod(fs / "null", 0o20000, os.makedev(1, 3))
    os.mkfifo(fs / "pipe")
    await asyncio.to_thread(dig, fs, precious)
    (fs / "locked").mkdir(mode=0)
    await store.snapshots.remove("deep")
    await emptied(store)
    assert (precious / "file").read_text() == "stay"


def dig(folder: Path, target: Path) -> None:
    """1,500 folders one in the other, each with a link to `target`."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1500):
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.symlink(target, "out", dir_fd=below)
        os.close(here)
        here = below
    os.close(here)


async def emptied(store: Stack) -> None:
    """Wait until the trash is."""
    async with asyncio.timeout(10):
        while os.listdir(store.root / "snapshots/.trash"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_damaged_record_costs_no_folder_and_no_start(roots: Roots) -> None:
    """Nobody can tell whose a folder is then: none is swept, and what rests on the record is reported."""
    async with stack(roots.root) as store:
        await committed(store, "base", None, {"f": "1"})
        await committed(store, "whole", None, {"f": "2"})
        await store.snapshots.prepare("a", "base")
        folder = store.snapshots.fs("base")
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as connection:
        connection.execute("UPDATE snapshots SET name = CAST(x'6261ff' AS TEXT) WHERE name = 'base'")
    async with stack(roots.root) as store:
        assert (folder / "f").read_text() == "1"
        assert await store.snapshots.lost() == ()
        assert not store.snapshots.has("a")
        with pytest.raises(errors.DataLoss, match="cannot be read"):
            await store.snapshots.mounts("a")
        await store.snapshots.prepare("b", "whole")
        await store.snapshots.remove("a")


async def test_recovery_compares_in_both_directions(roots: Roots) -> None:
    async with stack(roots.root) as store:
        base = await committed(store, "base", None, {"f": "1"})
        await store.snapshots.prepare("a", base)
        orphan = await store.snapshots.stage()
        store.snapshots.fs("a").parent.rename(roots.base / "lost")
        found = await store.snapshots.recover()
        assert (found.swept, found.missing) == ((orphan.number,), ("a",))
        with pytest.raises(errors.DataLoss, match="snapshot a"):
            await store.snapshots.mounts("a")
        await store.snapshots.remove("a")
        fresh = await store.snapshots.stage()
        assert fresh.number > orphan.number, "a number is not used again while a mount might have it"


async def test_usage_of_an_active_snapshot_counts_what_it_has_now(store: Stack) -> None:
    await store.snapshots.prepare("a", None)
    fs = store.snapshots.fs("a")
    before = await store.snapshots.usage("a")
    (fs / "f").write_bytes(b"x" * 100_000)
    os.link(fs / "f", fs / "g")
    (fs / "hole").touch()
    os.truncate(fs / "hole", 1 << 30)
    os.sync()
    after = await store.snapshots.usage("a")
    assert after.inodes - before.inodes == 2
    assert 100_000 <= after.bytes - before.bytes < 200_000


def test_a_root_that_overlay_cannot_name_is_refused(store: Stack) -> None:
    for root in ("/var/lib/a:b", "/var/lib/a,b", "/var/lib/a\\b"):
        with pytest.raises(errors.InvalidArgument, match="overlay"):
            Snapshotter(Path(root), store.db, None)  # type: ignore[arg-type]


async def test_root_folder_of_an_active_snapshot_is_like_its_parents(store: Stack) -> None:
    base = await committed(store, "base", None, {})
    os.chmod(store.snapshots.fs(base), 0o1711)
    os.chown(store.snapshots.fs(base), 5, 6)
    await store.snapshots.prepare("a", base)
    info = store.snapshots.fs("a").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o1711, 5, 6)
