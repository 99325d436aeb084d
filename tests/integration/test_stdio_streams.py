"""The daemon's end of a process's stdio: streams of a shim, fifos, a relay, and what survives whose death."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import any_pb2, empty_pb2

from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.runtime.capture import Capture
from atoll.runtime.streams import (
    ByteReader,
    FifoSet,
    ProcessIO,
    open_input,
    open_output,
    open_process,
)
from atoll.shim.stdio import Stdio, StdioRequest, Streams, cri_uri, flow, relay, stream_uri
from atoll.shim.stdio.hub import LOSSLESS_BUFFER_BYTES, Hub
from atoll.shim.stdio.pump import MAX_CHUNK_BYTES
from atoll.shim.stdio.readiness import readable
from atoll.shim.stdio.streaming import StreamingService
from atoll.ttrpc.client import Client, ClientStream
from atoll.ttrpc.server import Server
from tests.integration.conftest import Roots

NUMBERS = b"".join(b"%d\n" % number for number in range(1, 300001))


@dataclass
class ServedShim:
    """Streams behind a ttrpc server, as in a shim."""

    streams: Streams
    socket: Path

    async def connect(self) -> Client:
        return await Client.connect(str(self.socket))

    async def exec(self, *command: str, stdin: bool = True) -> tuple[Stdio, subprocess.Popen[bytes]]:
        """A process whose streams are lossless."""
        uri = {name: stream_uri(str(self.socket), f"e-{name}") for name in ("stdin", "stdout", "stderr")}
        request = StdioRequest(
            id="c", exec_id="e", stdin=uri["stdin"] if stdin else "", stdout=uri["stdout"], stderr=uri["stderr"]
        )
        return await self.run(request, *command)

    async def run(self, request: StdioRequest, *command: str) -> tuple[Stdio, subprocess.Popen[bytes]]:
        stdio = await Stdio.open(request, self.streams)
        fds = stdio.child_fds()
        process = subprocess.Popen(command, stdin=fds[0], stdout=fds[1], stderr=fds[2])
        await stdio.started()
        return stdio, process


@pytest.fixture
async def shim(roots: Roots) -> AsyncIterator[ServedShim]:
    streams = Streams()
    async with Server() as server:
        server.add_service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(streams))
        await server.serve(roots.state / "shim.sock")
        yield ServedShim(streams, roots.state / "shim.sock")
        await server.shutdown(within=1)
    assert len(streams) == 0


@pytest.fixture
async def connection(shim: ServedShim) -> AsyncIterator[Client]:
    client = await shim.connect()
    yield client
    await client.aclose()


async def ended(process: subprocess.Popen[bytes]) -> int:
    exited = os.pidfd_open(process.pid)
    try:
        await readable(exited)
    finally:
        os.close(exited)
    return process.wait()


async def read_all(stream: ByteReader) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def finish(stdio: Stdio, process: subprocess.Popen[bytes], drain_s: float = 10) -> int:
    """Do what a shim does after an exit."""
    status = await ended(process)
    await stdio.drain(drain_s)
    await stdio.close()
    return status


async def capture(io: ProcessIO, limit_bytes: int) -> Capture:
    collected = Capture(io, limit_bytes)
    await collected.run()
    return collected


async def use(io: ProcessIO, data: bytes, stdio: Stdio, process: subprocess.Popen[bytes]) -> tuple[Capture, int]:
    """Feed stdin and capture the output, while the shim's side waits for the exit."""
    assert io.stdin is not None
    collected = Capture(io, 64 << 20)
    async with asyncio.TaskGroup() as group:
        group.create_task(collected.run())
        status = group.create_task(finish(stdio, process))
        await io.stdin.write(data)
        await io.stdin.close()
    return collected, status.result()


# Streams of a shim


async def test_exec_streams_carry_every_byte_both_ways(shim: ServedShim, connection: Client) -> None:
    data = os.urandom(8 << 20)
    stdio, process = await shim.exec("sh", "-c", "cat; echo err >&2; exit 3")
    io = await open_process(connection, stdin="e-stdin", stdout="e-stdout", stderr="e-stderr")
    collected, status = await use(io, data, stdio, process)
    io.close()
    assert (collected.stdout.data == data, collected.stderr.data, status) == (True, b"err\n", 3)
    assert not collected.stdout.is_cut


async def test_output_waits_for_its_client(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("seq", "1", "300000", stdin=False)
    await asyncio.sleep(0.1)
    assert process.poll() is None
    output = await open_output(connection, "e-stdout")
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read_all(output))
        assert await finish(stdio, process) == 0
    output.close()
    assert reading.result() == NUMBERS


async def test_a_new_connection_goes_on_where_the_lost_one_ended(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("seq", "1", "300000", stdin=False)
    lost = await shim.connect()
    first = await anext(aiter(await open_output(lost, "e-stdout")))
    await asyncio.sleep(0.05)
    await lost.aclose()
    output = await open_output(connection, "e-stdout")
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read_all(output))
        assert await finish(stdio, process) == 0
    output.close()
    rest = reading.result()
    assert NUMBERS.startswith(first)
    assert NUMBERS.endswith(rest)
    # What the shim had sent and nobody read is gone with the connection: at most what was granted.
    assert len(NUMBERS) - len(first) - len(rest) <= 2 * flow.WINDOW_BYTES


@pytest.mark.may_block(5)
async def test_log_is_whole_although_clients_come_and_go(shim: ServedShim, roots: Roots) -> None:
    log = roots.base / "0.log"
    stdio, process = await shim.run(StdioRequest(id="c", stdout=cri_uri(log)), "seq", "1", "300000")
    async with asyncio.TaskGroup() as group:
        finishing = group.create_task(finish(stdio, process))
        while not finishing.done():
            client = await shim.connect()
            try:
                chunk = await anext(aiter(await open_output(client, "c-stdout")))
                assert chunk in NUMBERS
            except errors.ResourceExhausted:
                pass  # the container was faster than this client
            except (StopAsyncIteration, errors.NotFound):
                break
            finally:
                await client.aclose()
    assert b"".join(line.split(b" ", 3)[3] + b"\n" for line in log.read_bytes().splitlines()) == NUMBERS


async def test_slow_attach_is_told_why_it_was_dropped(shim: ServedShim, connection: Client, roots: Roots) -> None:
    output_of = StdioRequest(id="c", stdin=cri_uri(), stdout=cri_uri())
    stdio, process = await shim.run(output_of, "sh", "-c", "read go; head -c 3000000 /dev/zero")
    output = await open_output(connection, "c-stdout")
    stdin = await open_input(connection, "c-stdin")
    await stdin.write(b"go\n")
    assert await finish(stdio, process) == 0
    with pytest.raises(errors.ResourceExhausted, match="not read"):
        await read_all(output)
    output.close()
    stdin.abort()


async def test_container_stdin_outlives_clients_unless_it_is_once(shim: ServedShim, connection: Client) -> None:
    for once in (False, True):
        request = StdioRequest(id="c", stdin=cri_uri(stdin_once=once), stdout=cri_uri())
        stdio, process = await shim.run(request, "cat")
        output = await open_output(connection, "c-stdout")
        stdin = await open_input(connection, "c-stdin")
        await stdin.write(b"one\n")
        assert await anext(output) == b"one\n"
        await stdin.close()
        if not once:
            assert process.poll() is None

            async def close_io(stdio: Stdio = stdio) -> None:
                stdio.close_stdin()

            again = await open_input(connection, "c-stdin", close_io)
            await again.write(b"two\n")
            await again.close()
            assert await anext(output) == b"two\n"
        assert await finish(stdio, process) == 0
        assert await read_all(output) == b""


async def test_input_to_a_process_that_reads_none_is_told(shim: ServedShim, connection: Client) -> None:
    request = StdioRequest(id="c", stdin=cri_uri(), stdout=cri_uri())
    stdio, process = await shim.run(request, "sh", "-c", "exec <&-; read x; sleep 1")
    stdin = await open_input(connection, "c-stdin")
    stdio.close_stdin()
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        await stdin.write(b"x" * 1_000_000)
    process.kill()
    await finish(stdio, process)


async def test_reader_ends_when_the_shim_goes(roots: Roots) -> None:
    streams = Streams()
    server = Server()
    server.add_service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(streams))
    await server.serve(roots.state / "shim.sock")
    shim = ServedShim(streams, roots.state / "shim.sock")
    stdio, process = await shim.exec("cat")
    client = await shim.connect()
    io = await open_process(client, stdin="e-stdin", stdout="e-stdout")
    assert io.stdin is not None
    assert io.stdout is not None
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(kind_of_end(io.stdout))
        await asyncio.sleep(0.05)
        await server.shutdown(within=0)
    assert issubclass(reading.result(), errors.Unavailable)
    with pytest.raises(errors.AtollError):
        await io.stdin.write(b"x" * 3_000_000)  # more than a fifo ever holds
    await client.aclose()
    process.kill()
    await finish(stdio, process)


async def kind_of_end(stream: ByteReader) -> type[Exception]:
    try:
        await read_all(stream)
    except errors.AtollError as error:
        return type(error)
    return StopAsyncIteration


async def start_stream(client: Client, first: any_pb2.Any) -> ClientStream[any_pb2.Any]:
    stream = await client.stream(flow.SERVICE, flow.METHOD, any_pb2.Any, client_streaming=True, server_streaming=True)
    await stream.send(first)
    return stream


async def test_protocol_faults_end_their_stream_only(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("cat")
    unknown = await start_stream(connection, flow.init_message("nobody-stdout"))
    with pytest.raises(errors.NotFound, match="nobody-stdout"):
        await unknown.receive()
    without_init = await start_stream(connection, flow.data_message(b"x"))
    with pytest.raises(errors.InvalidArgument, match="StreamInit"):
        await without_init.receive()
    silent = await connection.stream(
        flow.SERVICE, flow.METHOD, any_pb2.Any, client_streaming=True, server_streaming=True
    )
    await silent.close_send()
    with pytest.raises(errors.InvalidArgument, match="before its StreamInit"):
        await silent.receive()
    greedy = await start_stream(connection, flow.init_message("e-stdin"))
    await greedy.send(flow.data_message(b"x" * (flow.WINDOW_BYTES + 1)))
    assert await greedy.receive() is not None
    assert flow.window_of(await greedy.receive() or any_pb2.Any()) == flow.WINDOW_BYTES
    with pytest.raises(errors.InvalidArgument, match="allowed"):
        await greedy.receive()
    useless = await start_stream(connection, flow.init_message("e-stdout"))
    await useless.send(flow.window_message(-1))
    assert await useless.receive() is not None
    with pytest.raises(errors.InvalidArgument, match="window update"):
        await useless.receive()
    io = await open_process(connection, stdin="e-stdin", stdout="e-stdout", stderr="e-stderr")
    collected, status = await use(io, b"still works", stdio, process)
    assert (collected.stdout.data, status) == (b"still works", 0)


async def test_a_client_without_a_window_gets_nothing(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("seq", "1", "300000", stdin=False)
    stream = await start_stream(connection, flow.init_message("e-stdout"))
    assert await stream.receive() is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stream.receive()
    await stream.send(flow.window_message(10))
    message = await stream.receive()
    assert message is not None
    assert flow.data_of(message) == NUMBERS[:10]
    stream.close()
    process.kill()
    await finish(stdio, process, 0)


async def test_capture_is_limited_and_says_so(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("sh", "-c", "head -c 1000 /dev/zero; seq 1 300000 >&2", stdin=False)
    io = await open_process(connection, stdout="e-stdout", stderr="e-stderr")
    async with asyncio.TaskGroup() as group:
        group.create_task(finish(stdio, process))
        collected = await capture(io, 1000)
    assert (collected.stdout.data, collected.stdout.is_cut) == (b"\0" * 1000, False)
    assert (collected.stderr.data, collected.stderr.is_cut) == (NUMBERS[:1000], True)


async def test_a_hundred_streams_share_one_connection(shim: ServedShim, connection: Client) -> None:
    async def one(number: int) -> None:
        uri = stream_uri(str(shim.socket), f"e{number}-stdout")
        stdio = await Stdio.open(StdioRequest(id="c", exec_id=f"e{number}", stdout=uri), shim.streams)
        os.write(stdio.child_fds()[1], b"%d" % number * 1000)
        await stdio.started()
        output = await open_output(connection, f"e{number}-stdout")
        assert await read_all(output) == b"%d" % number * 1000
        output.close()
        await stdio.close()

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(one(number))


async def test_unread_output_is_bounded(shim: ServedShim, connection: Client) -> None:
    stdio, process = await shim.exec("sh", "-c", "head -c 100000000 /dev/zero", stdin=False)
    output = await open_output(connection, "e-stdout")
    await anext(output)
    await asyncio.sleep(0.2)
    hub = shim.streams.find("e-stdout")
    assert isinstance(hub, Hub)
    assert hub.is_blocked
    assert hub.held_bytes <= LOSSLESS_BUFFER_BYTES + MAX_CHUNK_BYTES
    assert process.poll() is None
    output.close()
    process.kill()
    await finish(stdio, process, 0)


# Fifos

FOREIGN = """
import os, subprocess, sys
folder, name = sys.argv[1:3]
path = lambda stream: f"{folder}/{name}-{stream}"
ends = {stream: (os.open(path(stream), os.O_RDWR), ) for stream in ("stdout", "stderr")}
stdin = os.open(path("stdin"), os.O_RDONLY | os.O_NONBLOCK)
os.set_blocking(stdin, True)
print("open", flush=True)
sys.stdin.readline()
os.dup2(stdin, 0); os.dup2(ends["stdout"][0], 1); os.dup2(ends["stderr"][0], 2)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class ForeignShim:
    """A process that opens fifos as containerd's shim does, then runs a command on them."""

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        program = [sys.executable, "-I", "-c", FOREIGN, str(folder), name, *command]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"open\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self.process.wait()


async def test_fifos_carry_every_byte_both_ways(roots: Roots) -> None:
    closed: list[bool] = []

    async def close_io() -> None:
        closed.append(True)

    fifos = FifoSet.create(roots.base / "io", "c", stdin=True, terminal=False)
    io = fifos.open(close_io)
    foreign = ForeignShim(roots.base / "io", "c", "sh", "-c", "cat; echo err >&2")
    fifos.connected()
    foreign.go()
    data = os.urandom(8 << 20)
    assert io.stdin is not None
    async with asyncio.TaskGroup() as group:
        collected = group.create_task(capture(io, 64 << 20))
        await io.stdin.write(data)
        await io.stdin.close()
        await io.stdin.close()
    foreign.process.wait()
    assert closed == [True]
    assert (collected.result().stdout.data == data, collected.result().stderr.data) == (True, b"err\n")
    with pytest.raises(errors.FailedPrecondition):
        await io.stdin.write(b"x")
    fifos.remove()
    fifos.remove()
    assert not (roots.base / "io").exists()


async def test_fifos_are_opened_again_after_a_restart(roots: Roots) -> None:
    folder = roots.base / "io"
    before = FifoSet.create(folder, "c", stdin=True, terminal=True)
    io = before.open()
    foreign = ForeignShim(folder, "c", "cat") if (folder / "c-stderr").exists() else None
    assert foreign is None, "a terminal has no stderr"
    os.mkfifo(folder / "c-stderr")
    foreign = ForeignShim(folder, "c", "cat")
    before.connected()
    foreign.go()
    assert io.stdin is not None
    assert io.stdout is not None
    await io.stdin.write(b"one")
    assert await anext(aiter(io.stdout)) == b"one"
    keeper = os.open(folder / "c-stdin", os.O_WRONLY)  # the shim's own write end
    await io.stdin.write(b"two")
    io.close()
    after = FifoSet(folder, "c", stdin=True, terminal=True)
    io = after.open()
    os.close(keeper)
    assert io.stdin is not None
    assert io.stdout is not None
    await io.stdin.write(b" three")
    await io.stdin.close()
    assert await read_all(io.stdout) == b"two three"
    foreign.process.wait()
    (folder / "c-stderr").unlink()
    after.remove()
    assert not folder.exists()


async def test_nothing_hangs_when_a_foreign_shim_dies(roots: Roots) -> None:
    fifos = FifoSet.create(roots.base / "io", "c", stdin=True, terminal=False)
    io = fifos.open()
    foreign = ForeignShim(roots.base / "io", "c", "cat")
    fifos.connected()
    assert io.stdin is not None
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(capture(io, 1000))
        writing = group.create_task(kind_of_write(io))
        await asyncio.sleep(0.05)
        foreign.kill()
    assert reading.result().stdout.data == b""
    assert writing.result() is errors.FailedPrecondition
    fifos.remove()


async def kind_of_write(io: ProcessIO) -> type[Exception] | None:
    assert io.stdin is not None
    try:
        await io.stdin.write(b"x" * 3_000_000)  # more than a fifo ever holds
    except errors.AtollError as error:
        return type(error)
    return None


async def test_nothing_hangs_when_a_foreign_shim_never_comes(roots: Roots) -> None:
    fifos = FifoSet.create(roots.base / "io", "c", stdin=True, terminal=False)
    io = fifos.open()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(capture(io, 1000))
        writing = group.create_task(kind_of_write(io))
        await asyncio.sleep(0.05)
        assert not reading.done()
        assert not writing.done()
        fifos.shim_gone()
    assert reading.result().stdout.data == b""
    assert writing.result() is errors.FailedPrecondition
    fifos.remove()


async def test_bad_fifo_sets_are_refused(roots: Roots) -> None:
    for name in ("", "../x", "a/b", "-x"):
        with pytest.raises(errors.InvalidArgument):
            FifoSet(roots.base, name, stdin=True, terminal=False)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.FailedPrecondition, match="missing-stdout"):
        FifoSet(roots.base, "missing", stdin=True, terminal=False).open()
    assert set(os.listdir("/proc/self/fd")) == before


# The relay


@pytest.fixture
async def relayed(roots: Roots) -> AsyncIterator[Path]:
    """A relay process; the path of its socket."""
    path = roots.state / "relay.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    code = (
        "import socket, sys; from atoll.shim.stdio.relay import RelayConfig, run; "
        "sys.exit(run(RelayConfig(id='p', socket=sys.argv[2]), socket.socket(fileno=int(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(listener.fileno()), str(path)]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    listener.close()
    try:
        yield path
        client = await Client.connect(str(path))
        await call(client, "Shutdown", task_pb2.ShutdownRequest(id="p"), empty_pb2.Empty)
        await client.aclose()
        assert await asyncio.wait_for(ended(process), 10) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


async def call(client: Client, method: str, request: object, kind: type) -> object:
    return await client.call(relay.SERVICE, method, request, kind, timeout=15)  # type: ignore[arg-type]


@pytest.mark.may_block(5)
async def test_relay_keeps_a_foreign_log_whole_while_daemons_come_and_go(roots: Roots, relayed: Path) -> None:
    folder, log = roots.base / "io", roots.base / "logs" / "0.log"
    fifos = FifoSet.create(folder, "c", stdin=True, terminal=False)
    uri = cri_uri(log)
    daemon = await Client.connect(str(relayed))
    create = task_pb2.CreateTaskRequest(id="c", bundle=str(folder), stdin=cri_uri(), stdout=uri, stderr=uri)
    await call(daemon, "Create", create, task_pb2.CreateTaskResponse)
    with pytest.raises(errors.AlreadyExists):
        await call(daemon, "Create", create, task_pb2.CreateTaskResponse)
    foreign = ForeignShim(folder, "c", "sh", "-c", "read x; echo got $x; seq 1 300000; echo err >&2")
    foreign.go()
    output = await open_output(daemon, "c-stdout")
    stdin = await open_input(daemon, "c-stdin")
    await stdin.write(b"word\n")
    assert await anext(output) == b"got word\n"
    await daemon.aclose()

    daemon = await Client.connect(str(relayed))
    info = await daemon.call("atoll.shim.v1.Shim", "Info", own_pb2.InfoRequest(), own_pb2.InfoResponse)
    assert (info.sandbox_id, list(info.container_ids)) == ("p", ["c"])
    log.rename(log.with_suffix(".old"))
    reopen = own_pb2.ReopenLogRequest(container_id="c")
    await daemon.call("atoll.shim.v1.Shim", "ReopenLog", reopen, own_pb2.ReopenLogResponse)
    await ended(foreign.process)
    await call(daemon, "Shutdown", task_pb2.ShutdownRequest(id="p"), empty_pb2.Empty)  # still relays: goes on
    await call(daemon, "Delete", task_pb2.DeleteRequest(id="c"), task_pb2.DeleteResponse)
    await call(daemon, "Delete", task_pb2.DeleteRequest(id="c"), task_pb2.DeleteResponse)
    await daemon.aclose()
    lines = [line.split(b" ", 3) for path in (log.with_suffix(".old"), log) for line in path.read_bytes().splitlines()]
    assert b"".join(line[3] + b"\n" for line in lines if line[1] == b"stdout") == b"got word\n" + NUMBERS
    assert [line[3] for line in lines if line[1] == b"stderr"] == [b"err"]
    fifos.remove()


async def test_relay_refuses_what_it_cannot_relay(roots: Roots, relayed: Path) -> None:
    daemon = await Client.connect(str(relayed))
    for request in (
        task_pb2.CreateTaskRequest(id="../c", bundle=str(roots.base), stdout="cri:"),
        task_pb2.CreateTaskRequest(id="c", bundle="relative", stdout="cri:"),
        task_pb2.CreateTaskRequest(id="c", bundle=str(roots.base), stdout="binary:///bin/true"),
        task_pb2.CreateTaskRequest(id="c", bundle=str(roots.base), stdout="cri:"),
    ):
        with pytest.raises((errors.InvalidArgument, errors.FailedPrecondition)):
            await call(daemon, "Create", request, task_pb2.CreateTaskResponse)
    with pytest.raises(errors.NotFound):
        await call(daemon, "CloseIO", task_pb2.CloseIORequest(id="c"), empty_pb2.Empty)
    await daemon.aclose()
