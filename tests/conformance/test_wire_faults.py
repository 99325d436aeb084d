"""A fault is found through a wire by the checks that find it in process."""

from __future__ import annotations

import pytest

from atoll.testing.conformance import CHECKS, check_controller
from atoll.testing.fake import FakeController
from tests.conformance.wires import GRPC, TTRPC, through
from tests.integration.conftest import Roots
from tests.unit.testing.conformance import faults
from tests.unit.testing.conformance.subjects import fake_subject
from tests.unit.testing.conformance.test_faults import FOUND, FOUND_WIDELY, Kind, named

KINDS: tuple[Kind, ...] = (
    faults.CreateReplacesSilently,
    faults.IgnoresOptions,
    faults.StartsTwice,
    faults.RestartsTheDead,
    faults.CleanupErrorHides,
    faults.PidIsOfTheHost,
    faults.VersionIsZero,
    faults.DropsLabels,
    faults.StopNeedsTheId,
    faults.StopChangesTheExit,
    faults.ShutdownNeedsTheId,
    faults.ShutdownKeepsTheId,
    faults.ShutdownLeavesAMount,
    faults.WaitLosesTheStatus,
    faults.ExitIsInTheFuture,
    faults.StatusWaitsForItsTurn,
    faults.WrongCode,
    faults.ReadyForEver,
    faults.PlatformIsEmpty,
    faults.PingThaws,
    faults.MeasuresSomebodyElse,
    faults.PauseFreezesOne,
    faults.UpdateIgnores,
)
"""Not those that a wire puts right (the order of starts, shared waits) or hides (who has hung up, by ttrpc)."""


async def failures(kind: Kind, wire: str, roots: Roots, names: tuple[str, ...]) -> set[str]:
    made = fake_subject(kind(sockets="/run/fake"))
    chosen = [one for one in CHECKS if one.name in names]
    async with through(made, wire, roots.state) as subject:
        report = await check_controller(subject, chosen, jobs=len(chosen))
    print(report)
    return {outcome.check.name for outcome in report.failures}


@pytest.mark.parametrize("wire", [GRPC, TTRPC])
@pytest.mark.parametrize("kind", KINDS, ids=named)
async def test_a_fault_is_found_through_a_wire(kind: Kind, wire: str, roots: Roots) -> None:
    expected = {**FOUND, **FOUND_WIDELY}[kind]
    assert await failures(kind, wire, roots, expected) == set(expected)


@pytest.mark.parametrize("wire", [GRPC, TTRPC])
async def test_without_a_fault_the_same_checks_pass(wire: str, roots: Roots) -> None:
    names = tuple(name for kind in KINDS for name in {**FOUND, **FOUND_WIDELY}[kind])
    assert await failures(FakeController, wire, roots, names) == set()
