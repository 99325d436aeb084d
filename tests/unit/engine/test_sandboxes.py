"""Hosted sandboxes over a controller in memory: failures are undone, ends told once, restarts change nothing."""

# ruff: noqa: TID251  # the tests play callers that come and go

from __future__ import annotations

import asyncio
import dataclasses
import json
import typing
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll import errors
from atoll.api import containerd_events_pb2 as events_pb2
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.concurrency import Blocking, TaskOwner
from atoll.config import Config, SandboxSection
from atoll.database import Database
from atoll.engine import hosted_recovery, kinds
from atoll.engine.front import Front, FrontController
from atoll.engine.hosted import SCHEMA as HOSTED
from atoll.engine.hosted import HostedStore, key_of
from atoll.engine.hosting import LINKS, LinksKind
from atoll.engine.parts import Parts
from atoll.engine.paths import Paths
from atoll.engine.pods import Pods
from atoll.engine.sandboxes import Sandboxes
from atoll.engine.topics import EXIT, Topics
from atoll.ledger import records as ledger_records
from atoll.ledger.kind import Kind
from atoll.ledger.ledger import Ledger
from atoll.sandbox import store as sandbox_store
from atoll.sandbox.controller import (
    CleanupFailed,
    Controller,
    CreateOptions,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandbox.store import SandboxStore
from atoll.testing.fake import FakeController
from atoll.testing.faultpoints import Fault, FaultPlan

OPTIONS = CreateOptions(
    options=TypedAny(
        type_url="runtime.v1.PodSandboxConfig",
        value=cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/mine")).SerializeToString(),
    )
)


@dataclass(slots=True)
class FakeHosts:
    """One controller a namespace; they outlive the daemon, as shims do."""

    faults: FaultPlan
    made: dict[tuple[str, str], FakeController] = field(default_factory=dict[tuple[str, str], FakeController])

    def controller(self, name: str, namespace: str = "k8s.io") -> Controller:
        if name != "atoll":
            raise errors.FailedPrecondition(f"runtime handler {name!r}: is not configured any more")
        if (name, namespace) not in self.made:
            self.made[name, namespace] = FakeController(self.faults)
        return self.made[name, namespace]

    def problem(self, name: str) -> str:
        return ""

    def shim_options(self, name: str) -> TypedAny | None:
        return None


class World:
    """A daemon's worth of parts; `restart` is a SIGKILL and a new daemon."""

    def __init__(self, folder: Path, faults: FaultPlan, config: Config) -> None:
        self.paths = Paths.prepare(folder / "root", folder / "state")
        self.hosts = FakeHosts(faults)
        self.config = config

    async def begin(self) -> World:
        self.blocking, self.owner, self.topics = Blocking(2), TaskOwner("world"), Topics()
        schemas = (sandbox_store.SCHEMA, HOSTED, ledger_records.SCHEMA)
        self.db = await Database.open(self.paths.database, schemas)
        found: dict[str, Kind] = {
            kinds.POD_FILES: kinds.MountedFolderKind(kinds.POD_FILES, self.paths.pods, self.blocking),
            kinds.SANDBOX: kinds.SandboxKind(self.hosts, self.config, self.paths.shims, self.blocking),
            LINKS: LinksKind(self.config, self.paths.pods, self.blocking),
        }
        self.ledger = await Ledger.open(self.db, found, self.owner, first_retry_s=0.01)
        parts = SimpleNamespace(
            config=self.config,
            paths=self.paths,
            db=self.db,
            ledger=self.ledger,
            sandboxes=await SandboxStore.open(self.db),
            hosted=HostedStore(self.db),
            hosts=self.hosts,
            topics=self.topics,
            blocking=self.blocking,
            owner=self.owner,
            cgroup_parent="/x",
        )
        self.sandboxes = Sandboxes(typing.cast("Parts", parts))
        pods = typing.cast("Pods", SimpleNamespace(find=lambda _id: None))
        self.front = Front(typing.cast("Parts", parts), self.sandboxes, pods)
        await hosted_recovery.load(self.sandboxes)
        await hosted_recovery.recover(self.sandboxes, self.owner)
        await self.sandboxes.free_unfinished()
        await self.ledger.recover(self.sandboxes.owners())
        return self

    async def end(self) -> None:
        self.sandboxes.aclose()
        await self.owner.aclose()
        await self.db.close()
        self.blocking.close()

    async def restart(self) -> None:
        await self.end()
        await self.begin()

    def controller(self, namespace: str = "k8s.io") -> FrontController:
        return self.front.find(namespace, "atoll")

    def inner(self, namespace: str = "k8s.io") -> FakeController:
        return typing.cast("FakeController", self.hosts.controller("atoll", namespace))

    async def run(self, sandbox_id: str, namespace: str = "k8s.io") -> FrontController:
        controller = self.controller(namespace)
        await controller.create(box(sandbox_id), OPTIONS)
        await controller.start(sandbox_id)
        return controller

    def assert_nothing_is_left(self) -> None:
        assert self.ledger.entries() == ()
        assert self.sandboxes.list() == ()
        assert list(self.paths.pods.iterdir()) == []
        assert all(not inner.ids for inner in self.hosts.made.values())


def box(sandbox_id: str) -> Sandbox:
    return Sandbox(id=sandbox_id, sandboxer="atoll", runtime=Runtime(name="x"), labels={"a": "b"})


@pytest.fixture
def faults() -> FaultPlan:
    return FaultPlan()


@pytest.fixture
async def world(tmp_path: Path, faults: FaultPlan) -> AsyncIterator[World]:
    config = Config(sandboxes=SandboxSection(unstarted_timeout_s=60.0, containerd_root="", containerd_state=""))
    made = await World(tmp_path, faults, config).begin()
    yield made
    await made.end()


def with_faults(world: World, *faults: Fault) -> FaultPlan:
    world.hosts.faults = FaultPlan(*faults)
    world.hosts.made.clear()
    return world.hosts.faults


async def until(done: Callable[[], bool]) -> None:
    """What happens behind an answer has happened."""
    async with asyncio.timeout(5):
        while not done():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.001)


BUSY = errors.Unavailable("busy")


async def test_a_life(world: World) -> None:
    controller = await world.run("one")
    told = await controller.status("one")
    assert (told.state, told.pid > 0) == (State.READY, True)
    assert [(entry.owner, entry.kind) for entry in world.ledger.entries()] == [("one", "pod-files"), ("one", "sandbox")]
    await controller.stop("one")
    assert (await controller.wait("one")).exit_status == 137
    assert (await controller.status("one")).state is State.NOTREADY
    await controller.shutdown("one")
    with pytest.raises(errors.NotFound):
        await controller.status("one")
    world.assert_nothing_is_left()


@pytest.mark.parametrize("point", ["controller.create", "controller.start"])
async def test_what_fails_is_undone(world: World, point: str) -> None:
    with_faults(world, Fault(point=point, error=BUSY))
    with pytest.raises(errors.Unavailable, match="busy") as failure:
        await world.run("one")
    assert not isinstance(failure.value, CleanupFailed)
    with pytest.raises(errors.NotFound):
        await world.controller().status("one")
    world.assert_nothing_is_left()
    await world.run("one")


async def test_what_its_controller_cannot_undo_the_walk_does(world: World) -> None:
    with_faults(world, Fault(point="controller.start", error=BUSY), Fault(point="controller.undo", error=BUSY))
    with pytest.raises(errors.Unavailable) as failure:
        await world.run("one")
    assert not isinstance(failure.value, CleanupFailed)
    world.assert_nothing_is_left()


async def test_what_nobody_can_undo_is_owed_told_and_paid(world: World) -> None:
    with_faults(
        world,
        Fault(point="controller.start", error=BUSY),
        Fault(point="controller.undo", error=BUSY),
        Fault(point="controller.shutdown", error=BUSY, times=3),
    )
    with pytest.raises(CleanupFailed, match="sandbox one: busy"):
        await world.run("one")
    controller = world.controller()
    told = await controller.status("one")
    assert (told.state, "busy" in told.reason) == (State.UNKNOWN, True)
    with pytest.raises(errors.AlreadyExists):
        await controller.create(box("one"), OPTIONS)
    with pytest.raises(errors.FailedPrecondition):
        await controller.start("one")
    await until(lambda: not world.ledger.entries())
    with pytest.raises(errors.NotFound):
        await controller.status("one")
    world.assert_nothing_is_left()


async def test_a_shutdown_that_fails_says_so_and_can_be_repeated(world: World) -> None:
    with_faults(world, Fault(point="controller.shutdown", error=BUSY))
    controller = await world.run("one")
    waiting = asyncio.ensure_future(controller.wait("one"))
    with pytest.raises(errors.Unavailable, match="not freed yet"):
        await controller.shutdown("one")
    assert (await waiting).exit_status == 137
    await controller.shutdown("one")
    world.assert_nothing_is_left()


@pytest.mark.parametrize("point", ["controller.create", "controller.start"])
async def test_a_caller_that_leaves_takes_everything_with_it(world: World, point: str) -> None:
    faults = with_faults(world, Fault(point=point, delay_s=30.0))
    running = asyncio.ensure_future(world.run("one"))
    await until(lambda: faults.calls[point] > 0)
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    world.assert_nothing_is_left()


async def test_a_key_that_is_taken_is_not_freed_by_who_fails_to_get_it(world: World) -> None:
    await world.run("one", "moby")
    with pytest.raises(errors.AlreadyExists, match="in use"):
        await world.run(key_of("moby", "one"))
    assert (await world.controller("moby").status("one")).state is State.READY
    assert world.inner("moby").ids == {key_of("moby", "one")}


async def test_an_exit_is_told_once_to_everybody(world: World) -> None:
    seen = world.topics.open([f"topic=={EXIT}"])
    controller = await world.run("one")
    waiters = [asyncio.ensure_future(controller.wait("one")) for _ in range(10)]
    world.inner().end("one", 3)
    assert {(await waiter).exit_status for waiter in waiters} == {3}
    await controller.stop("one")
    assert (await controller.wait("one")).exit_status == 3
    await controller.shutdown("one")
    event = events_pb2.SandboxExit.FromString((await anext(seen)).event.value)
    assert (event.sandbox_id, event.exit_status) == ("one", 3)
    world.topics.publish("k8s.io", "/other", TypedAny(type_url="x", value=b""))
    world.topics.close()
    with pytest.raises(errors.Unavailable):
        await anext(seen)


async def test_everything_comes_back_after_a_restart(world: World) -> None:
    controller = await world.run("runs")
    before = await controller.status("runs")
    await world.run("ended")
    await controller.stop("ended")
    end = await controller.wait("ended")
    await controller.create(box("created"), OPTIONS)
    await world.run("runs", "moby")
    await world.run("dies")
    await world.end()
    world.inner().end("dies", 7)
    await world.begin()
    controller = world.controller()
    assert await controller.status("runs") == before
    assert await controller.wait("ended") == end
    assert (await controller.wait("dies")).exit_status == 7
    assert (await world.controller("moby").status("runs")).state is State.READY
    await controller.start("created")
    for one in ("runs", "ended", "created", "dies"):
        await controller.shutdown(one)
    await world.controller("moby").shutdown("runs")
    world.assert_nothing_is_left()


async def test_one_that_is_provably_gone_has_ended(world: World) -> None:
    await world.run("one")
    await world.end()
    world.hosts.made.clear()
    await world.begin()
    assert (await world.controller().wait("one")).exit_status == 255
    await world.controller().shutdown("one")
    world.assert_nothing_is_left()


async def test_one_that_cannot_be_asked_is_unknown_with_the_reason(world: World) -> None:
    await world.run("one")
    world.inner()._faults = FaultPlan(Fault(point="controller.status", error=BUSY, times=1))
    await world.restart()
    controller = world.controller()
    told = await controller.status("one")
    assert (told.state, told.reason) == (State.UNKNOWN, "sandbox one: busy")
    with pytest.raises(errors.Unavailable):
        await controller.ping("one")
    await controller.stop("one")
    assert (await controller.status("one")).state is State.NOTREADY


async def test_what_a_crash_cut_short_is_gone_after_the_restart(world: World) -> None:
    controller = await world.run("one")
    await controller.create(box("two"), OPTIONS)
    phases = {"one": "starting", "two": "creating"}

    def cut(connection: typing.Any) -> None:
        for name, phase in phases.items():
            connection.execute(
                "UPDATE hosted SET state = CAST(json_set(CAST(state AS TEXT), '$.phase', ?) AS BLOB) WHERE id = ?",
                (phase, name),
            )

    await world.db.write(cut)
    await world.restart()
    for one in phases:
        with pytest.raises(errors.NotFound):
            await world.controller().status(one)
    world.assert_nothing_is_left()


async def test_one_that_is_not_started_in_time_is_freed(tmp_path: Path, faults: FaultPlan) -> None:
    config = Config(sandboxes=SandboxSection(unstarted_timeout_s=0.05, containerd_root="", containerd_state=""))
    world = await World(tmp_path, faults, config).begin()
    controller = world.controller()
    await controller.create(box("idle"), OPTIONS)
    await world.run("used")
    waiting = asyncio.ensure_future(controller.wait("idle"))
    with pytest.raises(errors.NotFound):
        async with asyncio.timeout(5):
            await waiting
    assert (await controller.status("used")).state is State.READY
    await controller.shutdown("used")
    world.assert_nothing_is_left()
    await world.end()


async def test_waiters_are_told_to_ask_again_where_the_daemon_ends(world: World) -> None:
    controller = await world.run("one")
    waiting = asyncio.ensure_future(controller.wait("one"))
    await asyncio.sleep(0)
    world.sandboxes.release_waiters()
    with pytest.raises(errors.Unavailable, match="ask again"):
        await waiting
    await world.restart()
    assert (await world.controller().status("one")).state is State.READY


async def test_update_is_kept(world: World) -> None:
    controller = await world.run("one")
    record = dataclasses.replace(box("one"), labels={"new": "1"}, runtime=Runtime(name="other"))
    await controller.update("one", record, ("labels.new",))
    with pytest.raises(errors.InvalidArgument, match="runtime"):
        await controller.update("one", record, ("runtime",))
    with pytest.raises(errors.InvalidArgument, match="field path"):
        await controller.update("one", record, ("sandboxer",))
    await world.restart()
    (hosted,) = world.sandboxes.list()
    assert dict(hosted.record.sandbox.labels) == {"a": "b", "new": "1"}


async def test_an_update_that_the_disk_refuses_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await world.run("one")
    record = dataclasses.replace(box("one"), labels={"a": "c"})

    async def full(*_: object) -> None:
        raise errors.ResourceExhausted("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(world.db, "commit", full)
        with pytest.raises(errors.ResourceExhausted):
            await controller.update("one", record, ("labels.a",))
    told = await controller.status("one", verbose=True)
    assert json.loads(told.info["info"])["labels"] == {"a": "b"}


async def test_names_and_namespaces_are_checked(world: World) -> None:
    for namespace, sandboxer, kind in (
        ("", "atoll", errors.FailedPrecondition),
        ("a b", "atoll", errors.InvalidArgument),
        ("k8s.io", "", errors.InvalidArgument),
        ("k8s.io", "nobody", errors.NotFound),
    ):
        with pytest.raises(kind):
            world.front.find(namespace, sandboxer)


async def test_what_is_heard_of_keeps_what_changes_beside_it(world: World) -> None:
    controller = await world.run("one")
    (hosted,) = world.sandboxes.list()
    before = hosted.record
    await controller.stop("one")
    end = await controller.wait("one")
    await world.db.commit(world.sandboxes.store.plan_heard_of(before))
    await world.restart()
    (hosted,) = world.sandboxes.list()
    assert (hosted.state.is_heard_of, hosted.state.ended) == (True, end)
