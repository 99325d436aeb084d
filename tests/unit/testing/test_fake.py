"""Faults of the fake controller: what a failed start leaves, and how it is told."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.sandbox.controller import CleanupFailed, CreateOptions, Runtime, Sandbox, State
from atoll.testing.fake import FakeController
from atoll.testing.faultpoints import Fault, FaultPlan


def sandbox(sandbox_id: str = "one") -> Sandbox:
    return Sandbox(id=sandbox_id, sandboxer="fake", runtime=Runtime(name="io.containerd.fake.v1"))


async def test_a_failed_start_leaves_nothing() -> None:
    plan = FaultPlan(Fault(point="controller.start", error=errors.Unavailable("no room")))
    controller = FakeController(plan)
    await controller.create(sandbox(), CreateOptions())
    with pytest.raises(errors.Unavailable, match="no room"):
        await controller.start("one")
    assert controller.ids == set()
    assert plan.unused == ()


async def test_a_start_that_cannot_be_undone_is_unknown_until_shutdown() -> None:
    plan = FaultPlan(
        Fault(point="controller.start", error=errors.Unavailable("no room")),
        Fault(point="controller.undo", error=errors.Internal("stuck")),
    )
    controller = FakeController(plan)
    await controller.create(sandbox(), CreateOptions())
    with pytest.raises(CleanupFailed) as caught:
        await controller.start("one")
    assert caught.value.code == errors.Unavailable.code
    assert caught.value.left == ("the mount of one: stuck",)
    status = await controller.status("one")
    assert (status.state, bool(status.reason)) == (State.UNKNOWN, True)
    await controller.shutdown("one")
    assert controller.ids == set()


async def test_a_fault_happens_at_its_call_and_no_other() -> None:
    plan = FaultPlan(Fault(point="controller.create", error=errors.Internal("second"), first=2))
    controller = FakeController(plan)
    await controller.create(sandbox("one"), CreateOptions())
    with pytest.raises(errors.Internal):
        await controller.create(sandbox("two"), CreateOptions())
    await controller.create(sandbox("three"), CreateOptions())
    assert controller.ids == {"one", "three"}
    assert plan.calls["controller.create"] == 3
    assert controller.calls == [("create", "one"), ("create", "two"), ("create", "three")]


async def test_a_plan_knows_what_never_happened() -> None:
    fault = Fault(point="controller.stop", first=2)
    plan = FaultPlan(fault)
    await FakeController(plan).stop("absent")
    assert plan.unused == (fault,)
