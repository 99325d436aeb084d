"""A process's stdio on real pipes, terminals, fifos and files."""

from __future__ import annotations

import array
import asyncio
import fcntl
import hashlib
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from atoll import errors
from atoll.shim.stdio import Stdio, StdioRequest, Streams, cri_uri
from atoll.shim.stdio.console import set_window_size
from atoll.shim.stdio.hub import Hub, HubClient
from atoll.shim.stdio.readiness import readable
from atoll.shim.stdio.stdin import AttachedInput
from tests.integration.conftest import Roots


class Case:
    """The streams of one shim, and the processes that were given some."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.streams = Streams()
        self.log = folder / "logs" / "0.log"
        self._open: list[Stdio] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    async def open(
        self, *, stdin: str = "", stdout: str = "", stderr: str = "", terminal: bool = False, namespace: str = ""
    ) -> Stdio:
        request = StdioRequest(
            id="c", stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal, namespace=namespace
        )
        stdio = await Stdio.open(request, self.streams)
        self._open.append(stdio)
        return stdio

    async def open_logged(self) -> Stdio:
        uri = cri_uri(self.log)
        return await self.open(stdin=cri_uri(), stdout=uri, stderr=uri)

    async def run(self, stdio: Stdio, *command: str) -> subprocess.Popen[bytes]:
        stdin, stdout, stderr = stdio.child_fds()
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)
        self._processes.append(process)
        await stdio.started()
        return process

    async def sh(self, stdio: Stdio, script: str) -> subprocess.Popen[bytes]:
        return await self.run(stdio, "sh", "-c", script)

    def attach(self, name: str) -> HubClient:
        hub = self.streams.find(name)
        assert isinstance(hub, Hub)
        return hub.attach()

    def stdin(self) -> AttachedInput:
        stdin = self.streams.find("c-stdin")
        assert isinstance(stdin, AttachedInput)
        return stdin

    def contents(self, *, path: Path | None = None, stream: bytes = b"stdout") -> bytes:
        """What the log says a stream wrote."""
        lines = [line.split(b" ", 3) for line in (path or self.log).read_bytes().split(b"\n")[:-1]]
        return b"".join(line[3] + (b"\n" if line[2] == b"F" else b"") for line in lines if line[1] == stream)

    async def close(self) -> None:
        for stdio in self._open:
            await stdio.close()
        for process in self._processes:
            process.kill()
            process.wait()
        assert len(self.streams) == 0


@pytest.fixture
async def case(roots: Roots) -> AsyncIterator[Case]:
    case = Case(roots.base)
    yield case
    await case.close()


async def ended(process: subprocess.Popen[bytes]) -> int:
    exited = os.pidfd_open(process.pid)
    try:
        await readable(exited)
    finally:
        os.close(exited)
    return process.wait()


async def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def read_all(client: HubClient) -> bytes:
    parts: list[bytes] = []
    while chunk := await client.read(1 << 20):
        parts.append(chunk)
    return b"".join(parts)


async def test_both_streams_reach_the_log(case: Case) -> None:
    stdio = await case.open_logged()
    process = await case.sh(stdio, "echo out; echo err >&2; printf 'dos\\r\\n\\nend'")
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    assert case.contents() == b"out\ndos\r\n\nend"
    assert case.contents(stream=b"stderr") == b"err\n"
    assert case.log.stat().st_mode & 0o777 == 0o640


@pytest.mark.may_block(5)
async def test_any_bytes_survive(case: Case) -> None:
    noise = case.folder / "noise"
    noise.write_bytes(os.urandom(5 << 20) + b"no newline at the end")
    stdio = await case.open_logged()
    client = case.attach("c-stdout")
    process = await case.run(stdio, "cat", str(noise))
    live = await read_all(client)
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    assert live == noise.read_bytes()
    assert case.contents() == noise.read_bytes()


async def test_clients_attach_write_and_leave_while_the_container_lives(case: Case) -> None:
    stdio = await case.open_logged()
    first, second = case.attach("c-stdout"), case.attach("c-stdout")
    process = await case.run(stdio, "cat")
    stdin = case.stdin()
    await stdin.write(b"one\n")
    assert await first.read(100) == b"one\n"
    assert await second.read(100) == b"one\n"
    first.detach()
    await stdin.write(b"two\n")
    assert await second.read(100) == b"two\n"
    stdio.close_stdin()
    stdio.close_stdin()
    assert await ended(process) == 0
    assert await read_all(second) == b""
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        await stdin.write(b"three\n")
    assert case.contents() == b"one\ntwo\n"


@pytest.mark.may_block(5)
async def test_a_client_that_does_not_read_slows_nobody(case: Case) -> None:
    stdio = await case.open_logged()
    slow = case.attach("c-stdout")
    process = await case.sh(stdio, "head -c 8000000 /dev/zero | tr '\\0' 'x'; echo; echo done")
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    assert case.contents() == b"x" * 8_000_000 + b"\ndone\n"
    with pytest.raises(errors.ResourceExhausted, match="not read"):
        await slow.read(1)


@pytest.mark.may_block(5)
async def test_rotation_loses_and_doubles_nothing(case: Case) -> None:
    stdio = await case.open_logged()
    process = await case.run(stdio, "seq", "1", "600000")
    rotated: list[Path] = []
    while process.poll() is None:
        await asyncio.sleep(0.01)
        rotated.append(case.log.with_suffix(f".{len(rotated)}"))
        case.log.rename(rotated[-1])
        stdio.reopen()
    assert await stdio.drain(5)
    await stdio.close()
    written = b"".join(case.contents(path=path) for path in [*rotated, case.log])
    assert len(rotated) > 1
    assert written == b"".join(b"%d\n" % number for number in range(1, 600001))


async def test_a_full_disk_costs_lines_and_not_the_container(case: Case) -> None:
    case.log.parent.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(case.log.parent)], check=True)
    try:
        stdio = await case.open_logged()
        ballast = case.log.with_name("ballast")
        ballast.write_bytes(b"x" * 60_000)
        process = await case.sh(stdio, "seq 1 100000; read go; echo after")
        (log,) = stdio.logs
        await until(lambda: log.dropped_bytes > 0)
        await asyncio.sleep(0.1)
        assert case.log.read_bytes().endswith(b"\n")
        ballast.unlink()
        stdin = case.stdin()
        await stdin.write(b"go\n")
        assert await ended(process) == 0
        assert await stdio.drain(5)
        await stdio.close()
        assert case.contents().endswith(b"\nafter\n")
        assert case.contents().startswith(b"1\n2\n3\n")
        kept, lost = 0, 0
        for line in case.log.read_bytes().splitlines():
            _, stream, tag, content = line.split(b" ", 3)
            assert tag == b"F"
            mark = re.fullmatch(rb"atoll: (\d+) lines were lost: no space left on device", content)
            assert bool(mark) == (stream == b"stderr")
            kept += content.isdigit()
            lost += int(mark[1]) if mark else 0
        assert lost > 0
        assert kept + lost == 100_000
    finally:
        await case.close()
        subprocess.run(["umount", str(case.log.parent)], check=True)


async def test_a_grandchild_that_holds_the_pipe_blocks_nothing_and_is_still_logged(case: Case) -> None:
    stdio = await case.open_logged()
    process = await case.sh(stdio, "(sleep 1; echo late) & seq 1 20000")
    assert await ended(process) == 0
    before = time.monotonic()
    assert not await stdio.drain(0.2)
    assert time.monotonic() - before < 0.7
    assert case.contents().endswith(b"\n20000\n")
    await until(lambda: case.contents().endswith(b"late\n"))
    await stdio.close()


async def test_drain_without_time_still_passes_on_what_is_in_the_pipe(case: Case) -> None:
    stdio = await case.open_logged()
    process = await case.sh(stdio, "sleep 30 & printf 'last words'; echo $! >&2")
    process.wait()  # the loop has not run since
    assert not await stdio.drain(0)
    await stdio.close()
    os.kill(int(case.contents(stream=b"stderr")), 9)
    assert case.contents() == b"last words"


async def test_a_chatty_container_leaves_time_for_a_quiet_one(case: Case) -> None:
    loud = await case.open_logged()
    process = await case.run(loud, "yes", "x" * 200)
    quiet_log = case.folder / "quiet.log"
    quiet = await Stdio.open(StdioRequest(id="q", stdout=cri_uri(quiet_log)), case.streams)
    await asyncio.sleep(0.2)
    before = time.monotonic()
    other = await case.run(quiet, "echo", "hello")
    await until(lambda: bool(quiet_log.read_bytes()))
    assert time.monotonic() - before < 0.5
    process.kill()
    await ended(other)
    await quiet.close()
    await loud.close()


async def test_null_streams_read_nothing_and_keep_nothing(case: Case) -> None:
    stdio = await case.open()
    process = await case.sh(stdio, "cat && echo out && echo err >&2")
    assert await ended(process) == 0
    assert await stdio.drain(1)
    await stdio.close()


async def test_file_target_appends_both_streams(case: Case) -> None:
    path = case.folder / "new" / "out.txt"
    for _ in range(2):
        stdio = await case.open(stdout=f"file://{path}", stderr=f"file://{path}")
        process = await case.sh(stdio, "echo out; echo err >&2")
        await ended(process)
        assert await stdio.drain(5)
        await stdio.close()
    assert sorted(path.read_text().split()) == ["err", "err", "out", "out"]
    assert path.stat().st_mode & 0o777 == 0o644


async def test_what_fails_to_open_leaves_nothing(case: Case) -> None:
    kept = await case.open_logged()
    before = set(os.listdir("/proc/self/fd"))
    (case.folder / "plain").write_bytes(b"")
    other = cri_uri(case.folder / "other.log")
    requests = [
        StdioRequest(id="c", stdin="/nowhere", stdout=other),
        StdioRequest(id="c", stdin=str(case.folder / "plain")),
        StdioRequest(id="c", stdout=f"file://{case.folder}/x", stderr="/nowhere"),
        StdioRequest(id="c", stdout=f"file://{case.folder}/plain/x"),
        StdioRequest(id="d", stdout=other, stderr="cri:?streaming_id=c-stdout"),
        StdioRequest(id="c", stdout="binary:///nowhere"),
        StdioRequest(id="c", stdout="binary:///bin/true", terminal=True),
        StdioRequest(id="c", stdout=other, stderr="gopher://x"),
        StdioRequest(id="c", stdin=f"file://{case.folder}/plain"),
        StdioRequest(id="c", stdin="cri:", stdout="cri:", stderr="cri:"),
    ]
    for request in requests:
        with pytest.raises(errors.AtollError):
            await Stdio.open(request, case.streams)
    assert set(os.listdir("/proc/self/fd")) == before
    await kept.abort()
    await kept.abort()
    assert len(case.streams) == 0


async def test_thousands_of_short_streams_leave_no_descriptor(case: Case) -> None:
    async def one(number: int) -> None:
        stdio = await case.open_logged() if number % 3 else await case.open(stdout=cri_uri(case.log), terminal=True)
        if number % 5 == 0:
            await stdio.abort()
            return
        if not number % 3:
            serve_terminal(stdio, b"%d\r\n" % number)
        else:
            os.write(stdio.child_fds()[1], b"%d\n" % number)
        await stdio.started()
        await stdio.drain(5)
        await stdio.close()

    await one(1)
    before = set(os.listdir("/proc/self/fd"))
    for number in range(2, 3000):
        await one(number)
    assert set(os.listdir("/proc/self/fd")) == before
    assert case.contents().split() == [b"%d" % number for number in range(1, 3000) if number % 5]


# Terminals


def serve_terminal(stdio: Stdio, output: bytes) -> None:
    """Deliver a terminal as a runtime does; `output` was written in it and nobody holds it any more."""
    master, slave = pty.openpty()
    send_master(stdio, master)
    os.write(slave, output)
    os.close(slave)


def send_master(stdio: Stdio, *fds: int) -> None:
    assert stdio.console_socket is not None
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(stdio.console_socket))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        connection.sendmsg([b"/dev/ptmx"], rights)
    for fd in fds:
        os.close(fd)


async def test_terminal_carries_output_input_and_size(case: Case) -> None:
    stdio = await case.open(stdin=cri_uri(), stdout=cri_uri(case.log), terminal=True)
    client = case.attach("c-stdout")
    master, slave = pty.openpty()
    send_master(stdio, master)
    await stdio.started()
    assert stdio.console_socket is None
    stdio.resize(0, 0)
    stdio.resize(120, 40)
    script = "stty size; read line; echo got $line; stty size"
    process = subprocess.Popen(["setsid", "-c", "sh", "-c", script], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert await client.read(100) == b"40 120\r\n"
    stdio.resize(80, 24)
    stdin = case.stdin()
    await stdin.write(b"words\n")
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    assert await read_all(client) == b"words\r\ngot words\r\n24 80\r\n"
    assert case.contents() == b"40 120\nwords\ngot words\n24 80\n"


@pytest.mark.may_block(5)
async def test_terminal_output_is_whole(case: Case) -> None:
    stdio = await case.open(stdout=cri_uri(case.log), terminal=True)
    master, slave = pty.openpty()
    send_master(stdio, master)
    await stdio.started()
    process = subprocess.Popen(["seq", "1", "100000"], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    assert (
        hashlib.sha256(case.contents()).digest()
        == hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 100001))).digest()
    )


async def test_wrong_descriptors_in_place_of_a_terminal_are_refused(case: Case) -> None:
    for count in (0, 1, 2):
        stdio = await case.open(stdout=cri_uri(case.log), terminal=True)
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        send_master(stdio, *fds)
        with pytest.raises(errors.Internal, match=f"{count} descriptors"):
            await stdio.started()
        await stdio.abort()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
async def test_terminal_of_a_real_runtime(case: Case, roots: Roots, runtime: str) -> None:
    bundle = case.folder / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    (bundle / "rootfs/bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (bundle / "rootfs/bin/sh").chmod(0o755)
    subprocess.run([runtime, "spec"], cwd=bundle, check=True)
    config = bundle / "config.json"
    spec = config.read_text().replace('"sh"', '"sh", "-c", "read line; echo $line; exit 7"', 1)
    config.write_text(spec)
    stdio = await case.open(stdin=cri_uri(), stdout=cri_uri(case.log), terminal=True)
    base = [runtime, "--root", str(case.folder / "state")]
    create = [*base, "create", "--bundle", str(bundle), "--console-socket", str(stdio.console_socket), roots.prefix]
    creating = subprocess.Popen(create, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert await ended(creating) == 0
        await stdio.started()
        stdio.resize(100, 30)
        subprocess.run([*base, "start", roots.prefix], check=True)
        stdin = case.stdin()
        await stdin.write(b"hello\n")
        assert await stdio.drain(10)
        assert case.contents() == b"hello\nhello\n"
    finally:
        subprocess.run([*base, "delete", "--force", roots.prefix], check=False)
        await stdio.close()


# Fifos as a stock client makes them


async def test_fifos_outlive_their_client(case: Case) -> None:
    for name in ("in", "out"):
        os.mkfifo(case.folder / name)
    path_in, path_out = str(case.folder / "in"), str(case.folder / "out")
    stdio = await case.open(stdin=path_in, stdout=path_out, stderr=path_out)
    process = await case.sh(stdio, "cat; echo err >&2")
    received = b""
    for number in range(3):  # the client comes, writes, reads a part and is killed
        client = (
            "import os, sys\n"
            f"w = os.open({path_in!r}, os.O_WRONLY); os.write(w, b'{number}' * 1000)\n"
            f"r = os.open({path_out!r}, os.O_RDONLY); sys.stdout.buffer.write(os.read(r, 400))"
        )
        running = subprocess.Popen([sys.executable, "-c", client], stdout=subprocess.PIPE)
        await ended(running)
        assert running.stdout is not None
        received += running.stdout.read()
        running.stdout.close()
    reader = os.open(path_out, os.O_RDONLY | os.O_NONBLOCK)
    assert process.poll() is None
    stdio.close_stdin()
    assert await ended(process) == 0
    assert await stdio.drain(5)
    await stdio.close()
    received += os.read(reader, 65536)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert received == b"0" * 1000 + b"1" * 1000 + b"2" * 1000 + b"err\n"


async def test_a_full_fifo_holds_the_container_back_and_loses_nothing(case: Case) -> None:
    os.mkfifo(case.folder / "out")
    stdio = await case.open(stdout=str(case.folder / "out"))
    process = await case.run(stdio, "seq", "1", "500000")
    await asyncio.sleep(0.2)
    assert process.poll() is None
    reader = await asyncio.create_subprocess_exec("cat", str(case.folder / "out"), stdout=subprocess.PIPE)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(reader.communicate())
        assert await ended(process) == 0
        assert await stdio.drain(5)
        await stdio.close()
    assert reading.result()[0] == b"".join(b"%d\n" % number for number in range(1, 500001))


# Log programs

LOGGER = """
import os, signal, sys, time
folder, mode = sys.argv[2], sys.argv[4]
if mode == "silent":
    sys.exit()
if mode == "v2":
    os.write(5, b"!")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.close(5)
    time.sleep(60)
os.close(5)
if mode == "dies":
    sys.exit()
for fd, name in ((3, "stdout"), (4, "stderr")):
    with open(fd, "rb") as source, open(f"{folder}/{name}", "wb") as target:
        while chunk := source.read1(65536):
            target.write(chunk)
with open(f"{folder}/env", "w") as target:
    target.write(os.environ["CONTAINER_ID"] + " " + os.environ["CONTAINER_NAMESPACE"])
"""


@pytest.fixture
def logger(case: Case) -> str:
    program = case.folder / "logger"
    program.write_text(f"#!{sys.executable} -I\n{LOGGER}")
    program.chmod(0o755)
    return f"{program}?folder={case.folder}&mode="


@pytest.mark.parametrize(("scheme", "mode"), [("binary", "v1"), ("binary-v2", "v2")])
async def test_log_program_gets_both_streams(case: Case, logger: str, scheme: str, mode: str) -> None:
    uri = f"{scheme}://{logger}{mode}"
    stdio = await case.open(stdout=uri, stderr=uri, namespace="k8s.io")
    process = await case.sh(stdio, "seq 1 50000; echo err >&2")
    assert await ended(process) == 0
    assert await stdio.drain(10)
    await stdio.close()
    assert (case.folder / "stdout").read_text().split() == [str(number) for number in range(1, 50001)]
    assert (case.folder / "stderr").read_text() == "err\n"
    assert (case.folder / "env").read_text() == "c k8s.io"


async def test_log_program_that_ends_before_it_is_ready_fails_the_create(case: Case, logger: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match="ended before it was ready"):
        await case.open(stdout=f"binary-v2://{logger}silent")


async def test_log_program_that_dies_does_not_block_the_container(case: Case, logger: str) -> None:
    stdio = await case.open(stdout=f"binary://{logger}dies")
    process = await case.run(stdio, "seq", "1", "200000")
    assert await ended(process) == 0
    await stdio.close()


@pytest.mark.slow
async def test_log_program_that_ignores_its_end_is_killed(case: Case, logger: str) -> None:
    stdio = await case.open(stdout=f"binary://{logger}stubborn")
    process = await case.run(stdio, "echo", "hello")
    assert await ended(process) == 0
    assert not await stdio.drain(0.1)
    before = time.monotonic()
    await stdio.close()
    assert 11 < time.monotonic() - before < 15


def test_terminal_size_is_what_the_kernel_reports() -> None:
    master, slave = pty.openpty()
    set_window_size(master, 132, 43)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, b"\0" * 8))[:2] == (43, 132)
    os.close(slave)
    os.close(master)
