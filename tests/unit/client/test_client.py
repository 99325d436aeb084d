"""The SDK against a fake daemon on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest

import atoll
import atoll.client
from atoll import errors
from atoll.client.container import command_error
from atoll.testing.fake_daemon import FakeDaemon

IMAGE = "atoll/busybox"


async def test_pod_with_a_container_from_start_to_end(client: atoll.Client, daemon: FakeDaemon) -> None:
    async with await client.run_pod("web", ports={8080: 80}, labels={"a": "b"}) as pod:
        container = await pod.run(IMAGE, ["echo", "hello", "there"], name="main", cpus=0.5, memory="64MiB")
        ended = await container.wait()
        assert (ended.code, ended.cause, ended.signal) == (0, atoll.Cause.EXITED, None)
        assert [line.text async for line in container.logs()] == ["hello there"]
        status, inside = await pod.details()
        assert (status.name, status.state, status.ip, dict(status.labels)) == ("web", "ready", "10.0.0.2", {"a": "b"})
        assert [(one.name, one.state, one.image) for one in inside] == [("main", "exited", IMAGE)]
    assert not daemon.pods
    assert not daemon.containers


async def test_exec_keeps_the_streams_apart(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        out = await container.exec(["echo", "a"])
        err = await container.exec(["complain", "b"])
        assert (out.exit_code, out.stdout, out.stderr, out.ok) == (0, b"a\n", b"", True)
        assert (err.exit_code, err.text, err.error_text, err.ok) == (1, "", "b\n", False)


async def test_exec_is_given_stdin_env_and_a_time_limit(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        data = bytes(range(256)) * 4096
        assert (await container.exec(["cat"], stdin=data)).stdout == data
        assert (await container.exec(["env"], env={"A": "1=2"})).text == "A=1=2\n"
        late = await container.exec(["sleep", "1000"], timeout=0.01)
        assert (late.exit_code, late.cause) == (137, atoll.Cause.TIMEOUT)
        with pytest.raises(errors.InvalidArgument, match="timeout"):
            await container.exec(["cat"], timeout=0)


async def test_exec_of_a_command_that_is_not_there_says_so(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        with pytest.raises(atoll.CommandFailed, match="nope") as failure:
            await container.exec(["nope"])
        assert failure.value.exit_code == 127


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("user 'nope': the image has no such user", 126),
        ("group 'nope': the image has no such group", 126),
        ("working folder '/nope': cannot be entered in container web", 127),
    ],
)
def test_what_an_exec_cannot_begin_with_has_a_shells_exit_code(message: str, code: int) -> None:
    told = command_error(errors.InvalidArgument(message))
    assert isinstance(told, atoll.CommandFailed)
    assert (told.exit_code, told.message) == (code, message)


async def test_container_that_does_not_start_leaves_nothing(client: atoll.Client, daemon: FakeDaemon) -> None:
    async with await client.run_pod() as pod:
        with pytest.raises(atoll.CommandFailed, match="nope"):
            await pod.run(IMAGE, ["nope"])
        assert not daemon.containers


async def test_a_client_that_is_closed_says_so_to_the_calls_under_way(daemon: FakeDaemon) -> None:
    async def refused(call: Awaitable[object]) -> None:
        with pytest.raises(errors.Unavailable, match="closed"):
            await call

    async with (
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
        atoll.connect(daemon.socket, start=False) as other,
    ):
        pod = await other.run_pod()
        container = await pod.run(IMAGE, ["sleep", "1000"])
        process = container.exec_stream(["sleep", "1000"])
        await process.started()
        group.create_task(refused(container.wait()))
        group.create_task(refused(process.wait()))
        await asyncio.sleep(0)


async def test_stream_is_a_conversation(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        async with container.exec_stream(["cat"], stdin=True, tty=True, size=(80, 24)) as process:
            assert await process.started() > 0
            await process.write(b"one")
            assert await process.stdout.read() == b"one"
            await process.resize(132, 40)
            assert await process.stdout.read() == b"132x40\n"
            await process.signal(15)
            ended = await process.wait()
            assert (ended.code, ended.cause) == (143, atoll.Cause.SIGNAL)
            assert ended.signal is not None
            assert ended.signal.name == "SIGTERM"
            assert await process.stdout.read() == b""


async def test_missing_image_is_pulled_once_and_an_unknown_one_is_told(
    client: atoll.Client, daemon: FakeDaemon
) -> None:
    async with await client.run_pod() as pod:
        await pod.run("web:1", ["echo"])
        await pod.run("web:1", ["echo"])
        assert daemon.calls.count("Pull") == 1
        with pytest.raises(errors.NotFound, match="no such image"):
            await pod.run("web:2", ["echo"])
        with pytest.raises(errors.NotFound, match="pull it first"):
            await pod.run("web:3", ["echo"], pull="never")


async def test_pull_tells_its_progress(client: atoll.Client) -> None:
    seen: list[tuple[str, int]] = []
    await client.pull("web:1", lambda layers: seen.extend((one.phase, one.current_bytes) for one in layers))
    assert seen == [("pulling", 50), ("done", 100)]
    assert "docker.io/library/web:1" in [tag for image in await client.images() for tag in image.tags]


async def test_names_prefixes_and_pods_of_one_find_a_container(client: atoll.Client) -> None:
    pod = await client.run_pod("web")
    main = await pod.run(IMAGE, ["sleep", "1000"], name="main")
    for name in (main.id, main.id[:12], "main", "web/main", "web"):
        assert (await client.container(name)).id == main.id
    side = await pod.run(IMAGE, ["sleep", "1000"], name="side")
    assert (await client.container("web/side")).id == side.id
    with pytest.raises(errors.InvalidArgument, match="has 2 containers; name one of them, as web/"):
        await client.container("web")
    with pytest.raises(errors.NotFound, match="atoll ps -a"):
        await client.container("nope")
    other = await client.run_pod("api")
    await other.run(IMAGE, ["sleep", "1000"], name="main")
    with pytest.raises(errors.InvalidArgument, match="2 fit"):
        await client.container("main")
    assert (await client.pod(pod.id[:20])).name == "web"


async def test_logs_follow_until_the_end_and_start_where_asked(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "0.01"])
        assert [line async for line in container.logs(follow=True)] == []
        words = await pod.run(IMAGE, ["echo", "a\nb\nc"])
        await words.wait()
        assert [line.text async for line in words.logs(tail=2)] == ["b", "c"]
        last = [line async for line in words.logs()][-1]
        assert [line.text async for line in words.logs(since=last.time_ns)][-1] == "c"


async def test_wait_is_bounded(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        with pytest.raises(errors.DeadlineExceeded, match="still runs"):
            await container.wait(timeout=0.02)
        await container.stop()
        assert (await container.wait()).code == 143
        await container.stop()
        await container.remove()
        await container.remove()


async def test_a_caller_that_is_cancelled_leaves_no_pod_and_no_container(
    client: atoll.Client, daemon: FakeDaemon
) -> None:
    pod = await client.run_pod("kept")
    works = (client.run_pod("web"), pod.run(IMAGE, ["sleep", "1000"]))
    for work in works:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await work
    assert daemon.calls.count("RunPodSandbox") == 2
    assert daemon.calls.count("CreateContainer") == 1
    assert [one.status.metadata.name for one in daemon.pods.values()] == ["kept"]
    assert not daemon.containers


async def test_every_call_breaks_with_the_daemon(client: atoll.Client, daemon: FakeDaemon) -> None:
    pod = await client.run_pod()
    container = await pod.run(IMAGE, ["sleep", "1000"])
    process = container.exec_stream(["sleep", "1000"])
    await process.started()

    async def follow() -> None:
        async for _ in container.logs(follow=True):
            pass

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(expect_unavailable(work)) for work in (container.wait(), follow(), process.wait())]
        while "ContainerStatus" not in daemon.calls:
            await container.status()
        await daemon.die()
    assert [call.result() for call in calls] == [None] * 3
    with pytest.raises(errors.Unavailable, match="no daemon answers"):
        await container.status()
    await process.aclose()


async def expect_unavailable(work: object) -> None:
    with pytest.raises(errors.Unavailable, match="atoll serve"):
        await work  # pyright: ignore[reportGeneralTypeIssues]  # any awaitable


async def test_client_works_again_when_the_daemon_is_back(client: atoll.Client, daemon: FakeDaemon) -> None:
    await client.info()
    await daemon.die()
    with pytest.raises(errors.Unavailable):
        await client.info()
    async with FakeDaemon(daemon.socket), asyncio.timeout(10):
        while True:
            with contextlib.suppress(errors.Unavailable):
                await client.info()
                break
            await asyncio.sleep(0.01)


async def test_process_output_is_held_back_while_nobody_reads(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        data = b"x" * (8 << 20)
        async with container.exec_stream(["cat"], stdin=True) as process:
            await process.write(data)
            await process.close_stdin()
            got = await process.stdout.read_all()
            assert len(got) == len(data)
            assert (await process.wait()).code == 0


async def test_output_past_the_limit_ends_the_exec(client: atoll.Client) -> None:
    async with await client.run_pod() as pod:
        container = await pod.run(IMAGE, ["sleep", "1000"])
        async with container.exec_stream(["cat"], stdin=True) as process:
            await process.write(b"x" * 1000)
            with pytest.raises(errors.ResourceExhausted, match="exec_stream"):
                await process.collect(limit_bytes=10)


async def test_fsck_info_and_phases(client: atoll.Client, daemon: FakeDaemon) -> None:
    assert (await client.fsck()).clean
    info = await client.info()
    assert (info.version, info.runtime_handlers) == (atoll.__version__, ("atoll",))
    pod = await client.run_pod()
    phases = await pod.phases()
    assert [(one.operation, one.name, one.duration_s) for one in phases] == [("run", "record", 0.0015)]


async def test_no_daemon_and_none_to_start_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match=r"no daemon answers at .*none\.sock"):
        async with atoll.connect(tmp_path / "none.sock", start=False):
            pass


async def test_a_file_that_is_no_socket_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(errors.InvalidArgument, match="is no socket"):
        async with atoll.connect(path, start=False):
            pass
    with pytest.raises(errors.InvalidArgument, match="cannot be a socket"):
        async with atoll.connect(tmp_path / ("x" * 200), start=False):
            pass


def test_importing_atoll_brings_no_grpc() -> None:
    code = "import sys, atoll, atoll.client; print('grpc' in sys.modules, 'google' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_name_of_the_sdk_is_there() -> None:
    for name in atoll.client.MODULES:
        assert getattr(atoll, name) is getattr(atoll.client, name)
    with pytest.raises(AttributeError, match="nope"):
        _ = atoll.nope
