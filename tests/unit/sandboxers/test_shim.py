"""The shim sandboxer over a shim in this process: failures, undos that fail, lost connections, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.sandbox.controller import (
    CleanupFailed,
    CreateOptions,
    ExitStatus,
    Runtime,
    Sandbox,
    SandboxInfo,
    State,
    TypedAny,
)
from atoll.sandboxers.shim import ShimController
from atoll.sandboxers.update import SPEC_URL
from atoll.testing.faultpoints import Fault, FaultPlan
from tests.unit.runtime.shims import LocalLauncher, request

ENDED = ExitStatus(exit_status=9, exited_at=datetime(2026, 1, 1, tzinfo=UTC))


def sandbox(sandbox_id: str = "one") -> Sandbox:
    return Sandbox(id=sandbox_id, sandboxer="shim", runtime=Runtime(name="io.test.v1"))


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.aclose()


@pytest.fixture
async def make(launcher: LocalLauncher, tmp_path: Path) -> AsyncIterator[Callable[[], ShimController]]:
    blocking = Blocking(threads=1)
    made: list[ShimController] = []

    def make() -> ShimController:
        controller = ShimController(launcher=launcher, bundles=tmp_path, namespace="test", blocking=blocking)
        made.append(controller)
        return controller

    yield make
    for controller in made:
        await controller.aclose()
    blocking.close()


@pytest.fixture
def controller(make: Callable[[], ShimController]) -> ShimController:
    return make()


async def start(controller: ShimController, sandbox_id: str = "one") -> None:
    await controller.create(sandbox(sandbox_id), CreateOptions())
    await controller.start(sandbox_id)


async def drop_connection(controller: ShimController, launcher: LocalLauncher, folder: Path) -> None:
    """The connection ends; the shim goes on."""
    await controller.status("one")
    await launcher.hang_up("one")
    await launcher.serve(request(folder))


@pytest.mark.parametrize("point", ["launcher.launch", "shim.create", "shim.start"])
async def test_a_failure_leaves_nothing(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path, point: str
) -> None:
    launcher.faults = FaultPlan(Fault(point=point, error=errors.ResourceExhausted("no room")))
    with pytest.raises(errors.ResourceExhausted, match="no room") as caught:
        await start(controller)
    assert not isinstance(caught.value, CleanupFailed)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.NotFound):
        await controller.status("one")
    assert launcher.faults.unused == ()


@pytest.mark.parametrize("point", ["launcher.launch", "shim.create", "shim.start"])
async def test_a_failure_that_cannot_be_undone_is_told_and_left_to_shutdown(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path, point: str
) -> None:
    launcher.faults = FaultPlan(
        Fault(point=point, error=errors.ResourceExhausted("no room")),
        Fault(point="launcher.delete", error=errors.Unavailable("stuck")),
    )
    with pytest.raises(CleanupFailed) as caught:
        await start(controller)
    assert caught.value.code == errors.ResourceExhausted.code
    assert "stuck" in caught.value.left[0]
    await controller.shutdown("one")
    assert list(tmp_path.iterdir()) == []


async def test_a_shim_that_refuses_to_shut_down_is_taken_away_all_the_same(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path
) -> None:
    await start(controller)
    launcher.faults = FaultPlan(Fault(point="shim.shutdown", error=errors.Internal("left behind: a mount")))
    launcher.services["one"]._faults = launcher.faults
    await controller.shutdown("one")
    assert launcher.deleted == ["one"]
    assert list(tmp_path.iterdir()) == []


async def test_a_lost_connection_to_a_living_shim_is_not_noticed(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path
) -> None:
    await start(controller)
    await drop_connection(controller, launcher, tmp_path)
    assert (await controller.status("one")).state is State.READY
    await drop_connection(controller, launcher, tmp_path)
    await controller.ping("one")
    await drop_connection(controller, launcher, tmp_path)
    await controller.stop("one")
    assert (await controller.wait("one")).exit_status == 3


async def test_a_waiter_outlives_a_lost_connection(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path
) -> None:
    await start(controller)
    async with TaskOwner("waiters") as owner:
        waiting = [owner.spawn(controller.wait("one"), name=f"waiter {n}") for n in range(3)]
        await asyncio.sleep(0)
        await controller.status("one")
        (await controller._held["one"].link.shim()).client.close()
        await controller.stop("one")
        ended = {await waiter for waiter in waiting}
    assert {one.exit_status for one in ended} == {3}
    assert len(ended) == 1


@pytest.mark.parametrize(("recorded", "status"), [(ENDED, 9), (None, 255)])
async def test_a_dead_shims_record_tells_the_end_and_else_nobody_knows(
    controller: ShimController, launcher: LocalLauncher, recorded: ExitStatus | None, status: int
) -> None:
    await start(controller)
    launcher.recorded = recorded
    await launcher.hang_up("one")
    first = await controller.wait("one")
    assert first.exit_status == status
    assert {await controller.wait("one") for _ in range(3)} == {first}
    told = await controller.status("one")
    assert (told.state, told.pid, told.exited_at) == (State.NOTREADY, 0, first.exited_at)
    assert "gone" in told.reason
    await controller.stop("one")
    await controller.shutdown("one")


async def test_a_shim_that_does_not_answer_leaves_what_is_known(
    controller: ShimController, launcher: LocalLauncher
) -> None:
    await controller.create(sandbox(), CreateOptions())
    instance = await controller.start("one")
    launcher.services["one"]._faults = FaultPlan(Fault(point="shim.status", error=errors.DeadlineExceeded("busy")))
    status = await controller.status("one", verbose=True)
    assert (status.state, status.pid, status.reason) == (State.READY, instance.pid, "busy")
    assert (status.created_at, status.address) == (instance.created_at, instance.address)
    assert SandboxInfo.decode(status.info).process_status == "unknown"
    assert SandboxInfo.decode((await controller.status("one", verbose=True)).info).process_status == "running"


async def test_a_brief_status_asks_nobody(controller: ShimController, launcher: LocalLauncher) -> None:
    await start(controller)
    launcher.services["one"]._faults = faults = FaultPlan(Fault(point="shim.status", error=errors.Internal("asked")))
    for _ in range(3):
        assert (await controller.status("one")).state is State.READY
    assert [fault.point for fault in faults.unused] == ["shim.status"]


async def test_a_sandbox_that_was_not_asked_yet_is_unknown_until_its_shim_answers(
    make: Callable[[], ShimController], launcher: LocalLauncher
) -> None:
    earlier = make()
    await start(earlier)
    await earlier.aclose()
    launcher.services["one"]._faults = FaultPlan(Fault(point="shim.status", error=errors.DeadlineExceeded("busy")))
    later = make()
    status = await later.recover(sandbox())
    assert (status.state, status.reason) == (State.UNKNOWN, "busy")
    status = await later.status("one")
    assert (status.state, status.pid) == (State.READY, 7)


async def test_a_thousand_waiters_ask_the_shim_once(controller: ShimController, launcher: LocalLauncher) -> None:
    await start(controller)
    async with TaskOwner("waiters") as owner:
        waiting = [owner.spawn(controller.wait("one"), name=f"waiter {n}") for n in range(1000)]
        await controller.stop("one")
        assert len({await waiter for waiter in waiting}) == 1
    assert launcher.services["one"].waits == 1


async def test_a_fault_on_the_way_to_the_end_is_retried(controller: ShimController, launcher: LocalLauncher) -> None:
    launcher.faults = FaultPlan(Fault(point="shim.wait", error=errors.Internal("not now")))
    await start(controller)
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(controller.wait("one"), name="waiter")
        await asyncio.sleep(0)
        await controller.stop("one")
        assert (await waiting).exit_status == 3
    assert launcher.faults.unused == ()


async def test_a_started_sandbox_keeps_the_labels_of_its_record(controller: ShimController) -> None:
    await controller.create(replace(sandbox(), labels={"name": "web"}), CreateOptions())
    assert (await controller.start("one")).labels == {"name": "web"}


async def test_an_update_of_labels_needs_no_shim_of_ours(controller: ShimController) -> None:
    await start(controller)
    await controller.update("one", replace(sandbox(), labels={"a": "b", "c": "d"}), ("labels.a",))
    info = SandboxInfo.decode((await controller.status("one", verbose=True)).info)
    assert info.labels == {"a": "b"}


async def test_what_another_shim_cannot_do_is_unimplemented_and_changes_nothing(controller: ShimController) -> None:
    await start(controller)
    for work in (controller.pause, controller.resume):
        with pytest.raises(errors.Unimplemented):
            await work("one")
    spec = TypedAny(type_url=SPEC_URL, value=b'{"annotations": {"a": "b"}}')
    with pytest.raises(errors.Unimplemented):
        await controller.update("one", replace(sandbox(), labels={"a": "b"}, spec=spec), ("labels", "spec"))
    assert SandboxInfo.decode((await controller.status("one", verbose=True)).info).labels == {}


async def test_one_of_two_starts_wins(controller: ShimController) -> None:
    await controller.create(sandbox(), CreateOptions())
    async with TaskOwner("starts") as owner:
        starting = [owner.spawn(controller.start("one"), name=f"start {n}") for n in range(2)]
        await asyncio.wait(starting)
    outcomes = [start.exception() for start in starting]
    assert [type(error) for error in outcomes if error is not None] == [errors.FailedPrecondition]


async def test_what_comes_behind_a_shutdown_finds_nothing(controller: ShimController, tmp_path: Path) -> None:
    await start(controller)
    async with TaskOwner("calls") as owner:
        ending = [owner.spawn(controller.shutdown("one"), name=f"shutdown {n}") for n in range(2)]
        await asyncio.sleep(0)
        update = owner.spawn(controller.update("one", sandbox(), ("labels",)), name="update")
        stop = owner.spawn(controller.stop("one"), name="stop")
        await asyncio.wait([*ending, update, stop])
        for one in (*ending, stop):
            one.result()
        with pytest.raises(errors.NotFound):
            update.result()
    assert list(tmp_path.iterdir()) == []


async def test_what_a_failed_start_left_is_unknown_until_it_is_gone(
    controller: ShimController, launcher: LocalLauncher, tmp_path: Path
) -> None:
    launcher.faults = FaultPlan(
        Fault(point="shim.start", error=errors.ResourceExhausted("no room")),
        Fault(point="launcher.delete", error=errors.Unavailable("stuck"), times=2),
    )
    with pytest.raises(CleanupFailed):
        await start(controller)
    status = await controller.status("one")
    assert (status.state, "stuck" in status.reason) == (State.UNKNOWN, True)
    with pytest.raises(errors.FailedPrecondition):
        await controller.start("one")
    for work in (controller.ping, controller.pause, controller.resume, controller.metrics):
        with pytest.raises(errors.Unavailable):
            await work("one")
    with pytest.raises(errors.Unavailable, match="stuck"):
        await controller.shutdown("one")
    await controller.shutdown("one")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.NotFound):
        await controller.status("one")


async def test_create_does_not_touch_what_an_earlier_daemon_left(
    make: Callable[[], ShimController], launcher: LocalLauncher, tmp_path: Path
) -> None:
    earlier = make()
    await start(earlier)
    await earlier.aclose()
    later = make()
    with pytest.raises(errors.AlreadyExists):
        await later.create(sandbox(), CreateOptions())
    assert launcher.deleted == []
    assert (await later.recover(sandbox())).state is State.READY


async def test_what_was_let_go_goes_on(make: Callable[[], ShimController]) -> None:
    earlier = make()
    await start(earlier)
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(earlier.wait("one"), name="waiter")
        await asyncio.sleep(0.01)
        await earlier.aclose()
        with pytest.raises(errors.Unavailable):
            await waiting
    later = make()
    assert (await later.recover(sandbox())).state is State.READY
    with pytest.raises(errors.FailedPrecondition):
        await later.start("one")
    await later.shutdown("one")


async def test_recovery_without_a_bundle_is_not_found(controller: ShimController) -> None:
    with pytest.raises(errors.NotFound):
        await controller.recover(sandbox())
    with pytest.raises(errors.NotFound):
        await controller.status("one")


async def test_recovery_of_a_sandbox_whose_shim_died_can_be_shut_down(
    make: Callable[[], ShimController], launcher: LocalLauncher, tmp_path: Path
) -> None:
    earlier = make()
    await start(earlier)
    await launcher.hang_up("one")
    await earlier.aclose()
    launcher.recorded = ENDED
    later = make()
    status = await later.recover(sandbox())
    assert (status.state, status.exited_at) == (State.NOTREADY, ENDED.exited_at)
    assert await later.wait("one") == ENDED
    await later.shutdown("one")
    assert list(tmp_path.iterdir()) == []


async def test_shutdown_frees_a_bundle_that_nobody_took_up(
    make: Callable[[], ShimController], launcher: LocalLauncher, tmp_path: Path
) -> None:
    earlier = make()
    await start(earlier)
    await earlier.aclose()
    await make().shutdown("one")
    assert launcher.services["one"].shut_down.is_set()
    assert list(tmp_path.iterdir()) == []


async def test_an_instance_names_where_its_tasks_are_served(controller: ShimController, tmp_path: Path) -> None:
    await controller.create(replace(sandbox(), labels={"a": "b"}), CreateOptions())
    instance = await controller.start("one")
    assert (instance.address, instance.version) == (f"ttrpc+unix://{tmp_path}/one/sock", 3)
