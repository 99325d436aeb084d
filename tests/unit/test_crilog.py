"""CRI log lines: forms, times, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.crilog import LogLine, line, lines, parse_time

BASE_NS = parse_time("2026-01-01T00:00:00Z")


def test_a_line_has_time_stream_tag_and_any_content() -> None:
    found = line(b"2026-01-01T00:00:01.5Z stderr P a b  c")
    assert found is not None
    assert (found.time_ns - BASE_NS, found.stream, found.partial, found.content) == (
        1_500_000_000,
        "stderr",
        True,
        b"a b  c",
    )


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"2026-01-01T00:00:01Z stdin F x", b"yesterday stdout F x", b"\xff stdout F x"]
)
def test_what_is_no_entry_is_passed_over(raw: bytes) -> None:
    assert line(raw) is None


@given(st.binary())
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    line(raw)
    line(b"2026-01-01T00:00:01Z stdout F " + raw)


@given(st.integers(min_value=0, max_value=999_999_999))
def test_times_are_exact_to_the_nanosecond(fraction: int) -> None:
    assert parse_time(f"2026-01-01T00:00:00.{fraction:09}Z") == BASE_NS + fraction
    assert parse_time(f"2026-01-01T02:00:00.{fraction:09}+02:00") == BASE_NS + fraction


def test_a_block_is_its_lines_in_their_order_without_what_is_none() -> None:
    block = b"2026-01-01T00:00:00Z stdout F a\nnonsense\n2026-01-01T00:00:00Z stderr P b\nnever stdout F c\n"
    block += b"2026-01-01T00:00:02Z stdout F \n"
    assert lines(block) == [
        LogLine("stdout", BASE_NS, b"a"),
        LogLine("stderr", BASE_NS, b"b", partial=True),
        LogLine("stdout", BASE_NS + 2_000_000_000, b""),
    ]
    assert lines(b"") == []
