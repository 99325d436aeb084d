"""`StatusStorage`: memory and the checkpoint change together or not at all."""

# ruff: noqa: TID251  # the tests play callers that come and go

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.container import storage as storage_module
from atoll.container.checkpoint import write_checkpoint
from atoll.container.status import State, Status, decode_status, encode_status
from atoll.container.storage import StatusStorage, load_status, store_status

CREATED = Status(created_at=1)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    blocking = Blocking(2)
    yield blocking
    blocking.close()


@pytest.fixture
async def storage(tmp_path: Path, blocking: Blocking) -> StatusStorage:
    return await store_status(tmp_path, "c1", CREATED, blocking)


def on_disk(storage: StatusStorage) -> Status:
    return decode_status(storage.path.read_bytes())


def started(status: Status) -> Status:
    return status.started(pid=7, at=2)


def refuse(status: Status) -> Status:
    raise errors.FailedPrecondition(f"not from {status.state}")


async def test_storing_makes_the_checkpoint_at_once(storage: StatusStorage, tmp_path: Path) -> None:
    assert storage.path == tmp_path / "containers" / "c1" / "status"
    assert stat.S_IMODE(storage.path.stat().st_mode) == 0o600
    assert on_disk(storage) == storage.get() == CREATED


async def test_storing_fails_where_it_cannot(tmp_path: Path, blocking: Blocking) -> None:
    (tmp_path / "containers").write_text("in the way")
    with pytest.raises(errors.Unavailable, match="containers/c1/status"):
        await store_status(tmp_path, "c1", CREATED, blocking)
    with pytest.raises(errors.InvalidArgument, match="container id"):
        await store_status(tmp_path, "../c1", CREATED, blocking)


async def test_update_changes_memory_only(storage: StatusStorage) -> None:
    assert (await storage.update(started)).state is State.RUNNING
    assert storage.get().state is State.RUNNING
    assert on_disk(storage) == CREATED


async def test_update_sync_changes_both(storage: StatusStorage) -> None:
    got = await storage.update_sync(started)
    assert got == storage.get() == on_disk(storage)
    assert [file.name for file in storage.path.parent.iterdir()] == ["status"]


async def test_a_transition_that_raises_changes_nothing(storage: StatusStorage) -> None:
    for update in (storage.update, storage.update_sync):
        with pytest.raises(errors.FailedPrecondition):
            await update(refuse)
    assert storage.get() == on_disk(storage) == CREATED


async def test_a_disk_that_refuses_changes_nothing(storage: StatusStorage) -> None:
    aside = storage.path.parent.with_name("aside")
    storage.path.parent.rename(aside)
    storage.path.parent.write_text("in the way")
    with pytest.raises(errors.Unavailable, match="not written"):
        await storage.update_sync(started)
    storage.path.parent.unlink()
    aside.rename(storage.path.parent)
    assert storage.get() == on_disk(storage) == CREATED
    assert (await storage.update_sync(started)).state is State.RUNNING


async def test_updates_at_once_lose_nothing(storage: StatusStorage) -> None:
    def more(status: Status) -> Status:
        return dataclasses.replace(status, exit_code=status.exit_code + 1)

    await asyncio.gather(*((storage.update_sync if n % 2 else storage.update)(more) for n in range(20)))
    await storage.update_sync(more)
    assert storage.get().exit_code == on_disk(storage).exit_code == 21


async def test_a_slow_transition_holds_the_others_back(storage: StatusStorage) -> None:
    release = asyncio.Event()

    async def slow(status: Status) -> Status:
        await release.wait()
        return dataclasses.replace(status, message="slow")

    first = asyncio.ensure_future(storage.update_around(slow))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(storage.update(started))
    await asyncio.sleep(0)
    assert not second.done()
    release.set()
    await asyncio.gather(first, second)
    assert (storage.get().message, storage.get().state) == ("slow", State.RUNNING)


class Gate(Blocking):
    """A pool that keeps each call until it is told to go on, as a slow disk does."""

    def __init__(self) -> None:
        super().__init__(1)
        self.reached = asyncio.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    async def run(self, work: Callable[..., Any], /, *args: Any) -> Any:
        self.reached.set()

        def slow() -> Any:
            assert self.go_on.wait(30)
            return work(*args)

        return await super().run(slow)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go_on.set()
    gate.close()


async def test_a_cancelled_caller_finds_memory_and_disk_agree(tmp_path: Path, gate: Gate) -> None:
    storage = await store_status(tmp_path, "c1", CREATED, gate)
    gate.reached.clear()
    gate.go_on.clear()
    caller = asyncio.ensure_future(storage.update_sync(started))
    await gate.reached.wait()
    for _ in range(5):
        caller.cancel()
        await asyncio.sleep(0)
    gate.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert storage.get() == on_disk(storage) == started(CREATED)


async def test_a_disk_that_hangs_is_told_and_its_late_write_does_not_count(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await store_status(tmp_path, "c1", CREATED, gate)
    monkeypatch.setattr(storage_module, "WRITE_LIMIT_S", 0.001)
    gate.go_on.clear()
    with pytest.raises(errors.Unavailable, match="the disk hangs"):
        await storage.update_sync(started)
    gate.go_on.set()
    await gate.run(lambda: None)
    assert storage.get() == on_disk(storage) == CREATED
    assert [file.name for file in storage.path.parent.iterdir()] == ["status"]


async def test_delete_is_idempotent_and_memory_stays(storage: StatusStorage) -> None:
    await storage.delete()
    await storage.delete()
    assert not storage.path.exists()
    assert list(storage.path.parent.parent.iterdir()) == [storage.path.parent]
    assert storage.get() == CREATED
    with pytest.raises(errors.NotFound, match="removed"):
        await storage.update_sync(started)
    shutil.rmtree(storage.path.parent)
    await storage.delete()


async def test_delete_goes_on_where_a_crash_cut_it_short(storage: StatusStorage) -> None:
    storage.path.rename(storage.path.parent.with_name("c1.del-status"))
    await storage.delete()
    assert list(storage.path.parent.parent.iterdir()) == [storage.path.parent]


async def test_an_exit_opens_the_latch_once_it_is_durable(storage: StatusStorage) -> None:
    waiting = asyncio.ensure_future(storage.exited.wait())
    await storage.update_sync(started)
    assert not storage.exited.is_set
    final = await storage.update_sync(lambda status: status.exited(code=3, at=9))
    assert await waiting == await storage.exited.wait() == final


async def test_a_container_that_is_restarted_has_its_next_exit_waited_for(storage: StatusStorage) -> None:
    await storage.update_sync(started)
    first = await storage.update_sync(lambda status: status.exited(code=3, at=9))
    before = storage.exited
    await storage.update(lambda status: status.begin_restart())
    assert storage.exited is before
    await storage.update_sync(lambda status: status.again())
    assert (before.value, storage.exited.is_set) == (first, False)
    await storage.update_sync(lambda status: status.begin_start().started(pid=8, at=11))
    last = await storage.update_sync(lambda status: status.exited(code=4, at=12))
    assert storage.exited.value == last


async def test_an_exited_container_is_loaded_with_its_latch_open(
    storage: StatusStorage, tmp_path: Path, blocking: Blocking
) -> None:
    final = await storage.update_sync(lambda status: status.exited(code=3, at=9))
    again = await load_status(tmp_path, "c1", blocking)
    assert again.get() == again.exited.value == final


async def test_an_unreadable_checkpoint_is_kept_and_the_status_unknown(
    storage: StatusStorage, tmp_path: Path, blocking: Blocking
) -> None:
    for text, kept in ((b'{"Version":"v7"}', "status.unreadable"), (b"\x00", "status.unreadable-1")):
        storage.path.write_bytes(text)
        status = (await load_status(tmp_path, "c1", blocking)).get()
        assert (status.state, status.reason, status.exit_code) == (State.UNKNOWN, "Unknown", 255)
        assert kept in status.message
        assert (storage.path.parent / kept).read_bytes() == text


async def test_a_missing_checkpoint_is_an_unknown_status(tmp_path: Path, blocking: Blocking) -> None:
    status = (await load_status(tmp_path, "never", blocking)).get()
    assert status.state is State.UNKNOWN
    assert "missing" in status.message


@pytest.mark.parametrize("kind", ["folder", "link", "endless", "fifo", "gigabytes"])
async def test_what_is_no_checkpoint_at_all_is_kept_aside_and_written_anew(
    storage: StatusStorage, tmp_path: Path, blocking: Blocking, kind: str
) -> None:
    storage.path.unlink()
    match kind:
        case "folder":
            (storage.path / "sub").mkdir(parents=True)
        case "link":
            storage.path.symlink_to(storage.path)
        case "endless":
            storage.path.symlink_to("/dev/zero")
        case "fifo":
            os.mkfifo(storage.path)
        case _:
            storage.path.touch()
            os.truncate(storage.path, 3 << 30)
    again = await load_status(tmp_path, "c1", blocking)
    assert again.get().state is State.UNKNOWN
    assert os.path.lexists(storage.path.with_name("status.unreadable"))
    assert "status.unreadable" in again.get().message
    await again.update_sync(lambda status: status.exited(code=255, at=9))
    assert on_disk(again).finished_at == 9


async def test_a_folder_that_a_hand_took_is_made_anew_but_not_beside_a_removal(storage: StatusStorage) -> None:
    shutil.rmtree(storage.path.parent)
    await storage.update_sync(started)
    assert on_disk(storage) == storage.get() == started(CREATED)
    shutil.rmtree(storage.path.parent)
    await storage.update(lambda status: dataclasses.replace(status, removing=True))
    with pytest.raises(errors.Unavailable):
        await storage.update_sync(lambda status: status.exited(code=0, at=9))
    assert not storage.path.parent.exists()


def test_after_a_crash_in_the_middle_the_old_text_stands(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, encode_status(CREATED))
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(TimeoutError):
        write_checkpoint(tmp_path, b"half", abandoned)
    assert (tmp_path / "status").read_bytes() == encode_status(CREATED)
    assert [file.name for file in tmp_path.iterdir()] == ["status"]


async def test_what_a_crash_left_beside_is_removed_at_load(
    storage: StatusStorage, tmp_path: Path, blocking: Blocking
) -> None:
    (storage.path.parent / ".status-1-1").write_bytes(b"half")
    assert (await load_status(tmp_path, "c1", blocking)).get() == CREATED
    assert [file.name for file in storage.path.parent.iterdir()] == ["status"]
