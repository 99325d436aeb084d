"""Whose a place is: the word beside a socket, and who holds a lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import config, errors, ownership
from atoll.ownership import Owner

HOLDS = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); print('ready', flush=True); sys.stdin.read()"


def owner(pid: int = 0, **keys: str) -> Owner:
    chosen = config.Config(root=keys.get("root", "/r"), state=keys.get("state", "/s"))
    return ownership.owner_of(chosen, file=keys.get("file", ""), pid=pid, private=False, socket=Path("/s/atoll.sock"))


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / ownership.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def other(lock: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock open."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / ownership.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_the_word_beside_a_socket_stays_until_it_is_taken_away(tmp_path: Path) -> None:
    socket = tmp_path / "a.sock"
    assert ownership.of_socket(socket) is None
    ownership.own_socket(socket, owner())
    assert ownership.of_socket(socket) == owner()
    ownership.disown_socket(socket, owner(root="/other"))
    assert ownership.of_socket(socket) == owner(), "that of somebody else is left alone"
    ownership.disown_socket(socket, owner())
    ownership.disown_socket(socket, owner())
    assert os.listdir(tmp_path) == []


def test_a_word_that_cannot_be_read_is_no_leave_to_start(tmp_path: Path) -> None:
    (tmp_path / "a.sock.owner").write_text("what?")
    with pytest.raises(errors.FailedPrecondition, match=r"a\.sock\.owner: .*remove it"):
        ownership.of_socket(tmp_path / "a.sock")


def test_who_keeps_the_same_books_by_the_same_rules_may_stand_in() -> None:
    assert owner(1).serves_as(owner(2))
    assert owner(root="/r/").serves_as(owner())
    for other in (owner(root="/x"), owner(state="/x"), owner(file="/x")):
        assert not owner().serves_as(other)


def test_the_command_starts_the_same_daemon_again() -> None:
    assert owner(root="/a b", file="/c").command == (
        "atoll serve --root '/a b' --state /s --socket /s/atoll.sock --config /c"
    )


def test_the_holder_of_a_lock_is_a_process_that_has_it_open(lock: int, tmp_path: Path) -> None:
    assert ownership.holder(tmp_path / "none") is None
    assert ownership.holder_of(lock) is None, "nobody is told yet"
    ownership.write_lock(lock, owner(os.getppid()))
    assert ownership.holder_of(lock) is None, "that process may be anybody by now"
    ownership.write_lock(lock, owner(os.getpid()))
    assert ownership.holder_of(lock) == ownership.holder(tmp_path) == owner(os.getpid())


def test_the_holder_is_asked_to_end_and_nobody_else(lock: int, other: subprocess.Popen[bytes]) -> None:
    ownership.write_lock(lock, owner(os.getpid()))
    ownership.ask_to_end(lock, owner(other.pid))
    assert other.poll() is None, "it does not hold the lock"
    ownership.write_lock(lock, owner(other.pid))
    ownership.ask_to_end(lock, owner(other.pid))
    assert other.wait(10) == -15
    ownership.ask_to_end(lock, owner(other.pid))
