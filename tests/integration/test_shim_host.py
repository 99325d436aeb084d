"""A process of shims that is handed what it cannot serve."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from atoll.shim.fork import SHIM_ENDED, SHIM_TAKEN
from atoll.shim.request import Fork, ShimRequest, send
from atoll.ttrpc import address as addresses

TIMEOUT_S = 20.0
HOST = """
import asyncio, socket, sys
from atoll.shim import host
host.settle()
host.Host(asyncio.new_event_loop(), alone=False).run(socket.socket(fileno=int(sys.argv[1])))
"""


@pytest.mark.parametrize("packet", [b"no request", b'{"type":"fork","number":1}', b"\xff"])
def test_a_request_that_cannot_be_read_is_given_back(packet: bytes, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = tmp_path / "socket"
    with ours, subprocess.Popen([sys.executable, "-c", HOST, str(theirs.fileno())], pass_fds=[theirs.fileno()]) as host:
        theirs.close()
        ours.settimeout(TIMEOUT_S)
        hand_over(ours, packet, path)
        assert (ours.recv(16), ours.recv(16)) == (SHIM_TAKEN, SHIM_ENDED)
        assert not path.exists()
        # It goes on: this one has no bundle, and ends too.
        request = ShimRequest(id="a", namespace="n", bundle=str(tmp_path / "none"), socket=str(path))
        hand_over(ours, msgspec.json.encode(Fork(number=2, shim=request)), path)
        assert (ours.recv(16), ours.recv(16)) == (SHIM_TAKEN, SHIM_ENDED)
        path.unlink(missing_ok=True)
        ours.close()
        assert host.wait(TIMEOUT_S) == 0


def hand_over(control: socket.socket, packet: bytes, path: Path) -> None:
    with addresses.bind(path) as listener:
        listener.listen(1)
        assert path.is_socket()
        send(control, packet, listener.fileno())
