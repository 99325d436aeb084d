"""Our ttrpc against Go's: a real shim serves our client and calls our server, a real containerd serves our client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_events_pb2 as events
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as forwarding
from atoll.api import containerd_task_v2_pb2 as task
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext
from tests.integration.conftest import Roots

SHIM = "containerd-shim-runc-v2"
TASK = "containerd.task.v2.Task"
EVENTS = "containerd.services.events.ttrpc.v1.Events"
CALL_TIMEOUT_S = 20.0
READY_TIMEOUT_S = 20.0
# Where Debian's shim puts its sockets; the name is a hash of the address, which is private to the test.
SHIM_SOCKETS = Path("/run/containerd/s")
# Where it keeps runc's state, by namespace; the options that move it have other names from version to version.
RUNC_ROOTS = Path("/run/containerd/runc")


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} on PATH")


class EventSink:
    """The Events service that a containerd offers its shims."""

    def __init__(self) -> None:
        self.received: list[forwarding.ForwardRequest] = []
        self.contexts: list[CallContext] = []
        self._arrived = asyncio.Condition()

    async def Forward(  # noqa: N802 - the name of the method on the wire
        self, request: forwarding.ForwardRequest, context: CallContext
    ) -> Empty:
        async with self._arrived:
            self.received.append(request)
            self.contexts.append(context)
            self._arrived.notify_all()
        return Empty()

    @property
    def topics(self) -> list[str]:
        return [request.envelope.topic for request in self.received]

    async def wait_for(self, topic: str) -> forwarding.ForwardRequest:
        async with asyncio.timeout(CALL_TIMEOUT_S), self._arrived:
            await self._arrived.wait_for(lambda: topic in self.topics)
        return self.received[self.topics.index(topic)]


class Shim:
    """A real shim on a private bundle: our client on its socket, our server as its event sink."""

    def __init__(self, roots: Roots, sink: EventSink) -> None:
        self.roots = roots
        self.sink = sink
        self.id = roots.prefix
        self.bundle = roots.base / "bundle"
        self.runc_root = RUNC_ROOTS / roots.prefix
        self.socket = SHIM_SOCKETS / hashlib.sha256(f"{roots.socket}/{roots.prefix}/{self.id}".encode()).hexdigest()

    def make_bundle(self) -> None:
        """A container that sleeps in a busybox root file system."""
        programs = self.bundle / "rootfs" / "bin"
        programs.mkdir(parents=True)
        shutil.copy("/bin/busybox", programs / "busybox")
        subprocess.run(["runc", "spec"], cwd=self.bundle, check=True, timeout=CALL_TIMEOUT_S)
        spec = json.loads((self.bundle / "config.json").read_text())
        spec["process"].update(terminal=False, args=["/bin/busybox", "sleep", "1000"])
        spec["linux"]["cgroupsPath"] = f"/{self.roots.prefix}"
        (self.bundle / "config.json").write_text(json.dumps(spec))

    async def start(self) -> str:
        """Run its `start` command; the address it prints."""
        flags = ["-namespace", self.roots.prefix, "-address", str(self.roots.socket), "-publish-binary", "/bin/true"]
        process = await asyncio.create_subprocess_exec(
            SHIM,
            *(*flags, "-id", self.id, "start"),
            cwd=self.bundle,
            env={**os.environ, "TTRPC_ADDRESS": f"{self.roots.socket}.ttrpc", "MAX_SHIM_VERSION": "2"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), CALL_TIMEOUT_S)
        assert process.returncode == 0, output
        return output.decode().strip()

    async def connect(self) -> Client:
        client = await Client.connect(await self.start())
        connected = await client.call(
            TASK, "Connect", task.ConnectRequest(id=self.id), task.ConnectResponse, timeout=CALL_TIMEOUT_S
        )
        self.pidfd = os.pidfd_open(connected.shim_pid)
        self.pid = connected.shim_pid
        return client

    async def end(self, client: Client) -> None:
        """Ask it to end; kill it where it does not."""
        with contextlib.suppress(errors.Unavailable):
            await client.call(TASK, "Shutdown", task.ShutdownRequest(id=self.id), Empty, timeout=CALL_TIMEOUT_S)
        try:
            await asyncio.wait_for(client.closed, CALL_TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            self.socket.unlink(missing_ok=True)
            shutil.rmtree(self.runc_root, ignore_errors=True)
            await client.aclose()


@pytest.fixture
async def sink(roots: Roots) -> AsyncIterator[EventSink]:
    """Our server where the shim looks for containerd's event service."""
    sink = EventSink()
    async with Server(peer_uid=os.getuid()) as server:
        server.add_service(forwarding.DESCRIPTOR.services_by_name["Events"], sink)
        await server.serve(Path(f"{roots.socket}.ttrpc"))
        yield sink


@pytest.fixture
def log_fifo(roots: Roots) -> Iterator[Path]:
    """The fifo a shim logs to; its open blocks without a reader."""
    path = roots.base / "bundle" / "log"
    path.parent.mkdir()
    os.mkfifo(path, 0o700)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield path
    os.close(reader)


@pytest.fixture
async def shim(roots: Roots, sink: EventSink, log_fifo: Path) -> Shim:
    need(SHIM, "runc", "busybox")
    shim = Shim(roots, sink)
    await asyncio.to_thread(shim.make_bundle)
    return shim


@pytest.fixture
async def client(shim: Shim) -> AsyncIterator[Client]:
    client = await shim.connect()
    try:
        yield client
    finally:
        await shim.end(client)


async def test_go_server_answers_our_client(shim: Shim, client: Client) -> None:
    request = task.ConnectRequest(id=shim.id)
    connected = await client.call(TASK, "Connect", request, task.ConnectResponse, timeout=CALL_TIMEOUT_S)
    assert (connected.shim_pid, connected.task_pid) == (shim.pid, 0)
    assert client.peer_credentials.uid == os.getuid()
    with pytest.raises(errors.NotFound):
        await client.call(TASK, "State", task.StateRequest(id=shim.id), task.StateResponse)
    with pytest.raises(errors.Unimplemented):
        await client.call(TASK, "NoSuchMethod", b"", Empty)
    with pytest.raises(errors.Unimplemented):
        await client.call("no.such.Service", "State", b"", Empty)


async def test_go_server_carries_many_and_large_calls(shim: Shim, client: Client) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(client.call(TASK, "Connect", task.ConnectRequest(id=shim.id), task.ConnectResponse))
    with pytest.raises(errors.NotFound):
        await client.call(TASK, "State", task.StateRequest(id="x" * (3 << 20)), task.StateResponse)


async def test_go_server_keeps_our_deadline(shim: Shim, client: Client) -> None:
    await create(shim, client)
    with pytest.raises(errors.DeadlineExceeded):
        await client.call(TASK, "Wait", task.WaitRequest(id=shim.id), task.WaitResponse, timeout=0.1)
    await remove(shim, client)


async def create(shim: Shim, client: Client) -> int:
    request = task.CreateTaskRequest(id=shim.id, bundle=str(shim.bundle))
    created = await client.call(TASK, "Create", request, task.CreateTaskResponse, timeout=CALL_TIMEOUT_S)
    await client.call(TASK, "Start", task.StartRequest(id=shim.id), task.StartResponse, timeout=CALL_TIMEOUT_S)
    return created.pid


async def remove(shim: Shim, client: Client) -> task.DeleteResponse:
    async with asyncio.TaskGroup() as group:
        exited = group.create_task(
            client.call(TASK, "Wait", task.WaitRequest(id=shim.id), task.WaitResponse, timeout=CALL_TIMEOUT_S)
        )
        await client.call(TASK, "Kill", task.KillRequest(id=shim.id, signal=signal.SIGKILL), Empty)
    assert exited.result().exit_status == 128 + signal.SIGKILL
    return await client.call(
        TASK, "Delete", task.DeleteRequest(id=shim.id), task.DeleteResponse, timeout=CALL_TIMEOUT_S
    )


async def test_go_client_forwards_the_events_of_a_task_to_our_server(shim: Shim, client: Client) -> None:
    pid = await create(shim, client)
    state = await client.call(TASK, "State", task.StateRequest(id=shim.id), task.StateResponse)
    assert (state.pid, state.bundle) == (pid, str(shim.bundle))
    deleted = await remove(shim, client)
    assert (deleted.pid, deleted.exit_status) == (pid, 128 + signal.SIGKILL)
    await shim.sink.wait_for("/tasks/delete")
    topics = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert [topic for topic in shim.sink.topics if topic in topics] == topics
    created = events.TaskCreate()
    envelope = (await shim.sink.wait_for("/tasks/create")).envelope
    created.ParseFromString(envelope.event.value)
    assert (created.container_id, created.pid, envelope.namespace) == (shim.id, pid, shim.roots.prefix)
    context = shim.sink.contexts[0]
    assert context.namespace == shim.roots.prefix
    assert context.deadline is not None
    assert context.peer is not None
    assert context.peer.pid == shim.pid


async def test_calls_that_wait_on_a_killed_shim_fail_at_once(shim: Shim, client: Client) -> None:
    await create(shim, client)
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_fails(shim, client))
        await asyncio.sleep(0.05)
        signal.pidfd_send_signal(shim.pidfd, signal.SIGKILL)
    await asyncio.wait_for(client.closed, CALL_TIMEOUT_S)
    force = ["runc", "--root", str(shim.runc_root), "delete", "--force", shim.id]
    await asyncio.to_thread(subprocess.run, force, check=True, timeout=CALL_TIMEOUT_S)


async def wait_fails(shim: Shim, client: Client) -> None:
    with pytest.raises(errors.Unavailable, match=r"ttrpc: closed$"):
        await client.call(TASK, "Wait", task.WaitRequest(id=shim.id), task.WaitResponse)


CONTAINERD_CONFIG = """
version = 2
root = "{root}"
state = "{state}"
temp = ""
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{socket}"
"""


@pytest.fixture
async def containerd(roots: Roots) -> AsyncIterator[Path]:
    """A private containerd; the path of its gRPC socket."""
    need("containerd", "ctr")
    socket, config = roots.state / "c.sock", roots.base / "containerd.toml"
    text = CONTAINERD_CONFIG.format(root=roots.base / "containerd", state=roots.state / "containerd", socket=socket)
    config.write_text(text)
    with (roots.base / "containerd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec("containerd", "--config", config, stdout=log, stderr=log)
    try:
        await until_served(process, f"{socket}.ttrpc")
        yield socket
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), CALL_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def until_served(process: asyncio.subprocess.Process, address: str) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while process.returncode is None:
            try:
                client = await Client.connect(address)
            except errors.Unavailable:
                await asyncio.sleep(0.05)
            else:
                await client.aclose()
                return
    pytest.fail("containerd ended before it served")


def oom(roots: Roots, topic: str) -> forwarding.ForwardRequest:
    request = forwarding.ForwardRequest()
    request.envelope.timestamp.GetCurrentTime()
    request.envelope.namespace = roots.prefix
    request.envelope.topic = topic
    request.envelope.event.type_url = "containerd.events.TaskOOM"
    request.envelope.event.value = events.TaskOOM(container_id=roots.prefix).SerializeToString()
    return request


async def test_containerd_publishes_the_event_that_our_client_forwards(roots: Roots, containerd: Path) -> None:
    watcher = await asyncio.create_subprocess_exec(
        *("ctr", "--address", str(containerd), "--namespace", roots.prefix, "events"), stdout=subprocess.PIPE
    )
    assert watcher.stdout is not None
    try:
        async with await Client.connect(f"{containerd}.ttrpc") as client, asyncio.timeout(CALL_TIMEOUT_S):
            line = b""
            while not line:  # nothing tells when a subscription is there
                await client.call(EVENTS, "Forward", oom(roots, "/tasks/oom"), Empty, timeout=CALL_TIMEOUT_S)
                with contextlib.suppress(TimeoutError):
                    line = await asyncio.wait_for(watcher.stdout.readline(), 0.1)
    finally:
        watcher.kill()
        await watcher.wait()
    assert f"{roots.prefix} /tasks/oom" in line.decode()
    assert json.loads(line[line.index(b"{") :]) == {"container_id": roots.prefix}


async def test_containerd_tells_our_client_what_is_wrong(roots: Roots, containerd: Path) -> None:
    async with await Client.connect(f"{containerd}.ttrpc") as client:
        with pytest.raises(errors.InvalidArgument):
            await client.call(EVENTS, "Forward", oom(roots, "no-slash"), Empty, timeout=CALL_TIMEOUT_S)
        with pytest.raises(errors.Unimplemented):
            await client.call(EVENTS, "Backward", b"", Empty, timeout=CALL_TIMEOUT_S)
        with pytest.raises(errors.AtollError):
            await client.call(EVENTS, "Forward", b"\xff\xff", Empty, timeout=CALL_TIMEOUT_S)
        await client.call(EVENTS, "Forward", oom(roots, "/tasks/oom"), Empty, timeout=CALL_TIMEOUT_S)
