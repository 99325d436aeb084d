"""Exec, attach and port forward on real containers: every protocol and version, whole streams, ends, refusals."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux import netns
from tests.integration.cri_client import CRI, eventually, refused
from tests.integration.daemons import Daemon
from tests.integration.stream_client import Answer, Spdy, SpdyCommand, Tunnelled, WebSocket, connect, request

pytestmark = pytest.mark.shared_daemon

SPDY_VERSIONS = (
    "",
    "channel.k8s.io",
    "v2.channel.k8s.io",
    "v3.channel.k8s.io",
    "v4.channel.k8s.io",
    "v5.channel.k8s.io",
)
WEBSOCKET_VERSIONS = (
    "",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "v5.channel.k8s.io",
)
SLEEP = 'trap "exit 0" TERM; while true; do sleep 1000 & wait; done'
BULK_BYTES = 256 << 20
PODS_PORT = 7000


@contextmanager
def container(
    cri: CRI, script: str = SLEEP, *, config: pb.PodSandboxConfig | None = None, **fields: object
) -> Iterator[tuple[str, str]]:
    """A pod with one running container, and its end."""
    pod = cri.run_pod(config)
    try:
        yield pod, cri.script(pod, script, **fields)
    finally:
        cri.stop_pod(pod)
        cri.remove_pod(pod)


def exec_url(cri: CRI, of: str, *command: str, tty: bool = False, stdin: bool = False, stdout: bool = True) -> str:
    asked = pb.ExecRequest(container_id=of, cmd=command, tty=tty, stdin=stdin, stdout=stdout, stderr=not tty)
    return cri.runtime.call("Exec", asked, pb.ExecResponse).url


def attach_url(cri: CRI, of: str, *, tty: bool = False, stdin: bool = True) -> str:
    asked = pb.AttachRequest(container_id=of, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    return cri.runtime.call("Attach", asked, pb.AttachResponse).url


def forward_url(cri: CRI, pod: str, *ports: int) -> str:
    asked = pb.PortForwardRequest(pod_sandbox_id=pod, port=ports)
    return cri.runtime.call("PortForward", asked, pb.PortForwardResponse).url


def has_json(protocol: str) -> bool:
    return protocol[:2] in {"v4", "v5"}


def channels(websocket: WebSocket, protocol: str) -> dict[int, bytes]:
    """What came on each channel."""
    found: dict[int, bytes] = {}
    for message in websocket.messages:
        is_text = "base64" in protocol
        number = int(message[:1]) if is_text else message[0]
        data = base64.b64decode(message[1:]) if is_text else message[1:]
        found[number] = found.get(number, b"") + data
    return found


# --- exec ---


def test_exec_over_spdy_in_every_version(cri: CRI) -> None:
    script = "read x; echo out $x; echo err >&2; exit 3"
    with container(cri) as (_, of):
        for protocol in SPDY_VERSIONS:
            url = exec_url(cri, of, "/bin/sh", "-c", script, stdin=True)
            with SpdyCommand(url, protocol, stdin=True) as command:
                command.stdin(b"line\n")
                command.wait()
                assert command.text("stdout") == b"out line\n"
                assert command.text("stderr") == b"err\n"
                told = command.text("error")
                if has_json(protocol):
                    assert json.loads(told)["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
                else:
                    assert told == b"command terminated with non-zero exit code: 3"


def test_exec_over_websocket_in_every_version(cri: CRI) -> None:
    script = "read x; echo out $x; echo err >&2; exit 3"
    with container(cri) as (_, of):
        for protocol in WEBSOCKET_VERSIONS:
            url = exec_url(cri, of, "/bin/sh", "-c", script, stdin=True)
            with WebSocket(url, *([protocol] if protocol else [])) as websocket:
                assert (websocket.protocol or "") == protocol
                websocket.until(lambda ws=websocket: bool(ws.messages))
                assert websocket.messages[0][1:] == b"", "the first message is empty"
                if "base64" in protocol:
                    websocket.send("0" + base64.b64encode(b"line\n").decode())
                else:
                    websocket.send(b"\x00line\n")
                websocket.until(lambda ws=websocket: ws.closed is not None)
                found = channels(websocket, protocol)
                assert websocket.closed == 1000
                assert (found[1], found[2]) == (b"out line\n", b"err\n")
                if has_json(protocol):
                    assert json.loads(found[3])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
                else:
                    assert found[3] == b"command terminated with non-zero exit code: 3"


def test_success_and_a_program_that_is_not_there(cri: CRI) -> None:
    with container(cri) as (_, of):
        with SpdyCommand(exec_url(cri, of, "true"), "v4.channel.k8s.io") as command:
            assert json.loads(command.wait().text("error")) == {"metadata": {}, "status": "Success"}
        with SpdyCommand(exec_url(cri, of, "nothing-of-the-kind"), "v4.channel.k8s.io") as command:
            told = json.loads(command.wait().text("error"))
            assert told["reason"] == "InternalError"
            assert "nothing-of-the-kind" in told["message"]
        with SpdyCommand(exec_url(cri, of, "/bin/sh", "-c", "kill -9 $$"), "v4.channel.k8s.io") as command:
            assert json.loads(command.wait().text("error"))["details"]["causes"][0]["message"] == "137"


def test_the_end_of_stdin_ends_a_cat_over_spdy_and_in_version_5(cri: CRI) -> None:
    with container(cri) as (_, of):
        for protocol in SPDY_VERSIONS:
            with SpdyCommand(exec_url(cri, of, "cat", stdin=True), protocol, stdin=True) as command:
                command.stdin(b"half", fin=True)
                assert command.wait().text("stdout") == b"half"
        with WebSocket(exec_url(cri, of, "cat", stdin=True), "v5.channel.k8s.io") as websocket:
            websocket.send(b"\x00half")
            websocket.send(b"\xff\x00")
            websocket.until(lambda: websocket.closed is not None)
            assert channels(websocket, "")[1] == b"half"


def test_a_terminal_has_its_size_and_follows_changes(cri: CRI) -> None:
    script = "read x; stty size; trap 'stty size; exit 5' WINCH; echo ready; while true; do sleep 0.02; done"
    with container(cri) as (_, of):
        with SpdyCommand(
            exec_url(cri, of, "sh", "-c", script, tty=True, stdin=True), "v4.channel.k8s.io", stdin=True, tty=True
        ) as command:
            command.resize(101, 37)
            time.sleep(0.2)
            command.stdin(b"\n")
            command.until("stdout", b"37 101\r\n").until("stdout", b"ready")
            command.resize(0, 0)  # says nothing
            command.resize(90, 20)
            command.wait()
            assert b"20 90\r\n" in command.text("stdout")
            assert b'"5"' in command.text("error")
        with WebSocket(exec_url(cri, of, "sh", "-c", script, tty=True, stdin=True), "v5.channel.k8s.io") as websocket:
            websocket.send(b'\x04{"Width":50,"Height":40}')
            time.sleep(0.2)
            websocket.send(b"\x00\n")
            websocket.until(lambda: b"ready" in channels(websocket, "").get(1, b""))
            assert b"40 50\r\n" in channels(websocket, "")[1]


def test_a_quarter_of_a_gigabyte_comes_out_whole(cri: CRI, daemon: Daemon) -> None:
    taken = [0]

    def take(stream: int, chunk: memoryview) -> None:
        taken[0] += len(chunk) if stream == 3 else 0

    script = f"dd if=/dev/zero bs=256k count={BULK_BYTES >> 18} 2>/dev/null"
    with container(cri) as (_, of):
        before = peak_kib(daemon)
        with SpdyCommand(exec_url(cri, of, "sh", "-c", script), "v4.channel.k8s.io", taker=take) as command:
            command.wait()
        assert taken[0] == BULK_BYTES
        assert peak_kib(daemon) - before < 40 << 10


def test_a_quarter_of_a_gigabyte_goes_in_whole(cri: CRI, daemon: Daemon) -> None:
    chunk = bytes(32 << 10)
    with container(cri) as (_, of):
        before = peak_kib(daemon)
        with SpdyCommand(exec_url(cri, of, "wc", "-c", stdin=True), "v4.channel.k8s.io", stdin=True) as command:
            command.session.feed(command.ids["stdin"], chunk, BULK_BYTES // len(chunk))
            assert command.wait().text("stdout") == b"%d\n" % BULK_BYTES
        assert peak_kib(daemon) - before < 40 << 10


def test_every_byte_comes_back_from_a_cat(cri: CRI) -> None:
    block = os.urandom(1 << 20)
    sent, got = hashlib.sha1(block * 24), hashlib.sha1()
    with container(cri) as (_, of):
        url = exec_url(cri, of, "cat", stdin=True)
        with SpdyCommand(
            url,
            "v4.channel.k8s.io",
            stdin=True,
            stderr=True,
            taker=lambda stream, chunk: got.update(chunk) if stream == 5 else None,
        ) as command:
            assert command.ids["stdout"] == 5
            command.session.feed(command.ids["stdin"], block, 24)
            command.wait()
        assert got.digest() == sent.digest()
        with WebSocket(exec_url(cri, of, "cat", stdin=True), "v5.channel.k8s.io") as websocket:

            def feed() -> None:
                for at in range(0, 8 << 20, 64 << 10):
                    websocket.send(b"\x00" + (block * 8)[at : at + (64 << 10)])
                websocket.send(b"\xff\x00")

            thread = threading.Thread(target=feed)
            thread.start()
            websocket.until(lambda: websocket.closed is not None)
            thread.join()
            assert channels(websocket, "")[1] == block * 8


def peak_kib(daemon: Daemon) -> int:
    """The most memory that the daemon ever had."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_client_that_does_not_read_holds_the_process_back_and_costs_little(cri: CRI, daemon: Daemon) -> None:
    with container(cri) as (_, of):
        before = peak_kib(daemon)
        with SpdyCommand(exec_url(cri, of, "cat", "/dev/zero"), "v4.channel.k8s.io") as command:
            time.sleep(0.5)
            assert cri.exec(of, "echo", "alive").stdout == b"alive\n"
            assert peak_kib(daemon) - before < 40 << 10
            assert cri.exec(of, "pidof", "cat").code == 0
            assert command.ids
        eventually(lambda: cri.exec(of, "pidof", "cat").code == 1, "the client has left, its process goes too")


def test_an_exec_ends_with_its_client(cri: CRI) -> None:
    with container(cri) as (_, of):
        for leave in ("spdy", "websocket"):
            url = exec_url(cri, of, "sleep", "777", stdin=True)
            if leave == "spdy":
                with SpdyCommand(url, "v4.channel.k8s.io", stdin=True):
                    eventually(lambda: "sleep 777" in cri.sh(of, "ps"), "it runs")
            else:
                with WebSocket(url, "v5.channel.k8s.io") as websocket:
                    eventually(lambda: "sleep 777" in cri.sh(of, "ps"), "it runs")
                    websocket.close()
            eventually(lambda: "sleep 777" not in cri.sh(of, "ps"), "it ends")


def test_what_a_process_does_not_take_of_its_stdin_holds_nothing_up(cri: CRI) -> None:
    with container(cri) as (_, of):
        url = exec_url(cri, of, "sh", "-c", "exec 0<&-; echo closed; sleep 0.2", stdin=True)
        with SpdyCommand(url, "v4.channel.k8s.io", stdin=True) as command:
            command.session.feed(command.ids["stdin"], bytes(32 << 10), 256)
            assert command.wait().text("stdout") == b"closed\n"


# --- attach ---


def test_attach_shows_what_comes_and_a_client_that_leaves_changes_nothing(cri: CRI) -> None:
    with container(cri, "echo before; while read x; do echo got $x; echo e$x >&2; done; sleep 1000", stdin=True) as (
        _,
        of,
    ):
        eventually(lambda: b"before" in cri.log(of), "it runs")
        for number, protocol in enumerate(SPDY_VERSIONS):
            with SpdyCommand(attach_url(cri, of), protocol, stdin=True) as command:
                command.stdin(b"%d\n" % number)
                command.until("stdout", b"got %d\n" % number).until("stderr", b"e%d\n" % number)
                assert b"before" not in command.text("stdout")
        with WebSocket(attach_url(cri, of), "v4.channel.k8s.io") as websocket:
            websocket.send(b"\x00ws\n")
            websocket.until(lambda: b"got ws\n" in channels(websocket, "").get(1, b""))
            websocket.close()
        assert cri.status(of).state == pb.CONTAINER_RUNNING


def test_attach_ends_with_its_container_and_all_that_it_wrote(cri: CRI) -> None:
    with (
        container(cri, "read x; seq 1 20000; exit 4", stdin=True) as (_, of),
        SpdyCommand(attach_url(cri, of), "v4.channel.k8s.io", stdin=True) as command,
    ):
        command.stdin(b"\n")
        command.wait()
        assert command.text("stdout") == b"".join(b"%d\n" % number for number in range(1, 20001))
        assert json.loads(command.text("error"))["status"] == "Success"


def test_stdin_once_ends_with_the_clients_stdin_and_else_it_does_not(cri: CRI) -> None:
    with container(cri, "cat; echo ended; sleep 1000", stdin=True, stdin_once=True) as (pod, once):
        with SpdyCommand(attach_url(cri, once), "v4.channel.k8s.io", stdin=True) as command:
            command.stdin(b"last\n", fin=True)
            command.until("stdout", b"last\nended\n")
        many = cri.script(pod, "cat; echo ended", stdin=True)
        for text in (b"one\n", b"two\n"):
            with SpdyCommand(attach_url(cri, many), "v4.channel.k8s.io", stdin=True) as command:
                command.stdin(text, fin=True)
                command.until("stdout", text)
        assert cri.status(many).state == pb.CONTAINER_RUNNING


def test_attach_to_a_terminal(cri: CRI) -> None:
    with (
        container(cri, "read x; stty size; read y", stdin=True, tty=True) as (_, of),
        SpdyCommand(attach_url(cri, of, tty=True), "v4.channel.k8s.io", stdin=True, tty=True) as command,
    ):
        command.resize(70, 30)
        time.sleep(0.1)
        command.stdin(b"\n")
        command.until("stdout", b"30 70\r\n")


# --- port forward ---


@contextmanager
def echo_server(cri: CRI, pod: str, address: str = "127.0.0.1") -> Iterator[None]:
    """A server in the pod's network namespace, on `PODS_PORT`, that sends back what it gets."""

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, PODS_PORT), family=family, backlog=512)

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is shut down at the end
            while True:
                threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    with netns.inside(Path(str(cri.pod_info(pod)["netNamespacePath"])), listen) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def pair(session: Spdy, port: int, number: int) -> tuple[int, int]:
    """A data and an error stream, in kubectl's order."""
    error = session.open(streamtype="error", port=str(port), requestid=str(number))
    return session.open(streamtype="data", port=str(port), requestid=str(number)), error


def test_hundreds_of_connections_in_one_session(cri: CRI) -> None:
    with (
        container(cri) as (pod, _),
        echo_server(cri, pod),
        Spdy(forward_url(cri, pod), "portforward.k8s.io") as session,
    ):
        pairs = [pair(session, PODS_PORT, number) for number in range(200)]
        for data, error in pairs:
            session.send(error, fin=True)
            session.send(data, b"hello %d" % data, fin=True)
        wanted = {stream for both in pairs for stream in both}
        session.until(lambda: wanted <= session.ended)
        assert {data: bytes(session.data[data]) for data, _ in pairs} == {data: b"hello %d" % data for data, _ in pairs}
        assert not any(session.data[error] for _, error in pairs)


def test_a_port_of_ipv6_one_that_nobody_has_and_wrong_ones(cri: CRI) -> None:
    with (
        container(cri) as (pod, _),
        echo_server(cri, pod, "::1"),
        Spdy(forward_url(cri, pod), "portforward.k8s.io") as session,
    ):
        data, _ = pair(session, PODS_PORT, 1)
        session.send(data, b"six", fin=True)
        session.until(lambda: data in session.ended)
        assert session.data[data] == b"six"
        data, error = pair(session, 81, 2)
        session.until(lambda: error in session.ended and data in session.reset)
        assert b"error forwarding port 81" in session.data[error]
        assert b"connection refused" in session.data[error]
        wrong = [session.open(streamtype="data", port=port) for port in ("0", "65536", "x", "", "²")]
        wrong.append(session.open(streamtype="other", port="80"))
        session.until(lambda: set(wrong) <= set(session.reset))
        assert not session.gone


def test_a_client_without_request_ids_is_understood(cri: CRI) -> None:
    with container(cri) as (pod, _), echo_server(cri, pod), Spdy(forward_url(cri, pod)) as session:
        session.open(streamtype="error", port=str(PODS_PORT))
        data = session.open(streamtype="data", port=str(PODS_PORT))
        session.send(data, b"old", fin=True)
        session.until(lambda: data in session.ended)
        assert session.data[data] == b"old"


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of this machine whose first connection is given to `serve`, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            connection = server.accept()[0]
            with connection:
                serve(connection)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)


def host_network(cri: CRI) -> pb.PodSandboxConfig:
    return cri.pod_config(namespaces=pb.NamespaceOption(network=pb.NODE))


def test_a_quarter_of_a_gigabyte_each_way_through_a_pod_with_the_hosts_network(cri: CRI, daemon: Daemon) -> None:
    block = os.urandom(1 << 20)
    count = BULK_BYTES >> 20
    digests = {"in": hashlib.sha1(), "out": hashlib.sha1()}

    def serve(connection: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        while size := connection.recv_into(buffer):
            digests["in"].update(memoryview(buffer)[:size])
        for _ in range(count):
            connection.sendall(block)

    def take(stream: int, chunk: memoryview) -> None:
        if stream == 3:
            digests["out"].update(chunk)

    wanted = hashlib.sha1()
    for _ in range(count):
        wanted.update(block)
    pod = cri.run_pod(host_network(cri))
    before = peak_kib(daemon)
    with listener(serve) as port, Spdy(forward_url(cri, pod), "portforward.k8s.io", taker=take) as session:
        data, error = pair(session, port, 0)
        session.send(error, fin=True)
        session.feed(data, block, count)
        session.until(lambda: {data, error} <= session.ended)
    assert digests["in"].digest() == digests["out"].digest() == wanted.digest()
    assert peak_kib(daemon) - before < 40 << 10
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def test_port_forward_over_websocket(cri: CRI) -> None:
    with container(cri) as (pod, _), echo_server(cri, pod):
        for protocol in ("", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"):
            with WebSocket(forward_url(cri, pod, PODS_PORT, 81), *([protocol] if protocol else [])) as websocket:
                is_text = "base64" in protocol
                websocket.send("0" + base64.b64encode(b"hello").decode() if is_text else b"\x00hello")
                websocket.until(
                    lambda ws=websocket, p=protocol: (
                        b"hello" in channels(ws, p).get(0, b"") and b"refused" in channels(ws, p).get(3, b"")
                    )
                )
                found = channels(websocket, protocol)
                assert found[0] == struct.pack("<H", PODS_PORT) + b"hello"
                assert found[1] == struct.pack("<H", PODS_PORT)
                assert found[2] == struct.pack("<H", 81)
                assert found[3].startswith(struct.pack("<H", 81) + b"error forwarding port 81")


def test_spdy_inside_a_websocket(cri: CRI) -> None:
    with container(cri) as (pod, _), echo_server(cri, pod), Tunnelled(forward_url(cri, pod)) as session:
        pairs = [pair(session, PODS_PORT, number) for number in range(20)]
        for data, _ in pairs:
            session.send(data, b"x" * 100_000, fin=True)
        wanted = {data for data, _ in pairs}
        session.until(lambda: wanted <= session.ended)
        assert all(session.data[data] == b"x" * 100_000 for data in wanted)


# --- refusals ---


def test_requests_that_cannot_be_are_refused(cri: CRI) -> None:
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    with container(cri) as (pod, of):
        for method, asked, answer in (
            ("Exec", pb.ExecRequest(container_id=of, cmd=["true"]), pb.ExecResponse),
            ("Exec", pb.ExecRequest(cmd=["true"], stdout=True), pb.ExecResponse),
            ("Exec", pb.ExecRequest(container_id=of, stdout=True), pb.ExecResponse),
            ("Exec", pb.ExecRequest(container_id=of, cmd=["a"], tty=True, stdout=True, stderr=True), pb.ExecResponse),
            ("Attach", pb.AttachRequest(container_id=of), pb.AttachResponse),
            ("Attach", pb.AttachRequest(container_id=of, tty=True, stderr=True), pb.AttachResponse),
            ("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=[0]), pb.PortForwardResponse),
            ("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=[65536]), pb.PortForwardResponse),
            ("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=range(1, 200)), pb.PortForwardResponse),
        ):
            with refused(wrong):
                cri.runtime.call(method, asked, answer)
        for kind in ("a" * 64, "none"):
            with refused(grpc.StatusCode.NOT_FOUND):
                exec_url(cri, kind, "true")
            with refused(grpc.StatusCode.NOT_FOUND):
                attach_url(cri, kind)
            with refused(grpc.StatusCode.NOT_FOUND):
                forward_url(cri, kind)
        created = cri.create(pod, cri.container_config("true"))
        url = exec_url(cri, of, "true")
        cri.stop(of)
        for late in (created, of):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "not running"):
                exec_url(cri, late, "true")
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "not running"):
                attach_url(cri, late)
        with SpdyCommand(url, "v4.channel.k8s.io") as command:
            assert "not running" in json.loads(command.wait().text("error"))["message"]
        cri.stop_pod(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "not ready"):
            forward_url(cri, pod)


def answer(url: str, method: str = "POST", path: str = "", **headers: str) -> tuple[int, str]:
    with connect(url) as connection:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        status, head, _ = request(connection, method, path or urlsplit(url).path, fields)
        return status, head


def test_wrong_requests_get_the_statuses_of_the_field(cri: CRI) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    with container(cri) as (pod, of):
        url = exec_url(cri, of, "true")
        assert answer(url, "DELETE", **upgrade)[0] == 405
        assert answer(url, path="/exec/" + "A" * 24, **upgrade)[0] == 404
        assert answer(url, path="/exec/", **upgrade)[0] == 404
        assert answer(url, path="/", **upgrade)[0] == 404
        assert answer(url, path="/exec/" + "A" * 9000, **upgrade)[0] == 404
        with SpdyCommand(url, "v4.channel.k8s.io") as command:
            command.wait()
        assert answer(url, **upgrade)[0] == 404, "a token works once"
        assert answer(exec_url(cri, of, "true"))[0] == 400
        status, head = answer(exec_url(cri, of, "true"), X_Stream_Protocol_Version="v9.channel.k8s.io", **upgrade)
        assert status == 403
        assert "v4.channel.k8s.io" in head
        assert answer(forward_url(cri, pod), X_Stream_Protocol_Version="v4.channel.k8s.io", **upgrade)[0] == 403
        crossed = exec_url(cri, of, "true")
        assert answer(crossed, path=urlsplit(crossed).path.replace("/exec/", "/attach/"), **upgrade)[0] == 404
        with pytest.raises(Answer) as refusal:
            WebSocket(exec_url(cri, of, "true"), "chat")
        assert refusal.value.status == 403
        with pytest.raises(Answer) as refusal:
            WebSocket(forward_url(cri, pod), "v4.channel.k8s.io")
        assert refusal.value.status == 400


def test_garbage_ends_its_own_connection_and_nothing_else(cri: CRI, daemon: Daemon) -> None:
    with container(cri) as (pod, of):
        with SpdyCommand(exec_url(cri, of, "cat", stdin=True), "v4.channel.k8s.io", stdin=True) as other:
            for number in range(12):
                session = Spdy(forward_url(cri, pod), "portforward.k8s.io")
                with session:
                    session.write(b"\x80\x03\x00\x01\x00\x00\x00\x20" + os.urandom(4096 * (number + 1)))
                    session.until(lambda: False)
                    assert session.gone
            for number in range(6):
                with WebSocket(exec_url(cri, of, "sleep", "1"), WEBSOCKET_VERSIONS[number]) as websocket:
                    websocket.socket.sendall(b"\xff" + os.urandom(2000))
                    websocket.until(lambda: False)
            other.stdin(b"still here", fin=True)
            assert other.wait().text("stdout") == b"still here"
        assert daemon.is_running()


def test_the_end_of_the_daemon_ends_sessions_and_what_they_ran_and_no_container(cri: CRI, daemon: Daemon) -> None:
    with container(cri, stdin=True) as (_, of):
        url = exec_url(cri, of, "sleep", "777")
        with (
            SpdyCommand(url, "v4.channel.k8s.io") as command,
            WebSocket(attach_url(cri, of), "v5.channel.k8s.io") as attached,
        ):
            eventually(lambda: "sleep 777" in cri.sh(of, "ps"), "it runs")
            assert daemon.stop() == 0
            assert command.session.until(lambda: False).away is not None
            attached.until(lambda: False)
            assert attached.closed is not None
            daemon.start()
            assert "sleep 777" not in cri.sh(of, "ps")
            assert cri.status(of).state == pb.CONTAINER_RUNNING
