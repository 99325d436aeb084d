"""The shim's own log."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from atoll.shim import logfile
from atoll.shim.logfile import LogHandler


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, __file__, 1, text, (), None)


def test_a_record_is_one_line(tmp_path: Path) -> None:
    handler = LogHandler(str(tmp_path / "log"), "pod-1")
    handler.emit(record("two\nlines"))
    os.close(handler.fd)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("Z info pod-1 two\\nlines")


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "FILE_LIMIT_BYTES", 1000)
    handler = LogHandler(str(tmp_path / "log"), "p")
    for number in range(100):
        handler.emit(record(f"message {number}"))
    handler.emit(record("x" * 100_000))
    os.close(handler.fd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert (tmp_path / "log.1").stat().st_size <= 1000
    assert (tmp_path / "log").stat().st_size <= logfile.LINE_LIMIT_BYTES + 1


def test_a_fifo_without_a_reader_never_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    handler = LogHandler(str(path), "p")
    for _ in range(100):
        handler.emit(record("y" * 4000))
    assert os.read(handler.fd, 20)
    os.close(handler.fd)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="log"):
        LogHandler(str(tmp_path / "log"), "p")


async def test_a_record_goes_to_the_log_of_the_shim_that_made_it(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stderr = os.dup(2)
    host = logfile.HostLog()
    root.handlers[:] = [host]
    said = logging.getLogger("said")
    one_is_there, two_is_done = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        with host.of(str(tmp_path / "one"), "one", debug=False):
            said.info("first")
            one_is_there.set()
            await two_is_done.wait()
            said.debug("too much")
            said.info("last")

    async def two() -> None:
        await one_is_there.wait()
        with host.of(str(tmp_path / "two"), "two", debug=True):
            said.debug("mine")
        two_is_done.set()

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(one())
            group.create_task(two())
            await one_is_there.wait()
            said.warning("nobody's")
        said.warning("dropped")
    finally:
        root.handlers[:], root.level = handlers, level
        os.dup2(stderr, 2)
        os.close(stderr)
    texts = {
        name: [line.split(" ", 1)[1] for line in (tmp_path / name / "log").read_text().splitlines()]
        for name in ("one", "two")
    }
    assert texts == {"one": ["info one first", "warning one nobody's", "info one last"], "two": ["debug two mine"]}
