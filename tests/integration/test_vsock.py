"""Controllers over vsock, where the kernel has it (vsock(7))."""

from __future__ import annotations

import contextlib
import socket

import pytest

from atoll import errors
from atoll.sandbox import CreateOptions, Runtime, Sandbox, listening
from atoll.sandboxers import remote
from atoll.sandboxers.remote import RemoteController
from atoll.testing.fake import FakeController

ANY = socket.VMADDR_CID_ANY
LOCAL = 1


def free_port() -> int:
    """A port that nobody listens on; skips where the kernel has no vsock."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((ANY, socket.VMADDR_PORT_ANY))
            return probe.getsockname()[1]
    except OSError:
        pytest.skip("needs the kernel's vsock: this host has none")


def reaches_itself(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((ANY, port))
        listener.listen()
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.3)
            probe.connect((LOCAL, port))
            return True
    return False


async def test_a_port_is_served_and_given_back() -> None:
    address = f"ttrpc+vsock://{ANY}:{free_port()}"
    for _ in range(2):
        async with listening(FakeController(), address):
            with pytest.raises(errors.FailedPrecondition, match="vsock"):
                async with listening(FakeController(), address):
                    pass


async def test_nobody_there_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT_S", 0.3)
    controller = RemoteController(f"ttrpc+vsock://{LOCAL}:{free_port()}")
    with pytest.raises(errors.Unavailable, match=f"vsock://{LOCAL}:"):
        await controller.status("one")
    await controller.aclose()


async def test_a_sandbox_over_vsock() -> None:
    port = free_port()
    if not reaches_itself(port):
        pytest.skip("needs the kernel's vsock loopback: this host has none")
    async with listening(FakeController(), f"ttrpc+vsock://{ANY}:{port}"):
        controller = RemoteController(f"ttrpc+vsock://{LOCAL}:{port}")
        await controller.create(Sandbox(id="one", sandboxer="", runtime=Runtime(name="")), CreateOptions())
        assert (await controller.start("one")).pid > 0
        await controller.shutdown("one")
        await controller.aclose()
