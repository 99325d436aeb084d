"""What a client says of its terminal, and the output of a process on its way to a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.cri import streaming
from atoll.streaming.flow import Chunk, Gone, Inflow

sizes = st.tuples(st.integers(1, 65535), st.integers(1, 65535))


def followed(chunks: Sequence[bytes]) -> list[tuple[int, int]]:
    """The sizes that are passed on of what comes in these chunks."""
    found: list[tuple[int, int]] = []

    async def resize(width: int, height: int) -> None:
        found.append((width, height))

    async def scenario() -> None:
        inflow = Inflow(lambda _: None)
        following = asyncio.ensure_future(streaming.follow_sizes(inflow, resize))  # noqa: TID251 # beside the test
        for chunk in chunks:
            inflow.feed(chunk)
            await asyncio.sleep(0)
        inflow.end()
        await following

    asyncio.run(scenario())
    return found


@given(st.lists(sizes, max_size=6), st.lists(st.integers(0, 300), max_size=6), st.sampled_from([b"", b"\n", b"  "]))
def test_sizes_are_understood_however_they_are_cut(said: list[tuple[int, int]], at: list[int], between: bytes) -> None:
    text = b"".join(b'{"Width":%d,"Height":%d}%s' % (*one, between) for one in said)
    edges = sorted({0, len(text), *(one % (len(text) + 1) for one in at)})
    assert followed([text[begin:end] for begin, end in pairwise(edges)]) == said


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_what_is_no_size_changes_nothing(chunks: list[bytes]) -> None:
    assert all(0 < width < 65536 and 0 < height < 65536 for width, height in followed(chunks))


def test_zeros_and_what_is_too_large_or_endless_say_nothing() -> None:
    assert followed([b'{"Width":0,"Height":5}', b'{"Width":70000,"Height":5}', b'{"Width":-1,"Height":5}']) == []
    assert followed([b"{" * 3000, b"{" * 3000, b'{"Width":1,"Height":1}']) == []


class Reader:
    """An output that gives its chunks, and then ends, fails or stays open."""

    def __init__(self, *chunks: bytes, ends: bool = True, fault: errors.AtollError | None = None) -> None:
        self._chunks = list(chunks)
        self._ends = ends
        self._fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks:
            return self._chunks.pop(0)
        if self._fault is not None:
            raise self._fault
        if self._ends:
            raise StopAsyncIteration
        await asyncio.Event().wait()
        raise AssertionError

    def close(self) -> None:
        pass


class Outlet:
    """Takes so many chunks, then has gone."""

    def __init__(self, takes: int = 1000) -> None:
        self.got = b""
        self._takes = takes

    async def write(self, data: Chunk) -> None:
        if not self._takes:
            raise Gone
        self._takes -= 1
        self.got += data

    async def end(self) -> None:
        pass


async def moved(output: streaming.Output) -> None:
    copying = asyncio.ensure_future(output.run())  # noqa: TID251 # beside the test
    try:
        await output.drained(copying)
    finally:
        copying.cancel()


async def test_output_goes_where_it_was_asked_for_and_the_rest_nowhere() -> None:
    stdout = Outlet()
    await moved(streaming.Output((Reader(b"a", b"b"), stdout), (Reader(b"c"), None), (None, Outlet())))
    assert stdout.got == b"ab"


async def test_a_client_that_takes_no_more_does_not_stop_the_process() -> None:
    stdout = Outlet(takes=1)
    await moved(streaming.Output((Reader(b"a", b"b", b"c"), stdout)))
    assert stdout.got == b"a"


async def test_what_a_process_left_behind_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "EXIT_DRAIN_S", 0.01)
    stdout = Outlet()
    await moved(streaming.Output((Reader(b"a", ends=False), stdout)))
    assert stdout.got == b"a"


async def test_an_error_of_reading_is_told() -> None:
    with pytest.raises(errors.Unavailable, match="gone"):
        await moved(streaming.Output((Reader(b"a", fault=errors.Unavailable("the shim has gone")), Outlet())))
