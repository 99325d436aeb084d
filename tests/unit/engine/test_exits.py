"""An exit that the disk does not take is told all the same, and written when it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.container import storage
from atoll.container.metadata import Metadata
from atoll.container.status import State, Status
from atoll.container.store import Container, ContainerRecord
from atoll.engine import exits
from atoll.engine.exits import Exits

DONE = 7


def ended(status: Status) -> Status:
    return status.exited(code=DONE, at=3, reason="OOMKilled")


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    pool = Blocking(1)
    yield pool
    pool.close()


class Disk:
    """Refuses the first so many checkpoints."""

    def __init__(self, patch: pytest.MonkeyPatch, refusals: int) -> None:
        self.refusals = refusals
        self._write = storage.write_checkpoint
        patch.setattr(storage, "write_checkpoint", self.write)

    def write(self, *arguments: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(28, "No space left on device")
        self._write(*arguments)  # pyright: ignore[reportArgumentType]


async def running(root: Path, blocking: Blocking) -> Container:
    record = ContainerRecord(metadata=Metadata(id="c1", sandbox_id="p1"), created_at=1)
    return Container(record, await storage.store_status(root, "c1", Status(created_at=1, started_at=2), blocking))


async def test_an_exit_is_known_at_once_and_written_later(
    tmp_path: Path, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "FIRST_PAUSE_S", 0.0)
    container = await running(tmp_path, blocking)
    written: list[Status] = []

    async def clean() -> None:
        written.append(storage.read_status(container.status.path.parent))

    async with TaskOwner("test") as owner:
        told = Exits(owner)
        Disk(monkeypatch, 4)
        assert not await told.tell(container, ended, clean)
        assert (await container.stopped.wait()).exit_code == DONE
        assert container.status.get().reason == "OOMKilled"
        assert storage.read_status(container.status.path.parent).state is State.RUNNING
        assert not written
        while len(owner):
            (task,) = owner._tasks
            await task
    assert [(one.state, one.exit_code, one.reason) for one in written] == [(State.EXITED, DONE, "OOMKilled")]


async def test_a_removal_ends_the_tries(tmp_path: Path, blocking: Blocking, monkeypatch: pytest.MonkeyPatch) -> None:
    container = await running(tmp_path, blocking)

    async def clean() -> None:
        raise errors.Unavailable("it was written")

    async with TaskOwner("test") as owner:
        told = Exits(owner)
        Disk(monkeypatch, 1_000_000)
        assert not await told.tell(container, ended, clean)
        await told.give_up(container.id)
        await told.give_up(container.id)
        assert container.status.get().state is State.EXITED
        assert storage.read_status(container.status.path.parent).state is State.RUNNING


def on_disk(container: Container) -> Status:
    return storage.read_status(container.status.path.parent)


async def all_written(owner: TaskOwner) -> None:
    while len(owner):
        (task,) = owner._tasks
        await task


async def test_a_status_that_is_owed_is_written_when_the_disk_takes_it(
    tmp_path: Path, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "FIRST_PAUSE_S", 0.0)
    container = await running(tmp_path, blocking)
    async with TaskOwner("test") as owner:
        told = Exits(owner)
        Disk(monkeypatch, 3)
        await container.status.update(lambda status: status.started(pid=9, at=2))
        told.owe(container)
        told.owe(container)
        assert on_disk(container).pid == 0
        await all_written(owner)
    assert on_disk(container).pid == 9


async def test_an_exit_behind_an_owed_status_is_written_too(
    tmp_path: Path, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "FIRST_PAUSE_S", 0.0)
    container = await running(tmp_path, blocking)
    written: list[Status] = []

    async def clean() -> None:
        written.append(on_disk(container))

    async with TaskOwner("test") as owner:
        told = Exits(owner)
        Disk(monkeypatch, 5)
        told.owe(container)
        assert not await told.tell(container, ended, clean)
        await all_written(owner)
    assert [one.exit_code for one in written] == [DONE]
