"""Addresses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from atoll import errors
from atoll.ttrpc import address


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("unix:///run/x/s", ["/run/x/s"]),
        ("unix://@name", ["\0name"]),
        ("/run/x/s", ["/run/x/s", "\0/run/x/s"]),
        ("@name", ["\0name"]),
        ("containerd-shim/a.sock", ["\0containerd-shim/a.sock"]),
    ],
)
def test_address_names_its_sockets(text: str, names: list[str]) -> None:
    assert address.socket_names(text) == names


@pytest.mark.parametrize("text", ["", "@", "unix://", "vsock://2:1024", "tcp://h:1", "/a\0b", "unix:///" + "x" * 108])
def test_unusable_address_is_an_invalid_argument(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        address.socket_names(text)


@pytest.mark.parametrize("form", ["@{}", "{}", "unix://@{}"])
async def test_abstract_socket_is_reached(form: str) -> None:
    name = f"atoll-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        with await address.connect(form.format(name), timeout_s=1):
            pass


async def test_bare_path_falls_back_to_the_abstract_name(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{socket_path}")
        listener.listen()
        with await address.connect(str(socket_path), timeout_s=1) as connection:
            assert address.peer_credentials(connection) == (os.getpid(), os.getuid(), os.getgid())
