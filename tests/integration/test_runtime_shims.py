"""One client, two kinds of shims: Debian's containerd-shim-runc-v2, by its command line, and ours, by the zygote."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as forwarding
from atoll.concurrency import Blocking, TaskOwner
from atoll.linux.process import PidfdSpawner
from atoll.runtime import bootstrap as bootstraps
from atoll.runtime.binary import BinaryLauncher, Daemon
from atoll.runtime.bundle import Bundle
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.shim import Launcher, LaunchRequest, Shim
from atoll.runtime.task import StdioPaths, TaskStatus
from atoll.runtime.zygote import Zygote
from atoll.sandbox.controller import Runtime, TypedAny
from atoll.shim import records
from atoll.shim.request import RuntimeChoice
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext
from tests.integration.conftest import Roots
from tests.integration.leaks import pids, wait_until

WITHIN_S = 20.0
RUNC_ROOTS = Path("/run/containerd/runc")


class EventSink:
    """The service that shims forward their events to."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self._arrived = asyncio.Condition()

    async def Forward(self, request: forwarding.ForwardRequest, context: CallContext) -> Empty:  # noqa: N802
        async with self._arrived:
            self.topics.append(request.envelope.topic)
            self._arrived.notify_all()
        return Empty()

    async def wait_for(self, topic: str) -> None:
        async with asyncio.timeout(WITHIN_S), self._arrived:
            await self._arrived.wait_for(lambda: topic in self.topics)


@pytest.fixture
async def sink(roots: Roots) -> AsyncIterator[EventSink]:
    sink = EventSink()
    async with Server(peer_uid=os.getuid()) as server:
        server.add_service(forwarding.DESCRIPTOR.services_by_name["Events"], sink)
        await server.serve(Path(f"{roots.socket}.ttrpc"))
        yield sink


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    blocking = Blocking(threads=2)
    yield blocking
    blocking.close()


@pytest.fixture(params=["io.containerd.runc.v2", "io.containerd.atoll.v1"])
def runtime_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def request_(roots: Roots, runtime_type: str) -> LaunchRequest:
    """A bundle with a container that sleeps in a busybox root file system."""
    bundle = Bundle(id=roots.prefix, namespace=roots.prefix, path=roots.state / "b" / roots.prefix)
    bundle.create(None)
    programs = bundle.rootfs / "bin"
    programs.mkdir()
    shutil.copy("/bin/busybox", programs / "busybox")
    subprocess.run(["runc", "spec"], cwd=bundle.path, check=True, timeout=WITHIN_S)
    spec = json.loads((bundle.path / "config.json").read_text())
    spec["process"].update(terminal=False, args=["/bin/busybox", "sleep", "1000"])
    spec["linux"]["cgroupsPath"] = f"/{roots.prefix}"
    bundle.write_spec(json.dumps(spec).encode())
    return LaunchRequest(id=roots.prefix, namespace=roots.prefix, runtime=Runtime(name=runtime_type), bundle=bundle)


@pytest.fixture
async def launcher(
    runtime_type: str, roots: Roots, sink: EventSink, blocking: Blocking, request_: LaunchRequest
) -> AsyncIterator[Launcher]:
    """What is tested; a test that fails half-way is cleared away."""
    events = f"{roots.socket}.ttrpc"
    if runtime_type == "io.containerd.runc.v2":
        daemon = Daemon(grpc_address=str(roots.socket), events_address=events, binary="/bin/true")
        foreign = BinaryLauncher(daemon, PidfdSpawner(), blocking)
        yield foreign
        await foreign.delete(request_)
        with contextlib.suppress(FileNotFoundError):
            (RUNC_ROOTS / roots.prefix).rmdir()  # Debian's shim never does; fails where a container is left
        return
    sockets = roots.state / "s"
    sockets.mkdir()
    choice = RuntimeChoice(binary=str(shutil.which("runc")), root=str(roots.state / "oci"))
    async with await Zygote.start() as zygote:
        ours = AtollLauncher(zygote, sockets=sockets, runtime=choice, events_address=events, blocking=blocking)
        yield ours
        await ours.delete(request_)


async def run_container(shim: Shim, request: LaunchRequest) -> int:
    pid = await shim.tasks.create(request.id, bundle=str(request.bundle.path), rootfs=(), stdio=StdioPaths())
    assert await shim.tasks.start(request.id) == pid
    return pid


async def kill_and_delete(shim: Shim, request: LaunchRequest) -> None:
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(shim.tasks.wait(request.id))
        await shim.tasks.kill(request.id, signal.SIGKILL)
    assert ended.result().exit_status == 128 + signal.SIGKILL
    assert (await shim.tasks.delete(request.id)).exit_status == 128 + signal.SIGKILL


def command(*words: str) -> bytes:
    process = {"args": ["/bin/busybox", *words], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}}
    return msgspec.json.encode(process)


def is_gone(pid: int) -> bool:
    return wait_until(lambda: not Path(f"/proc/{pid}/root").exists(), within=WITHIN_S)


async def test_a_task_lives_its_life(
    launcher: Launcher, request_: LaunchRequest, sink: EventSink, runtime_type: str
) -> None:
    shim = await launcher.launch(request_)
    pid = await run_container(shim, request_)
    state = await shim.tasks.state(request_.id)
    assert (state.pid, state.status, state.exited_at) == (pid, TaskStatus.RUNNING, None)
    assert pid in await shim.tasks.pids(request_.id)
    await shim.tasks.pause(request_.id)
    assert (await shim.tasks.state(request_.id)).status is TaskStatus.PAUSED
    await shim.tasks.resume(request_.id)
    if runtime_type == "io.containerd.atoll.v1":  # Debian's shim finds no cgroup where one hierarchy is not mounted
        assert (await shim.tasks.stats(request_.id)).type_url.startswith("io.containerd.cgroups.v")
    await shim.tasks.update(request_.id, b'{"pids": {"limit": 77}}')
    await shim.tasks.exec(request_.id, "probe", spec=command("sh", "-c", "exit 7"), stdio=StdioPaths())
    await shim.tasks.start(request_.id, "probe")
    assert (await shim.tasks.wait(request_.id, "probe")).exit_status == 7
    assert (await shim.tasks.wait(request_.id, "probe")).exit_status == 7
    assert (await shim.tasks.delete(request_.id, "probe")).exit_status == 7
    await kill_and_delete(shim, request_)
    with pytest.raises(errors.NotFound):
        await shim.tasks.state(request_.id)
    await sink.wait_for("/tasks/delete")
    order = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    found = [topic for topic in sink.topics if topic in order]
    assert [found[0], found[1], found[-1]] == [order[0], order[1], order[3]]
    await shim.aclose()
    await launcher.delete(request_)
    assert not request_.bundle.path.exists()
    await launcher.delete(request_)


async def test_a_shim_is_found_again_and_kept_what_happened_meanwhile(
    launcher: Launcher, request_: LaunchRequest
) -> None:
    shim = await launcher.launch(request_)
    pid = await run_container(shim, request_)
    shim_pid, _ = await shim.tasks.connect(request_.id)
    await shim.aclose()
    os.kill(pid, signal.SIGTERM)  # its init has no handler: nothing happens
    os.kill(pid, signal.SIGKILL)
    assert await asyncio.to_thread(is_gone, pid)
    again = await launcher.reconnect(request_)
    assert (await again.tasks.connect(request_.id))[0] == shim_pid
    assert (await again.tasks.wait(request_.id)).exit_status == 137
    assert (await again.tasks.delete(request_.id)).exit_status == 137
    await again.aclose()
    await launcher.delete(request_)


async def test_delete_takes_a_running_container_with_it(launcher: Launcher, request_: LaunchRequest) -> None:
    shim = await launcher.launch(request_)
    pid = await run_container(shim, request_)
    shim_pid, _ = await shim.tasks.connect(request_.id)
    await shim.aclose()
    ended = await launcher.delete(request_)
    assert ended is not None
    assert ended.exit_status == 137
    assert await asyncio.to_thread(is_gone, pid)
    assert shares_its_process(request_) or await asyncio.to_thread(is_gone, shim_pid)
    assert not request_.bundle.path.exists()
    with pytest.raises(errors.NotFound):
        await launcher.reconnect(request_)


async def test_delete_clears_what_a_killed_shim_left(launcher: Launcher, request_: LaunchRequest) -> None:
    shim = await launcher.launch(request_)
    pid = await run_container(shim, request_)
    shim_pid, _ = await shim.tasks.connect(request_.id)
    pidfd = os.pidfd_open(shim_pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert await asyncio.to_thread(select.select, [pidfd], [], [], WITHIN_S) == ([pidfd], [], [])
    os.close(pidfd)
    await asyncio.wait_for(shim.closed, WITHIN_S)
    with pytest.raises(errors.Unavailable, match=r"ttrpc: closed$"):
        await shim.tasks.wait(request_.id)
    with pytest.raises(errors.Unavailable):
        await launcher.reconnect(request_)
    await launcher.delete(request_)
    assert await asyncio.to_thread(is_gone, pid)
    assert not request_.bundle.path.exists()


async def test_delete_of_an_idle_shim(launcher: Launcher, request_: LaunchRequest) -> None:
    shim = await launcher.launch(request_)
    shim_pid, task_pid = await shim.tasks.connect(request_.id)
    assert task_pid == 0
    await shim.aclose()
    await launcher.delete(request_)
    assert shares_its_process(request_) or await asyncio.to_thread(is_gone, shim_pid)
    assert not request_.bundle.path.exists()


@pytest.mark.parametrize("runtime_type", ["io.containerd.runc.v2"], indirect=True)
async def test_delete_of_a_shim_whose_bootstrap_was_being_written(launcher: Launcher, request_: LaunchRequest) -> None:
    """A daemon was killed there: the shim has nothing that its own `delete` could take away, and refuses."""
    shim = await launcher.launch(request_)
    await shim.aclose()
    (request_.bundle.path / bootstraps.FILE).rename(request_.bundle.path / f".{bootstraps.FILE}.new")
    await launcher.delete(request_)
    assert not request_.bundle.path.exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.005, 0.03, 0.1])
async def test_a_cancelled_launch_leaves_no_shim(
    launcher: Launcher, request_: LaunchRequest, roots: Roots, delay_s: float
) -> None:
    async with TaskOwner("launch") as owner:
        launching = owner.spawn(launcher.launch(request_), name="launch")
        await asyncio.sleep(delay_s)
        launching.cancel()
        await asyncio.wait({launching}, timeout=WITHIN_S)
        assert launching.done()
        if not launching.cancelled():  # it was there already
            await (await launching).aclose()
            await launcher.delete(request_)
    assert await asyncio.to_thread(wait_until, lambda: not shims_in(request_.bundle.path), within=WITHIN_S)
    assert not list((roots.state / "s").glob("*"))


def shares_its_process(request: LaunchRequest) -> bool:
    return request.runtime.name == "io.containerd.atoll.v1"


def shims_in(bundle: Path) -> list[int]:
    """The processes whose working directory is the bundle, as it is of every shim that has a process of its own."""
    found: list[int] = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(bundle)):
                found.append(pid)
    return found


@pytest.mark.parametrize("runtime_type", ["io.containerd.runc.v2"], indirect=True)
async def test_runtime_options_reach_the_shim(launcher: Launcher, request_: LaunchRequest, roots: Roots) -> None:
    root = roots.state / "runc-root"
    options = runc.Options(root=str(root))
    value = TypedAny(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    request = replace(request_, runtime=Runtime(name=request_.runtime.name, options=value))
    shim = await launcher.launch(request)
    await shim.tasks.create(request.id, bundle=str(request.bundle.path), rootfs=(), stdio=StdioPaths(), options=value)
    await shim.tasks.start(request.id)
    assert (root / roots.prefix / request.id).is_dir()
    await kill_and_delete(shim, request)
    await shim.aclose()
    await launcher.delete(request)


SHIMS = {
    "that fails": ("#!/bin/sh\n[ \"$9\" = start ] && { echo no luck; exit 3; }\nexit 0\n", errors.Unknown, "no luck"),
    "that says nothing": ("#!/bin/sh\nexit 0\n", errors.Unavailable, "no address"),
    "that says nonsense": ("#!/bin/sh\necho what a day\n", errors.Unknown, "what a day"),
    "that listens nowhere": ("#!/bin/sh\necho unix:///run/nobody.sock\n", errors.Unavailable, "nobody.sock"),
    "of the future": ('#!/bin/sh\necho \'{"version":4,"address":"unix:///x"}\'\n', errors.Unimplemented, "4"),
    "without its interpreter": ("#!/no/such/program\n", errors.NotFound, "cannot be run"),
}  # fmt: skip


@pytest.mark.parametrize("runtime_type", ["io.containerd.runc.v2"], indirect=True)
@pytest.mark.parametrize("kind", SHIMS)
async def test_a_shim_fails_to_start(launcher: Launcher, request_: LaunchRequest, roots: Roots, kind: str) -> None:
    script, expected, text = SHIMS[kind]
    program = roots.base / "shim"
    program.write_text(script)
    program.chmod(0o700)
    request = replace(request_, runtime=Runtime(name=str(program)))
    with pytest.raises(expected, match=text):
        await launcher.launch(request)
    await launcher.delete(request)
    assert not request.bundle.path.exists()


@pytest.mark.parametrize("runtime_type", ["io.containerd.runc.v2"], indirect=True)
async def test_a_pid_that_was_given_away_is_not_killed(
    launcher: Launcher, request_: LaunchRequest, roots: Roots
) -> None:
    bystander = await asyncio.create_subprocess_exec("/bin/busybox", "sleep", "100")
    record = records.ShimRecord(pid=bystander.pid, start_ticks=1, boot_id="another", version="")
    records.write(request_.bundle.path / records.SHIM, record)
    (request_.bundle.path / "shim-binary-path").write_text("/bin/true")
    await launcher.delete(request_)
    assert bystander.returncode is None
    bystander.kill()
    await bystander.wait()
