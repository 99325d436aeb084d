"""The store of containers: prefix look-up, names, transactions, and records that cannot be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.container.config import ContainerConfig, ContainerMetadata
from atoll.container.metadata import Metadata
from atoll.container.status import State, Status
from atoll.container.store import SCHEMA, Container, ContainerRecord, ContainerStats, ContainerStore
from atoll.database import Connection, Database, Plan
from atoll.oci.config import ImageSpec, KeyValue

CREATED = Status(created_at=1)


def record(container_id: str = "abcdef", name: str = "", sandbox_id: str = "box") -> ContainerRecord:
    return ContainerRecord(
        metadata=Metadata(
            id=container_id,
            name=name,
            sandbox_id=sandbox_id,
            config=ContainerConfig(
                metadata=ContainerMetadata(name="web"),
                image=ImageSpec(image="atoll/busybox"),
                envs=(KeyValue(key="RAW", value=b"\xff\x00"),),
            ),
            stop_signal="SIGRTMIN+1",
        ),
        created_at=1,
        image="docker.io/atoll/busybox:latest",
        snapshot_key=container_id,
        spec=b'{"ociVersion":"1.1.0"}',
        labels={"app": "web"},
    )


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    db = await Database.open(tmp_path / "state.db", (SCHEMA,))
    yield db
    await db.close()


class Machine:
    """One root that stores are opened on again and again."""

    def __init__(self, db: Database, root: Path) -> None:
        self.db = db
        self.root = root
        self.blocking = Blocking(2)

    async def open(self) -> ContainerStore:
        return await ContainerStore.open(self.db, self.root, self.blocking)


@pytest.fixture
async def machine(db: Database, tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(db, tmp_path)
    yield machine
    machine.blocking.close()


@pytest.fixture
async def store(machine: Machine) -> ContainerStore:
    return await machine.open()


async def test_a_container_is_there_after_a_restart(machine: Machine, store: ContainerStore) -> None:
    made = await store.add(record(name="n"), CREATED)
    await made.status.update_sync(lambda status: status.started(pid=7, at=2))
    again = (await machine.open()).get("abcdef")
    assert again.record == made.record == record(name="n")
    assert again.status.get() == made.status.get()
    assert again.metadata.config == made.metadata.config


async def test_a_full_id_is_added_once(store: ContainerStore) -> None:
    first = await store.add(record(), CREATED)
    with pytest.raises(errors.AlreadyExists, match="abcdef"):
        await store.add(record(), CREATED)
    assert store.get("abcdef") is first
    assert first.status.path.exists()


class TestPrefix:
    @pytest.fixture(autouse=True)
    async def several(self, store: ContainerStore) -> None:
        for container_id in ("abcdef", "abd", "abdomen", "x1"):
            await store.add(record(container_id), CREATED)

    @pytest.mark.parametrize(
        ("prefix", "found"), [("abc", "abcdef"), ("x", "x1"), ("abd", "abd"), ("abdo", "abdomen"), ("abcdef", "abcdef")]
    )
    async def test_a_unique_prefix_is_enough(self, store: ContainerStore, prefix: str, found: str) -> None:
        assert store.get(prefix).id == found

    @pytest.mark.parametrize("prefix", ["", "a", "ab"])
    async def test_an_ambiguous_or_empty_one_is_an_invalid_argument(self, store: ContainerStore, prefix: str) -> None:
        with pytest.raises(errors.InvalidArgument):
            store.get(prefix)

    @pytest.mark.parametrize("prefix", ["b", "abcdefg", "y", "%", "ABC"])
    async def test_no_match_is_not_found(self, store: ContainerStore, prefix: str) -> None:
        with pytest.raises(errors.NotFound):
            store.get(prefix)

    async def test_deletion_makes_a_prefix_unique(self, store: ContainerStore) -> None:
        await store.delete("abd")
        await store.delete("abdomen")
        assert store.get("ab").id == "abcdef"


async def test_list_is_a_snapshot_and_by_sandbox(store: ContainerStore) -> None:
    await store.add(record("one"), CREATED)
    before = store.list()
    await store.add(record("two", sandbox_id="other"), CREATED)
    assert [container.id for container in before] == ["one"]
    assert [container.id for container in store.list("other")] == ["two"]


async def test_a_name_is_reserved_until_deletion(machine: Machine, store: ContainerStore) -> None:
    await store.add(record("one", name="web"), CREATED)
    with pytest.raises(errors.AlreadyExists, match="held by one"):
        await store.add(record("two", name="web"), CREATED)
    assert not (machine.root / "containers" / "two").exists()
    assert (await machine.open()).names.key("web") == "one"
    await store.delete("one")
    await store.add(record("two", name="web"), CREATED)


async def test_a_container_shares_the_fate_of_its_transaction(machine: Machine, store: ContainerStore) -> None:
    def fail(_connection: Connection) -> None:
        raise errors.ResourceExhausted("no more")

    container = await store.prepare(record(name="web"), CREATED)
    with pytest.raises(errors.ResourceExhausted):
        await machine.db.commit(store.plan_add(container), Plan(fail))
    await store.abandon(container)
    await store.abandon(container)
    assert not container.status.path.parent.exists()
    assert store.list() == (await machine.open()).list() == ()
    assert not container.status.path.exists()
    assert (await store.add(record(name="web"), CREATED)).id == "abcdef"


async def test_spec_and_labels_change_the_rest_does_not(machine: Machine, store: ContainerStore) -> None:
    container = await store.add(record(), CREATED)
    await store.update("abcdef", spec=b"{}")
    await store.update("abcdef", labels={"app": "db"})
    for current in (container, (await machine.open()).get("abcdef")):
        assert (current.record.spec, current.record.labels) == (b"{}", {"app": "db"})
        assert current.metadata == record().metadata
    with pytest.raises(errors.NotFound):
        await store.update("other", spec=b"{}")


async def test_delete_is_idempotent_and_takes_the_checkpoint(machine: Machine, store: ContainerStore) -> None:
    container = await store.add(record(), CREATED)
    await store.delete("abcdef")
    await store.delete("abcdef")
    assert not container.status.path.exists()
    assert (await machine.open()).list() == ()


async def test_stats_are_kept_by_prefix(store: ContainerStore) -> None:
    container: Container = await store.add(record(), CREATED)
    sample = ContainerStats(timestamp=1, usage_core_nanoseconds=2)
    store.update_stats("abc", sample)
    assert container.stats == sample
    with pytest.raises(errors.NotFound):
        store.update_stats("z", sample)


async def test_stopped_is_open_for_what_had_exited(machine: Machine, store: ContainerStore) -> None:
    container = await store.add(record(), CREATED)
    assert not container.stopped.is_set
    final = await container.status.update_sync(lambda status: status.exited(code=1, at=2))
    assert container.stopped.value == (await machine.open()).get("abcdef").stopped.value == final


async def test_a_broken_checkpoint_makes_unknown_not_a_crash(machine: Machine, store: ContainerStore) -> None:
    broken = await store.add(record("broken"), CREATED)
    await store.add(record("whole"), CREATED)
    broken.status.path.write_bytes(b"{")
    again = await machine.open()
    assert again.get("broken").status.get().state is State.UNKNOWN
    assert again.get("whole").status.get().state is State.CREATED


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE containers SET metadata = x'7b7d' WHERE id = 'bad'",
        "UPDATE containers SET labels = x'ff' WHERE id = 'bad'",
        "UPDATE containers SET created_at = 'x' WHERE id = 'bad'",
        "UPDATE containers SET sandbox_id = 'stolen' WHERE id = 'bad'",
        "UPDATE containers SET id = '../bad' WHERE id = 'bad'",
        "UPDATE containers SET id = CAST(x'626164ff' AS TEXT) WHERE id = 'bad'",
        "UPDATE containers SET name = CAST(x'ff' AS TEXT) WHERE id = 'bad'",
    ],
)
async def test_an_unreadable_record_is_quarantined_and_the_rest_served(
    machine: Machine, store: ContainerStore, damage: str
) -> None:
    await store.add(record("good"), CREATED)
    await store.add(record("bad"), CREATED)

    def run(connection: Connection) -> None:
        connection.execute(damage)

    await machine.db.write(run)
    for _ in range(2):
        again = await machine.open()
        assert [container.id for container in again.list()] == ["good"]
        (kept,) = again.quarantined()
        assert kept.key in ("bad", "../bad", "bad\\xff")
