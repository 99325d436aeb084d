"""Addresses."""

from __future__ import annotations

import os
import resource
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


async def test_a_lack_of_descriptors_does_not_say_that_nobody_listens(socket_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(errors.ResourceExhausted, match="cannot be asked now"):
                await address.connect(f"unix://{socket_path}", timeout_s=1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_only_who_is_not_there_is_unavailable(socket_path: Path) -> None:
    with pytest.raises(errors.Unavailable):
        await address.connect(f"unix://{socket_path}", timeout_s=1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        with pytest.raises(errors.Unavailable):
            await address.connect(f"unix://{socket_path}", timeout_s=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{socket_path}2")
        with pytest.raises(errors.ResourceExhausted):  # somebody is there, who speaks no streams
            await address.connect(f"unix://{socket_path}2", timeout_s=1)
