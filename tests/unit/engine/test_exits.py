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
