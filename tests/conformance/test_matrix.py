"""Every controller of Atoll, by every wire, keeps the contract; the fake too."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from atoll.testing.conformance import Subject, check_controller
from tests.conformance.controllers import ATOLL, RUNC, real
from tests.conformance.wires import GRPC, TTRPC, through
from tests.integration.conftest import Roots
from tests.unit.testing.conformance.subjects import fake_subject

IN_PROCESS = "in process"
TWICE = "grpc over ttrpc"
JOBS = 6
KINDS = ("fake", "shim", "shim-without-init", f"podsandbox-{ATOLL}", f"podsandbox-{RUNC}")
MATRIX = [(kind, wire) for kind in KINDS for wire in (IN_PROCESS, GRPC, TTRPC)] + [("shim", TWICE)]


@pytest.fixture(params=MATRIX, ids=lambda pair: "-".join(pair).replace(" ", "-"))
async def subject(request: pytest.FixtureRequest, roots: Roots) -> AsyncGenerator[Subject]:
    kind, wire = request.param
    async with AsyncExitStack() as stack:
        made = fake_subject() if kind == "fake" else (await stack.enter_async_context(real(roots))).subject(kind)
        wires = {IN_PROCESS: (), TWICE: (TTRPC, GRPC)}.get(wire, (wire,))
        for one in wires:
            made = await stack.enter_async_context(through(made, one, roots.state))
        yield made


FREE_IN_PROCESS = {"clients_may_vanish", "a_wait_survives_a_restart"}
FREE_ON_A_WIRE = {"what_a_dead_daemon_left_is_freed"}
FREE_WHERE_NOTHING_FAILS = {"a_failed_undo_is_told_and_paid"}
FREE_WITH_TASKS_OF_ANOTHER = {"a_paused_sandbox_takes_no_containers"}


def free(kind: str, wire: str) -> set[str]:
    """The checks that do not apply; any other that says so fails."""
    found = FREE_IN_PROCESS if wire == IN_PROCESS else FREE_ON_A_WIRE
    if kind != "fake":
        found = found | FREE_WHERE_NOTHING_FAILS
    return found | FREE_WITH_TASKS_OF_ANOTHER if kind.endswith(RUNC) else found


async def test_the_contract_holds(subject: Subject, request: pytest.FixtureRequest) -> None:
    report = await check_controller(subject, jobs=JOBS)
    print(report)
    assert report.is_passed, report.failures
    kind, wire = request.node.callspec.params["subject"]
    assert {outcome.check.name for outcome in report.skips} == free(kind, wire)
