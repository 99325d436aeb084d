"""What a background process wrote, by the byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.concurrency import Blocking
from atoll.engine import spool
from atoll.engine.spool import Spool


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    threads = Blocking(2)
    yield threads
    threads.close()


async def everything(of: Spool, starts: tuple[int, int], over: asyncio.Event, blocking: Blocking) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    async for part in of.follow(starts, over, blocking, wait=True):
        found[part.stream] += part.data
    return found


async def test_both_streams_are_followed_from_their_starts_to_the_end(tmp_path: Path, blocking: Blocking) -> None:
    of, over = Spool(tmp_path), asyncio.Event()
    of.path("stdout").write_bytes(b"one\n")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        following = group.create_task(everything(of, (2, 0), over, blocking))
        await asyncio.sleep(0)
        with of.path("stdout").open("ab") as out:
            out.write(b"two\n")
        of.path("stderr").write_bytes(b"oops\n")
        over.set()
    assert following.result() == {"stdout": b"e\ntwo\n", "stderr": b"oops\n"}


async def test_without_waiting_it_ends_with_what_is_there(tmp_path: Path, blocking: Blocking) -> None:
    of = Spool(tmp_path)
    of.path("stdout").write_bytes(b"abc")
    parts = [part async for part in of.follow((1, 0), asyncio.Event(), blocking, wait=False)]
    assert [(part.stream, part.offset, part.data) for part in parts] == [("stdout", 1, b"bc")]
    assert (of.kept("stdout"), of.kept("stderr")) == ((0, 3), (0, 0))


async def test_what_was_given_back_is_left_out_and_offsets_stay(tmp_path: Path, blocking: Blocking) -> None:
    of = Spool(tmp_path)
    size = spool.KEEP_BYTES + spool.SLACK_BYTES + 5_000_000
    with of.path("stdout").open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(bytes(range(250)) * 4000)
    size = of.path("stdout").stat().st_size
    of.trim()
    begin, end = of.kept("stdout")
    assert (end, end - begin <= spool.KEEP_BYTES + 65536, begin > 0) == (size, True, True)
    async for part in of.follow((0, 0), asyncio.Event(), blocking, wait=False):
        assert (part.offset, part.data[0]) == (begin, begin % 250)
        break
