"""The checks of controllers: every rule of docs/sandbox-contract.md that can be seen from outside.

create, start, stop (with shutdown), wait, status    one topic each
changes         metrics, update, pause and resume, which a controller may lack
together        calls at the same time
destructive     kills, restarts, floods, hang-ups; only where they are asked for
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll.testing.conformance.check import Check
from atoll.testing.conformance.controller import (
    changes,
    create,
    destructive,
    start,
    status,
    stop,
    together,
    wait,
)
from atoll.testing.conformance.report import Report
from atoll.testing.conformance.run import Bounds, Told, run_checks
from atoll.testing.conformance.subject import Subject, Trial

SAFE: tuple[Check[Trial], ...] = (
    *create.CHECKS,
    *start.CHECKS,
    *stop.CHECKS,
    *wait.CHECKS,
    *status.CHECKS,
    *changes.CHECKS,
    *together.CHECKS,
)
DESTRUCTIVE: tuple[Check[Trial], ...] = destructive.CHECKS
CHECKS: tuple[Check[Trial], ...] = (*SAFE, *DESTRUCTIVE)


async def check_controller(
    subject: Subject, checks: Sequence[Check[Trial]] = CHECKS, *, jobs: int = 1, told: Told | None = None
) -> Report:
    """Run checks on a controller, up to `jobs` at a time; one that fails does not stop the others."""
    lives = [subject.controller]
    bounds = Bounds(call_s=subject.within_s, jobs=jobs)
    return await run_checks(
        checks, lambda check: Trial(subject, check.name, lives), subject=subject.name, bounds=bounds, told=told
    )
