"""The whole table of what a container is after a restart, and `load_store`, which settles a store by it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.container.loading import Loaded, load_store
from atoll.container.metadata import Metadata
from atoll.container.settling import Settled, Task, TaskPhase, settle
from atoll.container.status import State, Status, decode_status, encode_status, unknown_status
from atoll.container.storage import store_status
from atoll.container.store import CHECKPOINT, SCHEMA, Container, ContainerRecord, ContainerStore
from atoll.database import Database, quarantined

NOW = 1_000
KEPT = {"message": "kept", "restore": True}
CREATED = Status(created_at=1, **KEPT)
RUNNING = Status(created_at=1, started_at=2, pid=7, **KEPT)
EXITED = Status(created_at=1, started_at=2, finished_at=3, exit_code=4, reason="OOMKilled", **KEPT)
LOST = unknown_status(None, "the checkpoint is missing")

ABSENT = Task(phase=TaskPhase.ABSENT)
MADE = Task(phase=TaskPhase.CREATED, pid=9)
RUNS = Task(phase=TaskPhase.RUNNING, pid=9)
STOPPED = Task(phase=TaskPhase.STOPPED, exit_code=6, exited_at=500)
OTHER = Task(phase=TaskPhase.OTHER, why="its shim says no")

ENDED = {"pid": 0, "finished_at": 500, "exit_code": 6}


def changed(status: Status, **values: object) -> Status:
    return dataclasses.replace(status, **values)


def unexpected(status: Status, told: str) -> Status:
    word = status.state.removeprefix("CONTAINER_").lower()
    return unknown_status(status, f"its checkpoint says {word}, its shim has a {told} task")


TABLE = [
    (CREATED, ABSENT, Settled(status=CREATED, needs_io=True)),
    (CREATED, MADE, Settled(status=CREATED, delete_task=True, needs_io=True)),
    (CREATED, RUNS, Settled(status=changed(CREATED, started_at=NOW, pid=9), watch=True)),
    (CREATED, STOPPED, Settled(status=changed(CREATED, **ENDED), delete_task=True)),
    (CREATED, OTHER, Settled(status=unknown_status(CREATED, "its shim says no"))),
    (RUNNING, ABSENT, Settled(status=changed(RUNNING, pid=0, finished_at=NOW, exit_code=255, reason="Unknown"))),
    (RUNNING, MADE, Settled(status=unexpected(RUNNING, "created"))),
    (RUNNING, RUNS, Settled(status=changed(RUNNING, pid=9), watch=True)),
    (RUNNING, STOPPED, Settled(status=changed(RUNNING, **ENDED), delete_task=True)),
    (RUNNING, OTHER, Settled(status=unknown_status(RUNNING, "its shim says no"))),
    (EXITED, ABSENT, Settled(status=EXITED)),
    (EXITED, MADE, Settled(status=unexpected(EXITED, "created"))),
    (EXITED, RUNS, Settled(status=unexpected(EXITED, "running"))),
    (EXITED, STOPPED, Settled(status=changed(EXITED, **ENDED), delete_task=True)),
    (EXITED, OTHER, Settled(status=unknown_status(EXITED, "its shim says no"))),
    (LOST, ABSENT, Settled(status=LOST)),
    (LOST, MADE, Settled(status=unexpected(LOST, "created"))),
    (LOST, RUNS, Settled(status=changed(LOST, started_at=NOW, pid=9, unknown=False), watch=True)),
    (LOST, STOPPED, Settled(status=changed(LOST, **ENDED), delete_task=True)),
    (LOST, OTHER, Settled(status=unknown_status(LOST, "its shim says no"))),
]
STATES = {
    State.CREATED: (State.CREATED, State.CREATED, State.RUNNING, State.EXITED, State.UNKNOWN),
    State.RUNNING: (State.EXITED, State.UNKNOWN, State.RUNNING, State.EXITED, State.UNKNOWN),
    State.EXITED: (State.EXITED, State.UNKNOWN, State.UNKNOWN, State.EXITED, State.UNKNOWN),
    State.UNKNOWN: (State.UNKNOWN, State.UNKNOWN, State.RUNNING, State.UNKNOWN, State.UNKNOWN),
}


def _named(cell: object) -> str:
    return cell.state.removeprefix("CONTAINER_").lower() if isinstance(cell, Status) else getattr(cell, "phase", "")


@pytest.mark.parametrize(("checkpoint", "task", "expected"), TABLE, ids=_named)
def test_every_pair_is_settled_by_the_table(checkpoint: Status, task: Task, expected: Settled) -> None:
    assert settle(checkpoint, task, NOW) == expected


def test_the_table_is_whole() -> None:
    assert {(one.state, task.phase) for one, task, _ in TABLE} == {(s, p) for s in State for p in TaskPhase}
    for (checkpoint, _, settled), expected in zip(TABLE, [s for row in STATES.values() for s in row], strict=True):
        assert settled.status.state is expected, (checkpoint.state, expected)


@pytest.mark.parametrize(("checkpoint", "task", "expected"), TABLE[:15], ids=_named)
def test_who_could_not_be_asked_before_is_settled_by_what_was_known(
    checkpoint: Status, task: Task, expected: Settled
) -> None:
    plain = changed(checkpoint, message="", reason="")
    found = settle(unknown_status(plain, "the shim did not answer"), task, NOW)
    assert found.status.state is expected.status.state
    assert (found.watch, found.delete_task, found.needs_io) == (expected.watch, expected.delete_task, expected.needs_io)


class Runtime:
    """What shims would say, and what they were told to delete."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task | errors.AtollError] = {}
        self.deleted: list[str] = []
        self.refuses: set[str] = set()

    async def ask(self, container: Container) -> Task:
        told = self.tasks.get(container.id, errors.NotFound("no such task"))
        if isinstance(told, errors.AtollError):
            raise told
        return told

    async def delete(self, container: Container) -> None:
        if container.id in self.refuses:
            raise errors.Unavailable("the shim went away")
        self.deleted.append(container.id)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    db = await Database.open(tmp_path / "state.db", (SCHEMA,))
    yield db
    await db.close()


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    blocking = Blocking(2)
    yield blocking
    blocking.close()


async def load(db: Database, root: Path, blocking: Blocking, runtime: Runtime) -> Loaded:
    return await load_store(db, root, blocking, runtime.ask, runtime.delete)


async def fill(db: Database, root: Path, blocking: Blocking, **statuses: Status | bytes | None) -> None:
    """Containers with these checkpoints, texts in their place, or none."""
    store = await ContainerStore.open(db, root, blocking)
    for name, status in statuses.items():
        made = await store.add(ContainerRecord(metadata=Metadata(id=name, name=f"n-{name}"), created_at=1), CREATED)
        if isinstance(status, Status):
            await store_status(root, name, status, blocking)
        elif status is None:
            made.status.path.unlink()
        else:
            made.status.path.write_bytes(status)


async def test_a_store_is_loaded_settled_and_written(db: Database, tmp_path: Path, blocking: Blocking) -> None:
    await fill(
        db,
        tmp_path,
        blocking,
        new=CREATED,
        cut=CREATED,
        runs=RUNNING,
        ended=RUNNING,
        gone=RUNNING,
        done=EXITED,
        lost=None,
    )
    runtime = Runtime()
    runtime.tasks = {"cut": MADE, "runs": RUNS, "ended": STOPPED, "lost": RUNS}
    loaded = await load(db, tmp_path, blocking, runtime)
    states = {one.id: one.status.get().state.removeprefix("CONTAINER_") for one in loaded.store.list()}
    assert states == {
        "new": "CREATED", "cut": "CREATED", "runs": "RUNNING", "ended": "EXITED", "gone": "EXITED", "done": "EXITED",
        "lost": "RUNNING",
    }  # fmt: skip
    assert {one.id for one in loaded.watch} == {"runs", "lost"}
    assert {one.id for one in loaded.needs_io} == {"new", "cut"}
    assert sorted(runtime.deleted) == ["cut", "ended"]
    for one in loaded.store.list():
        assert decode_status(one.status.path.read_bytes()) == one.status.get()
    assert loaded.store.get("gone").stopped.is_set
    assert loaded.store.names.key("n-ended") == "ended"


async def test_one_that_cannot_be_asked_is_unknown_and_the_others_are_settled(
    db: Database, tmp_path: Path, blocking: Blocking
) -> None:
    await fill(db, tmp_path, blocking, silent=RUNNING, stuck=RUNNING, runs=RUNNING)
    runtime = Runtime()
    runtime.tasks = {"silent": errors.Unavailable("nobody listens"), "stuck": STOPPED, "runs": RUNS}
    runtime.refuses = {"stuck"}
    store = (await load(db, tmp_path, blocking, runtime)).store
    silent, stuck, runs = (store.get(name).status.get() for name in ("silent", "stuck", "runs"))
    assert (silent.state, silent.message) == (State.UNKNOWN, "nobody listens")
    assert (stuck.state, stuck.exit_code, stuck.message) == (State.UNKNOWN, 6, "the shim went away")
    assert runs.state is State.RUNNING
    again = Runtime()
    again.tasks = {"silent": RUNS, "runs": RUNS}
    store = (await load(db, tmp_path, blocking, again)).store
    assert [store.get(name).status.get().state for name in ("silent", "stuck")] == [State.RUNNING, State.EXITED]


DAMAGE = {
    "empty": b"",
    "cut": encode_status(RUNNING)[:40],
    "newer": encode_status(RUNNING).replace(b'"v1"', b'"v2"'),
    "zeros": bytes(200),
    "odd": encode_status(RUNNING).replace(b'"Pid":7', b'"Pid":4294967296'),
}


async def test_a_checkpoint_that_cannot_be_read_is_quarantined_and_the_rest_serves(
    db: Database, tmp_path: Path, blocking: Blocking
) -> None:
    await fill(db, tmp_path, blocking, good=EXITED, **DAMAGE)
    runtime = Runtime()
    store = (await load(db, tmp_path, blocking, runtime)).store
    assert store.get("good").status.get() == EXITED
    for name, text in DAMAGE.items():
        assert store.get(name).status.get().state is State.UNKNOWN
        assert (store.get(name).status.path.parent / "status.unreadable").read_bytes() == text
    kept = {one.key: one for one in await db.read(lambda connection: quarantined(connection, CHECKPOINT))}
    assert kept.keys() == DAMAGE.keys()
    assert "unsupported version 'v2'" in kept["newer"].reason
    assert all(one.at >= db.opened_at for one in kept.values())
    again = (await load(db, tmp_path, blocking, runtime)).store
    assert len(await db.read(lambda connection: quarantined(connection, CHECKPOINT))) == len(DAMAGE), "told once"
    await again.delete("empty")
    left = await db.read(lambda connection: quarantined(connection, CHECKPOINT))
    assert {one.key for one in left} == DAMAGE.keys() - {"empty"}
