"""The trace that a call belongs to, in W3C's form (https://www.w3.org/TR/trace-context/): `traceparent`."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "traceparent"
SAMPLED = 0x01
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NEWEST_KNOWN, _FORBIDDEN = "00", "ff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The span of a caller, in another program."""

    trace_id: int
    span_id: int
    is_sampled: bool


PARENT: ContextVar[Parent | None] = ContextVar("atoll_trace_parent", default=None)
"""Of the call that is being answered; tasks started by it have it too."""


def parse(header: str) -> Parent | None:
    """What a `traceparent` says; None for what is none, which is ignored as the recommendation has it."""
    found = _FORM.fullmatch(header)
    if found is None or found[1] == _FORBIDDEN or (found[1] == _NEWEST_KNOWN and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id=trace_id, span_id=span_id, is_sampled=bool(int(found[4], 16) & SAMPLED))
