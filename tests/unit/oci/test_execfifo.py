"""atoll.oci.execfifo with pipes made for the test."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from atoll.oci.execfifo import let_go


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "exec.fifo", 0o600)
    return tmp_path / "exec.fifo"


def waiting_writer(fifo: Path) -> int:
    """A writer of the pipe without a reader, as runc's waiting process is one."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.close(reader)
    return writer


async def test_a_writer_that_takes_its_time_is_waited_for(fifo: Path) -> None:
    writer = waiting_writer(fifo)
    async with asyncio.TaskGroup() as group:
        meeting = group.create_task(let_go("runc", fifo.parent))
        await asyncio.sleep(0)
        assert not meeting.done()
        os.write(writer, b"0")
        os.close(writer)
    assert meeting.result()
    assert not fifo.exists()


async def test_a_writer_that_goes_without_a_byte_is_not_met(fifo: Path) -> None:
    writer = waiting_writer(fifo)
    async with asyncio.TaskGroup() as group:
        meeting = group.create_task(let_go("runc", fifo.parent))
        await asyncio.sleep(0)
        os.close(writer)
    assert not meeting.result()
    assert fifo.exists()


async def test_crun_is_met_by_writing_a_byte(fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert await let_go("crun", fifo.parent)
    assert os.read(reader, 10) == b"\0"
    os.close(reader)
    assert not fifo.exists()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
async def test_nobody_at_the_pipe_leaves_it_to_the_program(fifo: Path, runtime: str) -> None:
    assert not await let_go(runtime, fifo.parent)
    assert fifo.exists()


async def test_no_pipe_another_file_and_another_runtime_are_left_to_the_program(tmp_path: Path, fifo: Path) -> None:
    assert not await let_go("runc", tmp_path / "none")
    assert not await let_go("youki", fifo.parent)
    fifo.unlink()
    fifo.write_bytes(b"0")
    assert not await let_go("runc", fifo.parent)
    fifo.unlink()
    fifo.symlink_to("/dev/zero")
    assert not await let_go("runc", fifo.parent)
