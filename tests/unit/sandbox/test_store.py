"""The store of sandbox records: containerd's rules, one transaction, memory that follows."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.database import Connection, Database, Plan
from atoll.sandbox.controller import Runtime, Sandbox, TypedAny
from atoll.sandbox.store import SCHEMA, SandboxStore, merge

SPEC = TypedAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"ociVersion":"1.1.0"}')
OPTIONS = TypedAny(type_url="containerd.runc.v1.Options", value=b"\x00\xff\x10")
EXTENSION = TypedAny(type_url="x", value=b"1")
OTHER = TypedAny(type_url="y", value=b"2")


def sandbox(sandbox_id: str = "box", **fields: object) -> Sandbox:
    full = Sandbox(
        id=sandbox_id,
        sandboxer="shim",
        runtime=Runtime(name="io.containerd.atoll.v1", options=OPTIONS),
        spec=SPEC,
        labels={"app": "web", "tier": "front"},
        extensions={"metadata": EXTENSION, "other": OTHER},
    )
    return dataclasses.replace(full, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    db = await Database.open(path, (SCHEMA,))
    yield db
    await db.close()


@pytest.fixture
async def store(db: Database) -> SandboxStore:
    return await SandboxStore.open(db)


async def test_a_record_reads_back_equal_from_memory_and_from_disk(db: Database, store: SandboxStore) -> None:
    before = datetime.now(UTC)
    made = await store.create(sandbox(created_at=before - timedelta(days=1), updated_at=before - timedelta(days=2)))
    assert made.created_at == made.updated_at >= before
    assert made == sandbox(created_at=made.created_at, updated_at=made.updated_at)
    assert store.get("box") == made
    assert (await SandboxStore.open(db)).get("box") == made


async def test_an_id_is_created_once_in_a_namespace(store: SandboxStore) -> None:
    await store.create(sandbox())
    with pytest.raises(errors.AlreadyExists, match="box"):
        await store.create(sandbox())
    await store.create(sandbox(), namespace="default")
    assert len(store.list()) == len(store.list(namespace="default")) == 1


async def test_of_two_creations_at_once_one_wins(store: SandboxStore) -> None:
    async def create() -> str:
        try:
            await store.create(sandbox())
        except errors.AlreadyExists:
            return "lost"
        return "won"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(create()) for _ in range(5)]
    assert sorted(task.result() for task in tasks) == ["lost"] * 4 + ["won"]


@pytest.mark.parametrize("bad", ["", "a" * 77, "a..b", "-a", "a-", "a_.b", "a/b", "../a", "a\n", "ä", "a b", "\x00"])
async def test_a_bad_id_is_refused(store: SandboxStore, bad: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="sandbox id"):
        await store.create(sandbox(bad))
    assert store.list() == ()


@pytest.mark.parametrize("good", ["a", "a" * 76, "a.b_c-d", "0", "A1"])
async def test_a_good_id_is_taken(store: SandboxStore, good: str) -> None:
    assert (await store.create(sandbox(good))).id == good


async def test_every_call_needs_a_namespace(store: SandboxStore) -> None:
    for call in (store.get, store.list, store.plan_delete):
        with pytest.raises(errors.FailedPrecondition, match="namespace"):
            call("box", namespace="")
    with pytest.raises(errors.InvalidArgument, match="namespace"):
        await store.create(sandbox(), namespace="no good")


async def test_what_is_not_there_is_not_found(store: SandboxStore) -> None:
    with pytest.raises(errors.NotFound):
        store.get("box")
    with pytest.raises(errors.NotFound):
        await store.update(sandbox())
    with pytest.raises(errors.NotFound):
        await store.delete("box")
    assert store.list() == ()


async def test_delete_takes_it_from_memory_and_disk(db: Database, store: SandboxStore) -> None:
    await store.create(sandbox(), name="web_default_1_0")
    await store.delete("box")
    assert store.named("web_default_1_0") is None
    with pytest.raises(errors.NotFound):
        store.get("box")
    assert (await SandboxStore.open(db)).list() == ()


async def test_a_name_is_held_until_the_record_goes(db: Database, store: SandboxStore) -> None:
    await store.create(sandbox("one"), name="web")
    with pytest.raises(errors.AlreadyExists, match="held by sandbox one"):
        await store.create(sandbox("two"), name="web")
    await store.update(sandbox("one", labels={}), ("labels",))
    assert (await SandboxStore.open(db)).named("web") == store.named("web") == "one"
    await store.create(sandbox("two"), name="web", namespace="default")
    await store.delete("one")
    await store.create(sandbox("three"), name="web")
    assert store.named("web") == "three"


async def test_two_that_race_for_a_name_do_not_both_get_it(store: SandboxStore) -> None:
    plans = [store.plan_create(sandbox(name), name="web") for name in ("one", "two")]
    await store._db.commit(plans[0])
    with pytest.raises(errors.AlreadyExists, match="web"):
        await store._db.commit(plans[1])
    assert [record.id for record in store.list()] == ["one"]


async def test_records_without_a_name_do_not_clash(store: SandboxStore) -> None:
    await store.create(sandbox("one"))
    await store.create(sandbox("two"))
    assert store.named("") is None


async def test_a_record_shares_the_fate_of_its_transaction(db: Database, store: SandboxStore) -> None:
    def fail(_connection: Connection) -> None:
        raise errors.ResourceExhausted("no more")

    with pytest.raises(errors.ResourceExhausted):
        await db.commit(store.plan_create(sandbox(), name="web"), Plan(fail))
    assert store.list() == ()
    assert store.named("web") is None
    assert (await SandboxStore.open(db)).list() == ()


class TestUpdate:
    """`3.1`: which parts an update changes."""

    @pytest.fixture
    async def made(self, store: SandboxStore) -> Sandbox:
        return await store.create(sandbox())

    async def test_no_fields_replace_every_part(self, db: Database, store: SandboxStore, made: Sandbox) -> None:
        wanted = Sandbox(id="box", sandboxer="other", runtime=Runtime(name=made.runtime.name), labels={"new": "1"})
        got = await store.update(wanted)
        assert (got.labels, got.extensions, got.spec, got.runtime.options) == ({"new": "1"}, {}, None, None)
        assert (got.sandboxer, got.created_at) == (made.sandboxer, made.created_at)
        assert got.updated_at > made.updated_at
        assert store.get("box") == (await SandboxStore.open(db)).get("box") == got

    @pytest.mark.usefixtures("made")
    async def test_the_runtime_is_renamed_only_when_named(self, store: SandboxStore) -> None:
        wanted = sandbox(runtime=Runtime(name="io.containerd.kata.v2"), labels={"lost": "no"})
        with pytest.raises(errors.InvalidArgument, match="runtime"):
            await store.update(wanted)
        assert store.get("box").labels == {"app": "web", "tier": "front"}
        assert (await store.update(wanted, ["runtime"])).runtime == wanted.runtime

    @pytest.mark.parametrize(
        ("field", "change"),
        [
            ("labels", {"labels": {"only": "1"}}),
            ("extensions", {"extensions": {"only": OTHER}}),
            ("spec", {"spec": None}),
            ("runtime", {"runtime": Runtime(name="r")}),
        ],
    )
    async def test_a_named_part_is_replaced_and_nothing_else(
        self, db: Database, store: SandboxStore, made: Sandbox, field: str, change: dict[str, object]
    ) -> None:
        new = sandbox(runtime=Runtime(name="r"), spec=None, labels={"only": "1"}, extensions={"only": OTHER})
        got = await store.update(new, [field])
        assert got == dataclasses.replace(made, updated_at=got.updated_at, **change)
        assert (await SandboxStore.open(db)).get("box") == got

    async def test_one_key_is_set_or_removed(self, store: SandboxStore, made: Sandbox) -> None:
        wanted = sandbox(labels={"a.b/c": "1", "ignored": "x"}, extensions={"k.v": EXTENSION})
        got = await store.update(wanted, ["labels.a.b/c", "labels.tier", "extensions.k.v", "extensions.other"])
        assert got.labels == {"app": "web", "a.b/c": "1"}
        assert got.extensions == {"metadata": EXTENSION, "k.v": EXTENSION}
        assert got.spec == made.spec

    @pytest.mark.usefixtures("made")
    async def test_an_empty_label_is_dropped(self, store: SandboxStore) -> None:
        assert (await store.update(sandbox(labels={"app": ""}), ["labels.app"])).labels == {"tier": "front"}
        assert (await store.create(sandbox("two", labels={"a": "", "b": "1"}))).labels == {"b": "1"}

    @pytest.mark.parametrize(
        "field", ["id", "sandboxer", "created_at", "", "label", "labels.", "spec.x", "runtime.name"]
    )
    async def test_any_other_path_changes_nothing(self, store: SandboxStore, made: Sandbox, field: str) -> None:
        with pytest.raises(errors.InvalidArgument, match="field path"):
            await store.update(sandbox(labels={}), ["labels", field])
        assert store.get("box") == made

    @pytest.mark.usefixtures("made")
    async def test_updates_at_once_lose_nothing(self, store: SandboxStore) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                wanted = sandbox(labels={f"l{number}": "1"})
                group.create_task(store.update(wanted, [f"labels.l{number}"]))
        assert {f"l{number}" for number in range(20)} < set(store.get("box").labels)

    @pytest.mark.usefixtures("made")
    async def test_what_the_caller_does_later_changes_nothing(self, store: SandboxStore) -> None:
        labels = {"app": "1"}
        await store.update(sandbox(labels=labels), ["labels"])
        labels["app"] = "2"
        assert store.get("box").labels == {"app": "1"}


anys = st.builds(TypedAny, type_url=st.text(), value=st.binary())
sandboxes = st.builds(
    Sandbox,
    id=st.just("box"),
    sandboxer=st.just("shim"),
    runtime=st.builds(Runtime, name=st.just("r"), options=st.none() | anys),
    spec=st.none() | anys,
    labels=st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    extensions=st.dictionaries(st.text(max_size=3), anys),
    created_at=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    updated_at=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
)


@given(sandboxes, sandboxes)
def test_an_update_of_everything_gives_the_new_parts(old: Sandbox, new: Sandbox) -> None:
    merged = merge(old, new, ())
    assert merged == merge(old, new, ("labels", "extensions", "spec", "runtime"))
    assert merged == dataclasses.replace(new, labels={key: value for key, value in new.labels.items() if value})
    assert merge(merged, new, ()) == merged


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("UPDATE sandboxes SET runtime = x'7b' WHERE id = 'bad'", "runtime"),
        ("UPDATE sandboxes SET labels = x'ff' WHERE id = 'bad'", "labels"),
        ("UPDATE sandboxes SET spec = CAST('null' AS TEXT) WHERE id = 'bad'", "spec"),
        ("UPDATE sandboxes SET created_at = 'yesterday' WHERE id = 'bad'", "created_at"),
        ("UPDATE sandboxes SET updated_at = 9223372036854775807 WHERE id = 'bad'", "out of range"),
        ("UPDATE sandboxes SET id = '../bad' WHERE id = 'bad'", "identifier"),
        ("UPDATE sandboxes SET sandboxer = CAST(x'ff' AS TEXT) WHERE id = 'bad'", "sandboxer"),
        ("UPDATE sandboxes SET namespace = CAST(x'ff' AS TEXT) WHERE id = 'bad'", "namespace"),
    ],
)
async def test_an_unreadable_record_is_quarantined_and_the_rest_served(
    db: Database, store: SandboxStore, damage: str, reason: str
) -> None:
    await store.create(sandbox("good"))
    await store.create(sandbox("bad"))
    run: Callable[[Connection], None] = lambda connection: connection.execute(damage).close()  # noqa: E731
    await db.write(run)
    for _ in range(2):
        again = await SandboxStore.open(db)
        assert [record.id for record in again.list()] == ["good"]
        (kept,) = again.quarantined()
        assert kept.source == "sandboxes"
        assert kept.key in ("k8s.io/bad", "k8s.io/../bad", "\\xff/bad")
        assert reason in kept.reason
