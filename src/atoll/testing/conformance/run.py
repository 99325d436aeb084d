"""Runs checks: bounded, beside each other, and each cleaned up behind, also when the run is cut short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from atoll.concurrency import TaskOwner, run_to_completion
from atoll.testing.conformance.bounded import Late, in_time
from atoll.testing.conformance.check import Broken, Check, NotApplicable
from atoll.testing.conformance.report import Outcome, Report, Verdict

CLEAN_UP_S = 60.0
CALLS_IN_A_CHECK = 3.0
"""A check may take so many times as long as one call of its subject."""


class Trial(Protocol):
    """One check under way on one subject: remembers what it made."""

    @property
    def doing(self) -> str:
        """The last call that was begun."""
        ...

    async def clean_up(self) -> tuple[str, ...]:
        """Take away what was made; what would not go, in words. Raises nothing of the subject's."""
        ...


TrialT = TypeVar("TrialT", bound=Trial)
Told = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long one call may take, in seconds, and how many checks run at a time."""

    call_s: float = 30.0
    jobs: int = 1

    def of(self, check: Check[TrialT]) -> float:
        return check.within_s if check.within_s is not None else self.call_s * CALLS_IN_A_CHECK


async def try_check(check: Check[TrialT], trial: TrialT, *, within_s: float) -> Outcome:
    """Run one check and clean up behind it, cancelled or not."""
    begun = time.monotonic()
    try:
        outcome = await _judge(check, trial, within_s)
    except asyncio.CancelledError:
        await run_to_completion(trial.clean_up(), within=CLEAN_UP_S)
        raise
    left = await run_to_completion(trial.clean_up(), within=CLEAN_UP_S)
    took_s = time.monotonic() - begun
    if left and outcome.verdict is not Verdict.FAILED:
        outcome = Outcome.failed(check, Broken("left after shutdown", "nothing", ", ".join(left)))
    return replace(outcome, duration_s=took_s, left=left)


async def _judge(check: Check[TrialT], trial: TrialT, within_s: float) -> Outcome:
    try:
        await in_time(check.run(trial), within=within_s, what=check.name)
    except NotApplicable as reason:
        return Outcome(check=check, verdict=Verdict.SKIPPED, text=str(reason))
    except Late as late:
        doing = f"; the last call was {trial.doing}" if trial.doing and late.what == check.name else ""
        return Outcome.failed(check, Broken(late.what, late.expected, f"{late.got}{doing}"))
    except Exception as error:  # noqa: BLE001  the subject is anybody's, and whatever it raises is a finding
        return Outcome.failed(check, error)
    return Outcome(check=check, verdict=Verdict.PASSED)


async def run_checks(
    checks: Sequence[Check[TrialT]],
    make: Callable[[Check[TrialT]], TrialT],
    *,
    subject: str,
    bounds: Bounds,
    told: Told | None = None,
) -> Report:
    """Run every check; one that fails does not stop the others. `told` hears of each as it ends.

    Those that are `alone` run behind the others, one by one. A run that is cancelled cleans up first.
    """
    begun = time.monotonic()
    found: dict[str, Outcome] = {}
    free = asyncio.Semaphore(bounds.jobs)

    async def run(check: Check[TrialT]) -> None:
        async with free:
            found[check.name] = outcome = await try_check(check, make(check), within_s=bounds.of(check))
        if told is not None:
            told(outcome)

    async with TaskOwner("conformance") as owner:
        beside = [owner.spawn(run(check), name=f"check/{check.name}") for check in checks if not check.alone]
        if beside:
            await asyncio.wait(beside)
        for task in beside:
            task.result()
    for check in checks:
        if check.alone:
            await run(check)
    outcomes = tuple(found[check.name] for check in checks)
    return Report(subject=subject, outcomes=outcomes, duration_s=time.monotonic() - begun)
