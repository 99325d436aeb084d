"""Reading CRI logs: forms, tail, since, following over a rotation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.concurrency import Latch
from atoll.container.status import Status
from atoll.services import logs
from atoll.services.logs import Reader, parse, parse_time, read


def entry(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-01-01T00:00:{second:02}.000000000Z {stream} {tag} {text}\n".encode()


BASE_NS = parse_time("2026-01-01T00:00:00Z")


def test_a_line_has_time_stream_tag_and_any_content() -> None:
    line = parse(b"2026-01-01T00:00:01.5Z stderr P a b  c")
    assert line is not None
    assert (line.time_ns - BASE_NS, line.stream, line.partial, line.content) == (
        1_500_000_000,
        "stderr",
        True,
        b"a b  c",
    )


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"2026-01-01T00:00:01Z stdin F x", b"yesterday stdout F x", b"\xff stdout F x"]
)
def test_what_is_no_entry_is_passed_over(raw: bytes) -> None:
    assert parse(raw) is None


@given(st.binary())
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    parse(raw)
    parse(b"2026-01-01T00:00:01Z stdout F " + raw)


@given(st.integers(min_value=0, max_value=999_999_999))
def test_times_are_exact_to_the_nanosecond(fraction: int) -> None:
    assert parse_time(f"2026-01-01T00:00:00.{fraction:09}Z") == BASE_NS + fraction
    assert parse_time(f"2026-01-01T02:00:00.{fraction:09}+02:00") == BASE_NS + fraction


async def collected(path: Path, *, follow: bool = False, tail: int = -1, since_ns: int = 0) -> list[bytes]:
    ended: Latch[Status] = Latch()
    return [line.content async for line in read(path, follow=follow, tail=tail, since_ns=since_ns, ended=ended)]


async def test_all_the_last_and_those_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(entry(n, str(n)) for n in range(5)) + b"torn")
    assert await collected(path) == [b"0", b"1", b"2", b"3", b"4"]
    assert await collected(path, tail=2) == [b"3", b"4"]
    assert await collected(path, since_ns=BASE_NS + 3_000_000_000) == [b"3", b"4"]
    assert await collected(path, tail=3, since_ns=BASE_NS + 4_000_000_000) == [b"4"]


async def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert await collected(tmp_path / "none") == []


async def test_too_long_a_tail_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="tail"):
        await collected(tmp_path / "log", tail=logs.MAX_TAIL_LINES + 1)


def test_a_torn_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = entry(1, "whole")
    path.write_bytes(whole[:20])
    with Reader(path) as reader:
        assert list(reader.lines()) == []
        with path.open("ab") as file:
            file.write(whole[20:])
        assert [line.content for line in reader.lines()] == [b"whole"]


def test_a_rotated_file_is_read_to_its_end_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(entry(1, "one"))
    with Reader(path) as reader:
        assert [line.content for line in reader.lines()] == [b"one"]
        with path.open("ab") as file:
            file.write(entry(2, "two"))
        path.rename(tmp_path / "log.1")
        path.write_bytes(entry(3, "three"))
        assert [line.content for line in reader.lines()] == [b"two", b"three"]


async def test_a_follower_gets_what_comes_and_ends_with_the_container(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(entry(1, "one"))
    ended: Latch[Status] = Latch()
    lines = read(path, follow=True, tail=-1, since_ns=0, ended=ended)
    async with asyncio.timeout(5):
        found = [(await anext(lines)).content]
        for number in (2, 3):
            with path.open("ab") as file:
                file.write(entry(number, str(number)))
            found.append((await anext(lines)).content)
        with path.open("ab") as file:
            file.write(entry(4, "last"))
        ended.set(Status())
        found += [line.content async for line in lines]
    assert found == [b"one", b"2", b"3", b"last"]
