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


async def test_the_contract_holds(subject: Subject) -> None:
    report = await check_controller(subject, jobs=JOBS)
    print(report)
    assert report.is_passed, report.failures
