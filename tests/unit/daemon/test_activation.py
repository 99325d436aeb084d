"""A socket that was handed over: put aside while ours is served, put back after it; who waits there is sent on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors, rpc
from atoll.concurrency import TaskOwner
from atoll.daemon import activation
from atoll.daemon.activation import FAREWELL, Handed


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "atoll.sock"))
        made.listen()
        made.setblocking(False)
        yield made


@pytest.fixture
def handed(listener: socket.socket, tmp_path: Path) -> Iterator[Handed]:
    made = Handed(listener.dup(), tmp_path / "atoll.sock")
    yield made
    made.put_back((0, 0))


def served_over(path: Path) -> tuple[socket.socket, rpc.FileId]:
    """A socket of ours in the place of the other, as gRPC's is."""
    ours = socket.socket(socket.AF_UNIX)
    ours.bind(str(path.with_name("new")))
    ours.listen()
    os.rename(path.with_name("new"), path)
    return ours, rpc.file_id(path)


def is_answered_by(path: Path, server: socket.socket) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        server.setblocking(False)
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def test_the_path_is_ours_until_it_is_put_back(handed: Handed, listener: socket.socket) -> None:
    before = rpc.file_id(handed.path)
    handed.put_aside()
    ours, bound = served_over(handed.path)
    with ours:
        assert is_answered_by(handed.path, ours)
        assert rpc.file_id(handed.held) == before
        handed.put_back(bound)
        assert rpc.file_id(handed.path) == before
        assert not handed.held.exists()
        assert not is_answered_by(handed.path, ours)


def test_what_a_killed_daemon_left_in_front_is_replaced(handed: Handed, listener: socket.socket) -> None:
    handed.put_aside()
    served_over(handed.path)[0].close()
    handed.put_aside()
    ours, bound = served_over(handed.path)
    ours.close()
    handed.put_back(bound)
    assert is_answered_by(handed.path, listener)


def test_a_socket_of_somebody_else_is_left_in_its_place(handed: Handed) -> None:
    handed.put_aside()
    ours, bound = served_over(handed.path)
    other, theirs = served_over(handed.path)
    with ours, other:
        handed.put_back(bound)
        assert rpc.file_id(handed.path) == theirs


def test_a_path_that_leads_nowhere_is_refused(handed: Handed, listener: socket.socket) -> None:
    listener.close()
    handed.path.unlink()
    with pytest.raises(errors.FailedPrecondition, match="does not lead"):
        handed.put_aside()


async def test_who_waits_is_told_to_connect_again(handed: Handed) -> None:
    async with TaskOwner("test") as tasks:
        reader, writer = await asyncio.open_unix_connection(str(handed.path))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        handed.turn_away(tasks)
        assert await asyncio.wait_for(reader.read(), 5) == FAREWELL
        writer.close()


def test_what_is_not_for_us_is_nothing(tmp_path: Path) -> None:
    for variables in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}):
        environ = {**variables, "LISTEN_FDNAMES": "x", "PATH": "/bin"}
        assert activation.take(environ, tmp_path / "atoll.sock") is None
        assert environ == {"PATH": "/bin"}


def test_two_sockets_are_refused(tmp_path: Path) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
    with pytest.raises(errors.FailedPrecondition, match="hand over one socket"):
        activation.take(environ, tmp_path / "atoll.sock")
