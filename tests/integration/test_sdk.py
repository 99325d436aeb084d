"""The SDK against a real daemon: pods, execs, logs, limits, and a daemon that dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

import atoll
from atoll import errors
from atoll.api import atoll_v1_pb2 as pb
from atoll.concurrency import wait_all
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon(
    config='[runtimes.atoll]\n[runtimes.runc]\noci_runtime = "runc"\n[runtimes.crun]\noci_runtime = "crun"\n'
)

IMAGE = "atoll/busybox"


async def test_two_containers_share_the_pods_localhost_and_a_port_is_published(client: atoll.Client) -> None:
    async with await client.run_pod("web", ports={18081: 80}) as pod:
        await pod.run(IMAGE, ["httpd", "-f", "-h", "/etc"], name="server", cpus=0.5, memory="64MiB")
        fetch = "until wget -qO- http://127.0.0.1/hostname; do sleep 0.05; done 2>/dev/null"
        side = await pod.run(IMAGE, ["sh", "-c", fetch], name="client")
        assert (await side.wait(timeout=20)).code == 0
        assert [line.text async for line in side.logs()] == ["web"]
        status = await pod.status()
        assert status.ip
        reader, writer = await asyncio.open_connection("127.0.0.1", 18081)
        writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"web\n")
        writer.close()
        await writer.wait_closed()
        assert {one.operation for one in await pod.phases()} >= {"run", "create", "start"}


async def test_exec_has_streams_stdin_env_folder_user_and_code(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    script = 'echo "$A $(pwd) $(id -u)"; echo oops >&2; cat; exit 3'
    result = await container.exec(["sh", "-c", script], env={"A": "b"}, cwd="/tmp", user="65534", stdin=b"in")
    assert (result.exit_code, result.cause) == (3, atoll.Cause.EXITED)
    assert (result.text, result.error_text) == ("b /tmp 65534\nin", "oops\n")


async def test_a_megabyte_goes_through_an_exec_unchanged(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    data = bytes(range(256)) * 8192
    assert (await container.exec(["cat"], stdin=data, timeout=30)).stdout == data


async def test_exec_past_its_time_is_killed_and_keeps_its_output(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    result = await container.exec(["sh", "-c", "echo so far; exec sleep 1000"], timeout=0.5)
    assert (result.exit_code, result.cause, result.text) == (137, atoll.Cause.TIMEOUT, "so far\n")
    for call in (container.exec, container.spawn):
        with pytest.raises(errors.InvalidArgument, match="timeout inf"):
            await call(["true"], timeout=float("inf"))


@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_what_an_exec_has_left_behind_is_killed_with_it(client: atoll.Client, runtime: str) -> None:
    async with await client.run_pod(network="none", runtime=runtime) as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        script = "(sleep 4713 &); setsid sleep 4713 & echo up; sleep 100"
        result = await container.exec(["sh", "-c", script], timeout=1)
        assert (result.cause, result.text) == (atoll.Cause.TIMEOUT, "up\n")
        async with asyncio.timeout(10):
            while "sleep 4713" in (await container.exec(["ps"])).text:
                pass


async def test_exec_that_is_let_go_of_ends(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    async with container.exec_stream(["sleep", "4711"]) as process:
        await process.started()
        assert "sleep 4711" in (await container.exec(["ps"])).text
    async with asyncio.timeout(10):
        while "sleep 4711" in (await container.exec(["ps"])).text:
            pass


@contextlib.asynccontextmanager
async def exec_call(daemon: Daemon) -> AsyncIterator[grpc.aio.StreamStreamCall[pb.ExecRequest, pb.ExecResponse]]:
    """The call itself, for what the SDK never does."""
    async with grpc.aio.insecure_channel(f"unix:{daemon.roots.socket}") as channel:
        execute = channel.stream_stream(
            "/atoll.v1.Runtime/Exec",
            request_serializer=pb.ExecRequest.SerializeToString,
            response_deserializer=pb.ExecResponse.FromString,
        )
        yield execute()


async def test_exec_that_closed_its_stdin_still_gets_signals(daemon: Daemon, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    command = ["sh", "-c", "exec 0<&-; exec sleep 1000"]
    async with asyncio.timeout(20), exec_call(daemon) as call:
        await call.write(pb.ExecRequest(start=pb.ExecStart(container_id=container.id, command=command, stdin=True)))
        assert (await call.read()).started.pid  # pyright: ignore[reportAttributeAccessIssue]  the end of the stream fails the test
        for _ in range(64):
            await call.write(pb.ExecRequest(stdin=b"x" * 65536))
        await call.write(pb.ExecRequest(close_stdin=True))
        await call.write(pb.ExecRequest(signal=9))
        assert (await call.read()).exit.code == 137  # pyright: ignore[reportAttributeAccessIssue]  the end of the stream fails the test


async def test_exec_input_without_stdin_is_told_to_the_client(daemon: Daemon, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    async with asyncio.timeout(20), exec_call(daemon) as call:
        await call.write(pb.ExecRequest(start=pb.ExecStart(container_id=container.id, command=["sleep", "4712"])))
        assert (await call.read()).started.pid  # pyright: ignore[reportAttributeAccessIssue]  the end of the stream fails the test
        await call.write(pb.ExecRequest(stdin=b"x"))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "sleep 4712" not in (await container.exec(["ps"])).text


async def test_exec_whose_client_reads_no_more_and_leaves_is_ended(daemon: Daemon, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sleep", "1000"])
    async with exec_call(daemon) as call:
        await call.write(pb.ExecRequest(start=pb.ExecStart(container_id=container.id, command=["yes", "4711"])))
        assert (await call.read()).started.pid  # pyright: ignore[reportAttributeAccessIssue]  the end of the stream fails the test
        assert (await call.read()).stdout  # pyright: ignore[reportAttributeAccessIssue]  the end of the stream fails the test
        await asyncio.sleep(2)  # until every queue on the way is full
        assert "yes 4711" in (await container.exec(["ps"])).text
        call.cancel()
    async with asyncio.timeout(10):
        while "yes 4711" in (await container.exec(["ps"])).text:
            pass


@pytest.mark.parametrize(("command", "code"), [("nope", 127), ("/etc/passwd", 126)])
async def test_command_that_cannot_be_executed_leaves_nothing(pod: atoll.Pod, command: str, code: int) -> None:
    with pytest.raises(atoll.CommandFailed) as failure:
        await pod.run(IMAGE, [command])
    assert failure.value.exit_code == code
    assert await pod.containers() == ()
    container = await pod.run(IMAGE, ["sleep", "1000"])
    with pytest.raises(atoll.CommandFailed) as failure:
        await container.exec([command])
    assert failure.value.exit_code == code


async def test_logs_have_both_streams_whole_and_follow_to_the_end(pod: atoll.Pod) -> None:
    script = "for n in 1 2 3; do echo out$n; echo err$n >&2; sleep 0.1; done; printf end"
    container = await pod.run(IMAGE, ["sh", "-c", script])
    lines = [line async for line in container.logs(follow=True)]
    assert [line.text for line in lines if line.stream == "stdout"] == ["out1", "out2", "out3", "end"]
    assert [line.text for line in lines if line.stream == "stderr"] == ["err1", "err2", "err3"]
    assert [line.partial for line in lines if line.text == "end"] == [True]
    assert [line.text async for line in container.logs(tail=1)] == ["end"]


async def test_memory_limit_kills_and_tells(pod: atoll.Pod) -> None:
    hog = await pod.run(IMAGE, ["sh", "-c", "exec tail /dev/zero"], memory="16MiB")
    ended = await hog.wait(timeout=30)
    assert (ended.code, ended.cause) == (137, atoll.Cause.OOM)


async def test_stop_is_polite_and_idempotent(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sh", "-c", "trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done"])
    await container.exec(["true"])
    await container.stop(timeout=10)
    await container.stop(timeout=10)
    assert (await container.wait()).code == 7
    assert [line.text async for line in container.logs()] == ["bye"]


async def test_a_restart_is_the_same_container_with_its_files_and_log(client: atoll.Client, pod: atoll.Pod) -> None:
    script = "echo up $(cat /kept 2>/dev/null); trap 'exit 7' TERM; while :; do sleep 0.05; done"
    container = await pod.run(IMAGE, ["sh", "-c", script], name="server", memory="64MiB")
    await container.files.write("/kept", "kept")
    await container.update(memory="48MiB")
    side = await container.spawn(["sleep", "1000"], name="side")
    first = await container.status()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(container.wait())
        await container.exec(["true"])
        await container.restart(timeout=20)
    assert waiting.result().code == 7
    again = await container.status()
    assert (again.id, again.state, again.created_at) == (first.id, atoll.ContainerState.RUNNING, first.created_at)
    assert first.started_at is not None
    assert again.started_at is not None
    assert again.started_at > first.started_at
    assert (await side.wait(timeout=20)).cause is atoll.Cause.SIGNAL
    [usage] = (await client.stats([pod.id]))[0].containers
    assert usage.memory_limit_bytes == 48 << 20
    assert (await container.exec(["cat", "/kept"])).text == "kept"
    while [line.text async for line in container.logs()] != ["up", "up kept"]:
        pass
    await container.kill(signal.SIGKILL)
    assert (await container.wait(timeout=20)).code == 137
    await wait_all([container.restart() for _ in range(3)])  # one that has ended is started, once
    while (texts := [line.text async for line in container.logs()]) != ["up", "up kept", "up kept"]:
        assert len(texts) < 3


async def test_a_restart_that_cannot_start_is_told_and_tried_again(pod: atoll.Pod) -> None:
    container = await pod.create(atoll.ContainerOptions(image=IMAGE, command=["/program"]))
    with pytest.raises(atoll.CommandFailed):
        await container.restart()
    await container.files.write("/program", "#!/bin/sh\nexec sleep 1000\n", mode=0o755)
    await container.restart()
    assert (await container.exec(["true"])).ok
    await pod.stop()
    with pytest.raises(errors.FailedPrecondition):
        await container.restart()


async def test_one_name_is_one_pod(client: atoll.Client) -> None:
    async with await client.run_pod("web", network="none"):
        with pytest.raises(errors.AlreadyExists, match="web"):
            await client.run_pod("web", network="none")


async def test_unknown_image_and_runtime_are_told_and_leave_nothing(client: atoll.Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="runtime handler 'nope'"):
        await client.run_pod(network="none", runtime="nope")
    async with await client.run_pod(network="none") as pod:
        with pytest.raises(errors.AtollError, match=r"127\.0\.0\.1:1"):
            await pod.run("127.0.0.1:1/no/such:image")
        assert await pod.containers() == ()


async def test_daemon_killed_in_the_middle_breaks_every_call_and_no_container(
    client: atoll.Client, daemon: Daemon
) -> None:
    pod = await client.run_pod(network="none")
    container = await pod.run(IMAGE, ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done"])
    process = container.exec_stream(["sleep", "1000"])
    await process.started()

    async def follow() -> None:
        async for _ in container.logs(follow=True):
            pass

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for work in (container.wait(), follow(), process.wait()):
            group.create_task(unavailable(work))
        await asyncio.to_thread(daemon.kill)
    await process.aclose()
    await unavailable(container.status())
    await asyncio.to_thread(daemon.start)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(errors.Unavailable):
                assert (await container.exec(["echo", "back"])).text == "back\n"
                break
            await asyncio.sleep(0.05)
    await container.stop(timeout=0)
    numbers = [int(line.text) async for line in container.logs()]
    assert numbers == list(range(1, len(numbers) + 1))
    await pod.remove()


async def unavailable(work: object) -> None:
    with pytest.raises(errors.Unavailable):
        await work  # pyright: ignore[reportGeneralTypeIssues]  # any awaitable
