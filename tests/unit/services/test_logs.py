"""Reading CRI logs: forms, tail, since, following over a rotation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import crilog, errors
from atoll.concurrency import Blocking, Latch
from atoll.container.status import Status
from atoll.services import logs
from atoll.services.logs import Reader, read


def entry(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-01-01T00:00:{second:02}.000000000Z {stream} {tag} {text}\n".encode()


BASE_NS = crilog.parse_time("2026-01-01T00:00:00Z")


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    with contextlib.closing(Blocking(1)) as blocking:
        yield blocking


def contents(reader: Reader) -> list[bytes]:
    found: list[bytes] = []
    while (block := reader.block()) is not None:
        found += [line.content for line in crilog.lines(block)]
    return found


async def collected(path: Path, *, follow: bool = False, tail: int = -1, since_ns: int = 0) -> list[bytes]:
    ended: Latch[Status] = Latch()
    with contextlib.closing(Blocking(1)) as blocking:
        batches = read(path, follow=follow, tail=tail, since_ns=since_ns, ended=ended, blocking=blocking)
        return [line.content async for block in batches for line in crilog.lines(block)]


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
        assert contents(reader) == []
        with path.open("ab") as file:
            file.write(whole[20:])
        assert contents(reader) == [b"whole"]


def test_links_below_the_folder_of_the_pod_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/log").write_bytes(entry(1, "one"))
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/linked").symlink_to("log")
    os.mkfifo(tmp_path / "real/pipe")
    with Reader(tmp_path / "link/log", below=1) as reader:
        assert contents(reader) == [b"one"]
    for path, below in (("link/log", 2), ("real/linked", 1), ("real/linked", 2)):
        with Reader(tmp_path / path, below=below) as reader, pytest.raises(errors.FailedPrecondition, match="link"):
            contents(reader)
    with Reader(tmp_path / "real/pipe") as reader, pytest.raises(errors.FailedPrecondition, match="no plain file"):
        contents(reader)


def test_a_rotated_file_is_read_to_its_end_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(entry(1, "one"))
    with Reader(path) as reader:
        assert contents(reader) == [b"one"]
        with path.open("ab") as file:
            file.write(entry(2, "two"))
        path.rename(tmp_path / "log.1")
        path.write_bytes(entry(3, "three"))
        assert contents(reader) == [b"two", b"three"]


async def test_a_follower_gets_what_comes_and_ends_with_the_container(tmp_path: Path, blocking: Blocking) -> None:
    path = tmp_path / "log"
    path.write_bytes(entry(1, "one"))
    ended: Latch[Status] = Latch()
    batches = read(path, follow=True, tail=-1, since_ns=0, ended=ended, blocking=blocking)
    async with asyncio.timeout(5):
        found = [line.content for line in crilog.lines(await anext(batches))]
        for number in (2, 3):
            with path.open("ab") as file:
                file.write(entry(number, str(number)))
            found += [line.content for line in crilog.lines(await anext(batches))]
        with path.open("ab") as file:
            file.write(entry(4, "last"))
        ended.set(Status())
        found += [line.content async for block in batches for line in crilog.lines(block)]
    assert found == [b"one", b"2", b"3", b"last"]


async def test_the_tail_of_a_long_log_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for number in range(60_000):
            file.write(entry(number % 60, f"{number} " + "x" * 100))
        file.write(b"no entry\n")
        file.write(entry(0, "last"))
        file.write(b"torn")
    read_bytes: list[int] = []
    whole_read, whole_pread = os.read, os.pread

    def counted(fd: int, length: int) -> bytes:
        read_bytes.append(length)
        return whole_read(fd, length)

    def counted_at(fd: int, length: int, offset: int) -> bytes:
        read_bytes.append(length)
        return whole_pread(fd, length, offset)

    monkeypatch.setattr(os, "read", counted)
    monkeypatch.setattr(os, "pread", counted_at)
    found = await collected(path, tail=3)
    assert [content.split()[0] for content in found] == [b"59998", b"59999", b"last"]
    assert path.stat().st_size > 8 << 20
    assert sum(read_bytes) <= 2 * logs.READ_BYTES


@given(
    count=st.integers(min_value=1, max_value=12),
    texts=st.lists(st.text(alphabet="ab ", max_size=30), max_size=10),
    torn=st.sampled_from([b"", b"torn", b"x" * 100]),
)
async def test_a_tail_is_the_end_of_all_wherever_chunks_are_cut(count: int, texts: list[str], torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "READ_BYTES", 17)
        path = Path(folder) / "log"
        path.write_bytes(b"".join(entry(n, text) + b"junk\n" * (n % 2) for n, text in enumerate(texts)) + torn)
        assert await collected(path, tail=count) == (await collected(path))[-count:]


async def test_what_is_before_since_is_passed_over_chunk_by_chunk(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for second in range(60):
            for _ in range(500):
                file.write(entry(second, f"{second} " + "x" * 50))
    found = await collected(path, since_ns=BASE_NS + 57_000_000_000)
    assert len(found) == 1500


async def test_a_reader_that_is_left_while_a_thread_reads_keeps_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(entry(1, "one"))
    reader = Reader(path)
    with reader:
        reader.start(0)
        reader._busy.acquire()  # as a thread that reads
    assert reader._fd >= 0
    reader._busy.release()
    assert reader.block() is None
    assert reader._fd == -1
