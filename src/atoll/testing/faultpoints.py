"""Faults on purpose: an error or a delay at the n-th call of a named point.

A plan is passed to what it is to disturb; there is no global one. A point is a dotted name that the thing itself
documents, such as `controller.start`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from atoll import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The delay, then the error, at call number `first` of `point` and at the `times - 1` calls after it."""

    point: str
    error: errors.AtollError | None = None
    delay_s: float = 0.0
    first: int = 1
    times: int = 1


class FaultPlan:
    """The faults of one test, and how often each point was reached."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self.calls: Counter[str] = Counter()

    async def reach(self, point: str) -> None:
        """Count a call of `point` and do what is planned for it."""
        self.calls[point] += 1
        number = self.calls[point]
        for fault in self._faults:
            if fault.point == point and fault.first <= number < fault.first + fault.times:
                if fault.delay_s:
                    await asyncio.sleep(fault.delay_s)
                if fault.error is not None:
                    raise fault.error

    @property
    def unused(self) -> tuple[Fault, ...]:
        """Faults that never happened: a test that planned one did not test what it meant to."""
        return tuple(fault for fault in self._faults if self.calls[fault.point] < fault.first)
