"""Every controller of Atoll keeps the contract, the fake too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from atoll.testing.contract import CHECKS, Check, NotApplicable, Subject, run_check
from tests.conformance.controllers import ATOLL, RUNC, fake_subject, real
from tests.integration.conftest import Roots

KINDS = ("fake", "shim", "shim-without-init", f"podsandbox-{RUNC}", f"podsandbox-{ATOLL}")


@pytest.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, roots: Roots) -> AsyncIterator[Subject]:
    if request.param == "fake":
        yield fake_subject()
        return
    async with real(roots) as made:
        yield made.subject(request.param)


FREE = {
    "fake": {"refused_options_leave_nothing", "survives_a_restart", "what_a_dead_daemon_left_is_freed"},
    "shim": {"pause_and_resume_are_idempotent", "update_does_not_disturb"},
    "shim-without-init": {"pause_and_resume_are_idempotent", "update_does_not_disturb"},
    f"podsandbox-{RUNC}": set[str](),
    f"podsandbox-{ATOLL}": set[str](),
}
"""The checks that do not apply to a kind; any other that says so fails."""


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_the_contract_holds(check: Check, subject: Subject, request: pytest.FixtureRequest) -> None:
    kind: str = request.node.callspec.params["subject"]
    if check.name in FREE[kind]:
        with pytest.raises(NotApplicable):
            await run_check(check, subject)
    else:
        await run_check(check, subject)
