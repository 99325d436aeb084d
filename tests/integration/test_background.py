"""Background processes by the SDK: kept by the daemon, followed again, killed with their trees."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable

import pytest

import atoll
from atoll import errors
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
BOUND_S = 60.0


@pytest.fixture
async def container(client: atoll.Client) -> AsyncIterator[atoll.Container]:
    async with await client.run_pod(network="none") as pod:
        yield await pod.run(IMAGE, ["sleep", "1000"])


async def test_output_is_kept_and_followed_from_any_byte(container: atoll.Container) -> None:
    script = "echo one; echo oops >&2; until [ -e /go ]; do sleep 0.05; done; echo two; exit 3"
    process = await container.spawn(["sh", "-c", script], name="worker", env={"A": "b"})
    async with asyncio.timeout(BOUND_S):
        chunks = process.follow()
        seen = {}
        while set(seen) != {"stdout", "stderr"}:
            chunk = await anext(chunks)
            seen[chunk.stream] = chunk
        await chunks.aclose()
        assert (seen["stdout"].data, seen["stderr"].data) == (b"one\n", b"oops\n")
        found = await container.processes()
        assert [(one.id, one.running, one.stdout, one.stderr) for one in found] == [("worker", True, (0, 4), (0, 5))]
        await container.files.write("/go", b"")
        again = container.process("worker")
        rest = [chunk async for chunk in again.follow(stdout_from=seen["stdout"].end, stderr_from=2)]
        assert {(one.stream, one.offset, one.data) for one in rest} == {("stdout", 4, b"two\n"), ("stderr", 2, b"ps\n")}
        end = await again.wait()
        assert (end.code, end.cause) == (3, atoll.Cause.EXITED)
        assert await again.output() == (b"one\ntwo\n", b"oops\n")
    with pytest.raises(errors.AlreadyExists, match="worker"):
        await container.spawn(["true"], name="worker")
    await process.forget()
    assert await container.processes() == ()
    with pytest.raises(errors.NotFound, match="worker"):
        await process.status()


async def test_it_is_signalled_and_ends_in_time(container: atoll.Container) -> None:
    async with asyncio.timeout(BOUND_S):
        script = "trap 'echo got; exit 7' TERM; echo up; while :; do sleep 0.05; done"
        process = await container.spawn(["sh", "-c", script])
        assert (await anext(process.follow())).data == b"up\n"
        await process.signal(signal.SIGTERM)
        assert (await process.wait()).code == 7
        late = await container.spawn(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.3)
        end = await late.wait()
        assert (end.code, end.cause) == (137, atoll.Cause.TIMEOUT)
        killed = await container.spawn(["sleep", "1000"])
        await killed.kill()
        assert (await killed.wait()).cause is atoll.Cause.SIGNAL
        assert "sleep 1000" not in (await container.exec(["sh", "-c", "ps | grep -v grep | tail -n +3"])).text
    with pytest.raises(atoll.CommandFailed):
        await container.spawn(["/nothing/there"])


async def test_what_is_too_old_is_given_back_and_said_so(container: atoll.Container) -> None:
    """100 MB are written, and no more than about 72 MB kept; what is left is what was written last."""
    process = await container.spawn(["sh", "-c", "head -c 100000000 /dev/zero; echo; echo 13000000"])
    async with asyncio.timeout(BOUND_S):
        assert (await process.wait()).code == 0
        status = await process.status()
        begin, end = status.stdout
        assert end > 90 << 20
        assert end - begin <= 73 << 20
        first = await anext(process.follow())
        assert first.offset == begin
        tail = [chunk async for chunk in process.follow(stdout_from=end - 9)]
    assert tail[0].data == b"13000000\n"


async def test_a_process_outlives_the_daemon(daemon: Daemon) -> None:
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        pod = await client.run_pod(network="none")
        container = await pod.run(IMAGE, ["sleep", "1000"])
        script = "echo one; until [ -e /go ]; do sleep 0.05; done; echo two; exit 4"
        process = await container.spawn(["sh", "-c", script], name="survivor")
        done = await container.spawn(["sh", "-c", "exit 9"])
        assert (await done.wait(BOUND_S)).code == 9
        assert (await anext(process.follow())).data == b"one\n"
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)
    async with atoll.connect(daemon.roots.socket, start=False) as client, asyncio.timeout(BOUND_S):
        container = await client.container(container.id)
        assert [(one.id, one.running) for one in await container.processes()] == [
            ("survivor", True),
            (done.id, False),
        ]
        await container.files.write("/go", b"")
        process = container.process("survivor")
        assert [one.data async for one in process.follow(stdout_from=4)] == [b"two\n"]
        assert (await process.wait()).code == 4
        assert (await container.process(done.id).wait()).code == 9
        await (await client.pod(pod.id)).remove()


async def test_the_cause_of_an_end_is_told(client: atoll.Client) -> None:
    """Of an exec and of a background process: out of memory, by a signal, by seccomp."""
    async with await client.run_pod(network="none") as pod, asyncio.timeout(BOUND_S):
        container = await pod.run(IMAGE, ["sleep", "1000"], memory="24MiB")
        eat = ["sh", "-c", "a=x; while :; do a=$a$a; done"]
        assert (await container.exec(eat)).cause is atoll.Cause.OOM
        assert (await (await container.spawn(eat)).wait()).cause is atoll.Cause.OOM
        assert (await container.exec(["sh", "-c", "kill -9 $$"])).cause is atoll.Cause.SIGNAL
        assert (await container.exec(["sh", "-c", "kill -SYS $$"])).cause is atoll.Cause.SECCOMP
        result = await container.exec(["sh", "-c", "echo so far; sleep 1000 & sleep 1000"], timeout=0.5)
        assert (result.cause, result.text) == (atoll.Cause.TIMEOUT, "so far\n")


async def test_input_comes_from_whoever_writes_until_it_is_closed(container: atoll.Container, daemon: Daemon) -> None:
    async with asyncio.timeout(BOUND_S):
        process = await container.spawn(["sh", "-c", "read a; echo got $a; wc -c; exit 5"], name="reader", stdin=True)
        await process.write(b"first\n")
        async with atoll.connect(daemon.roots.socket, start=False) as other:
            again = (await other.container(container.id)).process("reader")
            chunks = again.follow()
            assert (await anext(chunks)).data == b"got first\n"
            await chunks.aclose()
            await again.write(b"x" * 1_000_000)
            await again.close_stdin()
        assert ((await process.wait()).code, (await process.output())[0]) == (5, b"got first\n1000000\n")
        await process.close_stdin()
        with pytest.raises(errors.FailedPrecondition, match="reader: has ended"):
            await process.write(b"late")
        deaf = await container.spawn(["sleep", "1000"], name="deaf")
        with pytest.raises(errors.FailedPrecondition, match="without stdin"):
            await deaf.write(b"x")
        full = await container.spawn(["sh", "-c", "sleep 1000"], name="full", stdin=True)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(_ended(full.write(b"x" * 2_000_000)))
            while not writing.done():
                await full.kill()
                await asyncio.wait({writing}, timeout=0.1)


async def _ended(work: Awaitable[None]) -> None:
    """Whatever a write into what is killed meanwhile comes to, it comes to an end."""
    with contextlib.suppress(errors.FailedPrecondition):
        await work


async def test_a_terminal_has_input_a_size_and_one_stream(container: atoll.Container) -> None:
    async with asyncio.timeout(BOUND_S):
        script = "stty size; read a; stty size; tty; read b; exit 6"
        shell = await container.spawn(["sh", "-c", script], stdin=True, tty=True, size=(91, 17))
        chunks = shell.follow()
        text = ""
        while "17 91" not in text:
            text += (await anext(chunks)).text
        await shell.resize(55, 22)
        await shell.write(b"\n")
        while "/dev/pts/" not in text:
            text += (await anext(chunks)).text
        assert "22 55" in text
        await chunks.aclose()
        await shell.write(b"\n")
        assert (await shell.wait()).code == 6
        status = await shell.status()
        assert (status.stdin, status.tty, status.stderr) == (True, True, (0, 0))
        plain = await container.spawn(["sleep", "1000"])
        with pytest.raises(errors.FailedPrecondition, match="no terminal"):
            await plain.resize(1, 1)
