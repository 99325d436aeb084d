"""`atoll serve` on a socket that somebody else listens on, as systemd's atoll.socket: no restart fails a call."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as cri
from tests.integration.daemons import BIN, Daemon, Roots
from tests.integration.leaks import wait_until

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="atoll.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
CALL_WITHIN_S = 30.0
ENDED_WITHIN_S = 15.0
RESTARTS = 2


class Activated(Daemon):
    """A daemon whose socket the test listens on, whether the daemon runs or not."""

    def __init__(self, roots: Roots, listener: socket.socket) -> None:
        super().__init__(roots)
        self.listener = listener

    def start(self) -> None:
        """Start it, and wait for nothing: that is for whoever calls."""
        roots, fd = self.roots, self.listener.fileno()
        paths = {"root": roots.root, "state": roots.state, "socket": roots.socket, "config": roots.config}
        options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        with roots.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, str(fd), str(BIN / "atoll"), "serve", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(fd,),
            )


@pytest.fixture
def activated(roots: Roots) -> Iterator[Activated]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(roots.socket))
        listener.listen(128)
        daemon = Activated(roots, listener)
        try:
            yield daemon
            if daemon.is_running():
                daemon.stop()
        finally:
            daemon.kill()
            for path in (roots.socket, roots.socket.with_name("atoll.sock.held")):
                path.unlink(missing_ok=True)


@contextmanager
def client(roots: Roots) -> Iterator[grpc.UnaryUnaryMultiCallable[cri.StatusRequest, cri.StatusResponse]]:
    """CRI's Status on a connection of its own."""
    with grpc.insecure_channel(f"unix:{roots.socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel.unary_unary(
            "/runtime.v1.RuntimeService/Status",
            request_serializer=cri.StatusRequest.SerializeToString,
            response_deserializer=cri.StatusResponse.FromString,
        )


def ask(roots: Roots) -> None:
    with client(roots) as status:
        status(cri.StatusRequest(), timeout=CALL_WITHIN_S)


def test_calls_wait_for_the_daemon(activated: Activated) -> None:
    roots = activated.roots
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, roots) for _ in range(8)]
        assert not any(one.done() for one in waiting)
        activated.start()
        for one in waiting:
            one.result()
    ask(roots)
    children = Path(f"/proc/{activated.pid}/task/{activated.pid}/children").read_text().split()
    assert children, "the zygote"
    assert not any(b"LISTEN_" in Path(f"/proc/{child}/environ").read_bytes() for child in children)


def test_restarts_make_calls_wait(activated: Activated) -> None:
    """CANCELLED is what gRPC answers to a call that comes in the very instant of its server's end."""
    roots, over, failed = activated.roots, threading.Event(), list[grpc.StatusCode]()
    activated.start()
    ask(roots)

    def call(one: bool) -> int:
        """Again and again: on one connection, or on a new one each time."""
        count = 0
        with client(roots) as status:
            while not over.is_set():
                try:
                    status(cri.StatusRequest(), timeout=CALL_WITHIN_S) if one else ask(roots)
                except grpc.RpcError as error:
                    failed.append(error.code())
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, one) for one in (True, True, False, False)]
        try:
            for _ in range(RESTARTS):
                assert activated.stop() == 0
                activated.start()
                ask(roots)
        finally:
            over.set()
        counts = [caller.result() for caller in callers]
    assert all(counts)
    assert set(failed) <= {grpc.StatusCode.CANCELLED}
    assert len(failed) <= sum(counts) / 10


def test_a_killed_daemon_is_followed_by_another(activated: Activated) -> None:
    """Its own socket is left in front: ExecStopPost= of atoll.service takes it away, and the next daemon would too."""
    roots = activated.roots
    held = roots.socket.with_name("atoll.sock.held")
    for is_put_back in (True, False):
        activated.start()
        wait_until(lambda: answers(roots), within=CALL_WITHIN_S)
        activated.kill()
        assert held.is_socket()
        if is_put_back:
            os.rename(held, roots.socket)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(ask, roots)
                activated.start()
                waiting.result()
            activated.kill()
    activated.start()
    wait_until(lambda: answers(roots), within=CALL_WITHIN_S)
    assert activated.stop() == 0
    assert not held.exists()
    assert roots.socket.is_socket()


def answers(roots: Roots) -> bool:
    with suppress(grpc.RpcError):
        ask(roots)
        return True
    return False


def test_another_socket_is_refused(activated: Activated) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(activated.roots.state / "other.sock"))
        other.listen()
        activated.listener, own = other, activated.listener
        activated.start()
        wait_until(lambda: not activated.is_running(), within=ENDED_WITHIN_S)
        activated.listener = own
    assert "make ListenStream= the same" in activated.log_tail()
    with suppress(ProcessLookupError):
        os.kill(activated.pid, signal.SIGKILL)
    (activated.roots.state / "other.sock").unlink()
