"""W3C trace context."""

from __future__ import annotations

import pytest

from atoll import tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_a_parent_is_taken(header: str, is_sampled: bool) -> None:
    parent = tracing.Parent(trace_id=int(TRACE, 16), span_id=int(SPAN, 16), is_sampled=is_sampled)
    assert tracing.parse(header) == parent


@pytest.mark.parametrize(
    "header",
    [
        "",
        "none",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_is_no_parent_is_ignored(header: str) -> None:
    assert tracing.parse(header) is None
