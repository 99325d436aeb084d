"""What a server removes when it ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from atoll import rpc


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    return Path("s")


def test_a_daemon_removes_its_own_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))
        rpc.unlink_own(path, rpc.file_id(path))
    assert not path.exists()


def test_the_socket_of_a_later_daemon_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as later:
        own.bind(str(path))
        bound = rpc.file_id(path)
        path.rename("moved")
        later.bind(str(path))
        rpc.unlink_own(path, bound)
    assert path.is_socket()


def test_a_socket_that_is_gone_is_fine(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))
        bound = rpc.file_id(path)
    path.unlink()
    rpc.unlink_own(path, bound)
