"""Throughput of exec and port forward over SPDY: Atoll beside containerd, by one client, in one run. As root.

    bench/streaming.py [--mb 256] [--rounds 3] [--containerd FOLDER]

The client is as cheap as it can be, so that what is measured is the server. The pod has the host's network: its port
is one that this process listens on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.streaming import spdy_codec as codec
from bench import host, places
from bench.cri import container_config, pod_request
from bench.daemons import Atoll, Containerd, Daemon
from bench.places import Places

BLOCK_BYTES = 256 << 10
FRAME_BYTES = 32 << 10
"""What kubectl's and crictl's library sends at most in a frame."""
NAMES = ("atoll", "containerd")
LAST = b"whole"
"""What the input of a command ends with."""
WAIT_S = 120.0
ROWS = ("exec, out of the container", "exec, into the container", "port forward, out", "port forward, in")


class Connection:
    """A client's end of an upgraded connection."""

    def __init__(self, url: str, protocol: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=WAIT_S)
        self._encoder = codec.Encoder()
        self._decoder = codec.Decoder()
        self._buffer = bytearray(1 << 20)
        self.socket.sendall(
            f"POST {parts.path} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {protocol}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1)
        if b" 101 " not in head:
            raise RuntimeError(f"not upgraded: {head!r}")

    def open(self, stream: int, **headers: str) -> None:
        self.socket.sendall(self._encoder.syn_stream(stream, headers))

    def events(self) -> Iterator[codec.Event]:
        while size := self.socket.recv_into(self._buffer):
            yield from self._decoder.feed(memoryview(self._buffer)[:size])

    def feed(self, stream: int, size: int) -> threading.Thread:
        """Send so many bytes and the end, from a thread."""
        frame = codec.data_head(stream, FRAME_BYTES) + bytes(FRAME_BYTES)

        def work() -> None:
            for _ in range(size // BLOCK_BYTES):
                self.socket.sendall(frame * (BLOCK_BYTES // FRAME_BYTES))
            self.socket.sendall(codec.data_head(stream, len(LAST), fin=True) + LAST)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


def execute(daemon: Daemon, container: str, size: int, *, into: bool) -> None:
    """Move `size` bytes through an exec, and wait for its end."""
    command = ["dd", "if=/dev/zero", "bs=256k", f"count={size >> 18}"]
    if into:
        command = ["tail", "-c", str(len(LAST))]
    request = pb.ExecRequest(container_id=container, cmd=command, stdin=into, stdout=True)
    connection = Connection(daemon.cri.call("Exec", request, pb.ExecResponse).url, "v4.channel.k8s.io")
    with contextlib.closing(connection.socket):
        connection.open(1, streamtype="error")
        if into:
            connection.open(3, streamtype="stdin")
        connection.open(5, streamtype="stdout")
        if into:
            connection.feed(3, size)
        came, told, status = 0, b"", b""
        for event in connection.events():
            if isinstance(event, codec.Data) and event.stream_id == 5:
                came += len(event.chunk)
                told += event.chunk if into else b""
            elif isinstance(event, codec.Data):
                status += event.chunk
            if status.endswith(b"}") and (told or came == size):
                break
        if b"Success" not in status or (told != LAST if into else came != size):
            raise RuntimeError(f"exec: {came} bytes of {size} came; {told!r} {status!r}")


def forward(daemon: Daemon, pod: str, size: int, *, into: bool) -> None:
    """Move `size` bytes through a forwarded port, and wait for their end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = threading.Event()

        def serve() -> None:
            peer = listener.accept()[0]
            with peer:
                if into:
                    buffer, left = bytearray(1 << 20), size
                    while left > 0 and (count := peer.recv_into(buffer)):
                        left -= count
                    if left <= 0:
                        taken.set()
                else:
                    for _ in range(size // BLOCK_BYTES):
                        peer.sendall(bytes(BLOCK_BYTES))

        threading.Thread(target=serve, daemon=True).start()
        request = pb.PortForwardRequest(pod_sandbox_id=pod, port=[port])
        url = daemon.cri.call("PortForward", request, pb.PortForwardResponse).url
        connection = Connection(url, "portforward.k8s.io")
        with contextlib.closing(connection.socket):
            connection.open(1, streamtype="error", port=str(port), requestid="0")
            connection.open(3, streamtype="data", port=str(port), requestid="0")
            if into:
                feeding = connection.feed(3, size)
                if not taken.wait(WAIT_S):
                    raise RuntimeError("port forward: not all bytes came")
                feeding.join(WAIT_S)
                return
            came = 0
            for event in connection.events():
                if isinstance(event, codec.Data) and event.stream_id == 3:
                    came += len(event.chunk)
                    if came == size:
                        return
            raise RuntimeError(f"port forward: {came} bytes of {size} came")


def cpu_s(daemon: Daemon) -> float:
    """CPU time of a daemon and its shims so far; proc(5), stat."""
    processes = daemon.processes
    total = 0
    for pid in (processes.daemon, *processes.marked, *processes.below):
        words = host.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        total += sum(int(word) for word in words[11:13]) if words else 0
    return total / os.sysconf("SC_CLK_TCK")


def measure(daemons: list[Daemon], size: int, rounds: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Bytes a second of each row and daemon, the daemons in turn, and CPU seconds a GB of a daemon and its shims."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        subjects: list[tuple[Daemon, str, str]] = []
        for daemon in daemons:
            stack.enter_context(daemon)
            request = pod_request("stream", logs=daemon.places.logs, host_network=True)
            pod = daemon.cri.run_pod(request)
            config = container_config()
            config.linux.resources.memory_limit_in_bytes = 0
            config.linux.resources.cpu_shares = 1024
            config.linux.security_context.namespace_options.network = pb.NODE
            container = daemon.cri.create(pod, request, config)
            daemon.cri.start(container)
            subjects.append((daemon, pod, container))
        for _ in range(rounds):
            for daemon, pod, container in subjects:
                works: list[Callable[[], None]] = [
                    lambda d=daemon, c=container: execute(d, c, size, into=False),
                    lambda d=daemon, c=container: execute(d, c, size, into=True),
                    lambda d=daemon, p=pod: forward(d, p, size, into=False),
                    lambda d=daemon, p=pod: forward(d, p, size, into=True),
                ]
                for row, work in zip(ROWS, works, strict=True):
                    spent, begun = cpu_s(daemon), time.perf_counter()
                    work()
                    rate = size / (time.perf_counter() - begun)
                    cost = (cpu_s(daemon) - spent) / size * 1e9
                    found.setdefault((row, daemon.places.name), []).append((rate, cost))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--containerd", type=Path, help="the folder of another containerd and its shim")
    options = parser.parse_args()
    with places.prefix() as prefix:
        theirs = Places(prefix=prefix, name="containerd", number=0)
        containerd = Containerd(theirs, folder=options.containerd)
        daemons: list[Daemon] = [Atoll(Places(prefix=prefix, name="atoll", number=1)), containerd]
        found = measure(daemons, options.mb << 20, options.rounds)
    print("| median | atoll, MB/s | containerd, MB/s | ratio | atoll, CPU s a GB | containerd, CPU s a GB |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        values = [[statistics.median(column) for column in zip(*found[row, name], strict=True)] for name in NAMES]
        (own, own_cpu), (other, other_cpu) = values
        print(f"| {row} | {own / 1e6:.0f} | {other / 1e6:.0f} | {own / other:.2f} | {own_cpu:.1f} | {other_cpu:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
