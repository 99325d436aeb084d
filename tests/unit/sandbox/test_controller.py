"""What a controller is that has only the five methods it must have; its defaults do not say more than they know."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox import controller as contract
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Runtime,
    Sandbox,
    State,
    host_platform,
)

ENDED_AT = datetime(2026, 1, 1, tzinfo=UTC)
ONE = Sandbox(id="one", sandboxer="least", runtime=Runtime(name="io.least.v1"))


class Least(Controller):
    """Knows what it was told: nothing of exit statuses unless `exit_status` says so."""

    def __init__(self, exit_status: int | None = None) -> None:
        self.statuses: dict[str, ControllerStatus] = {}
        self.exit_status = exit_status

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        self.statuses[sandbox.id] = ControllerStatus(sandbox_id=sandbox.id, state=State.NOTREADY)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        self.statuses[sandbox_id] = replace(await self.status(sandbox_id), state=State.READY, pid=7)
        return ControllerInstance(sandbox_id=sandbox_id, pid=7, created_at=datetime.now(UTC))

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        self.statuses[sandbox_id] = replace(
            await self.status(sandbox_id), state=State.NOTREADY, exited_at=ENDED_AT, exit_status=self.exit_status
        )

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        if sandbox_id not in self.statuses:
            raise errors.NotFound(sandbox_id)
        return self.statuses[sandbox_id]

    async def shutdown(self, sandbox_id: str) -> None:
        self.statuses.pop(sandbox_id, None)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "POLL_S", 0.001)


async def test_the_default_wait_tells_the_end_that_status_tells() -> None:
    for known, told in ((3, 3), (0, 0), (None, UNKNOWN_EXIT_STATUS)):
        least = Least(known)
        await least.create(ONE, CreateOptions())
        await least.start("one")
        async with TaskOwner("waiters") as owner:
            waiting = [owner.spawn(least.wait("one"), name=f"waiter {n}") for n in range(3)]
            await asyncio.sleep(0.005)
            assert not any(waiter.done() for waiter in waiting)
            await least.stop("one")
            ended = ExitStatus(exit_status=told, exited_at=ENDED_AT)
            assert [await waiter for waiter in waiting] == [ended] * 3
        assert await least.wait("one") == ended


async def test_the_default_wait_of_a_created_one_blocks_and_ends_with_it() -> None:
    least = Least()
    await least.create(ONE, CreateOptions())
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(least.wait("one"), name="waiter")
        await asyncio.sleep(0.005)
        assert not waiting.done()
        await least.shutdown("one")
        with pytest.raises(errors.NotFound):
            await waiting


async def test_the_default_ping_and_platform_follow_the_status() -> None:
    least = Least()
    for work in (least.ping, least.platform):
        with pytest.raises(errors.NotFound):
            await work("one")
    await least.create(ONE, CreateOptions())
    with pytest.raises(errors.FailedPrecondition):
        await least.ping("one")
    assert await least.platform("one") == host_platform()
    await least.start("one")
    await least.ping("one")
    least.statuses["one"] = replace(least.statuses["one"], state=State.UNKNOWN, reason="the line is down")
    with pytest.raises(errors.Unavailable, match="the line is down"):
        await least.ping("one")


async def test_what_it_cannot_do_is_unimplemented_and_never_a_success() -> None:
    least = Least()
    await least.create(ONE, CreateOptions())
    await least.start("one")
    for work in (least.metrics, least.pause, least.resume):
        with pytest.raises(errors.Unimplemented):
            await work("one")
    with pytest.raises(errors.Unimplemented):
        await least.update("one", ONE, ("labels",))
    assert (await least.recover(ONE)).state is State.READY
    await least.aclose()


def test_a_failed_clean_up_tells_both_halves_and_has_the_code_of_what_came_first() -> None:
    error = CleanupFailed(errors.ResourceExhausted("no room"), ("a mount",), ("the shim", "the folder"))
    assert (error.code, error.left, error.undone) == (8, ("a mount",), ("the shim", "the folder"))
    for part in ("no room", "torn down: the shim, the folder", "not torn down yet: a mount"):
        assert part in str(error)
    assert "; torn down" not in str(CleanupFailed(errors.Internal("x"), ("y",)))
