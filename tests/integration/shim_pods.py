"""Real shims for tests: forked by a zygote, driven over ttrpc, with busybox bundles."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as events_pb2
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup
from atoll.runtime.zygote import ForkedShim, Zygote
from atoll.shim.request import RuntimeChoice, ShimRequest
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext

TASK = "containerd.task.v3.Task"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
CALL_TIMEOUT_S = 30.0
APPLETS = (
    "sh",
    "cat",
    "echo",
    "sleep",
    "ps",
    "stty",
    "hostname",
    "true",
    "dd",
    "sysctl",
    "kill",
    "wc",
    "tail",
    "readlink",
)

M = TypeVar("M", bound=Message)


class EventSink:
    """A daemon's end of event forwarding."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.envelopes: list[Any] = []
        self.came = asyncio.Event()

    async def Forward(self, request: events_pb2.ForwardRequest, context: CallContext) -> Empty:  # noqa: N802
        self.topics.append(request.envelope.topic)
        self.envelopes.append(request.envelope)
        self.came.set()
        return Empty()

    async def until(self, topic: str, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.topics.count(topic) < count:
                self.came.clear()
                await self.came.wait()


@dataclass(slots=True, kw_only=True)
class ShimUnderTest:
    """One shim and a connection to it."""

    id: str
    bundle: Path
    base: Path
    prefix: str
    forked: ForkedShim
    client: Client
    socket: Path
    containers: list[str] = field(default_factory=list[str])

    async def call(self, method: str, request: Message, response: type[M], *, timeout: float = CALL_TIMEOUT_S) -> M:
        service = SANDBOX if isinstance(request, SANDBOX_REQUESTS) else TASK
        return await self.client.call(service, method, request, response, timeout=timeout)

    # tasks

    def make_bundle(self, *argv: str, pid_path: str | None = None, **changes: Any) -> str:
        """A bundle of a container that runs `argv`; its id."""
        name = f"{self.prefix}-{secrets.token_hex(3)}"
        bundle = self.base / name
        rootfs = bundle / "rootfs"
        for folder in ("bin", "proc", "dev", "sys", "tmp"):
            (rootfs / folder).mkdir(parents=True)
        os.link(self.base / "busybox", rootfs / "bin/busybox")
        for applet in APPLETS:
            (rootfs / "bin" / applet).symlink_to("busybox")
        spaces: list[dict[str, str]] = [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]
        spaces.append({"type": "pid"} if pid_path is None else {"type": "pid", "path": pid_path})
        spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": list(argv),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "terminal": changes.pop("terminal", False),
                "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
            "linux": {
                "namespaces": changes.pop("namespaces", spaces),
                "cgroupsPath": changes.pop("cgroup", f"/{self.prefix}/{name}"),
                "resources": changes.pop("resources", {}),
            },
        }
        spec.update(changes)
        (bundle / "config.json").write_text(json.dumps(spec))
        return name

    def bundle_of(self, name: str) -> Path:
        return self.base / name

    def output(self, name: str) -> str:
        return (self.base / f"{name}.out").read_bytes().decode()

    async def create(self, name: str, **changes: Any) -> int:
        out = f"file://{self.base}/{name}.out"
        streams = {"stdout": out, "stderr": "" if changes.get("terminal") else out}
        request = pb.CreateTaskRequest(id=name, bundle=str(self.bundle_of(name)), **{**streams, **changes})
        pid = (await self.call("Create", request, pb.CreateTaskResponse)).pid
        self.containers.append(name)
        return pid

    async def start(self, name: str, exec_id: str = "") -> int:
        return (await self.call("Start", pb.StartRequest(id=name, exec_id=exec_id), pb.StartResponse)).pid

    async def run(self, *argv: str, **changes: Any) -> str:
        """Create and start a container; its id."""
        name = self.make_bundle(*argv, **changes)
        await self.create(name)
        await self.start(name)
        return name

    async def exec(self, name: str, exec_id: str, *argv: str, **changes: Any) -> None:
        process = {"user": {"uid": 0, "gid": 0}, "args": list(argv), "env": ["PATH=/bin"], "cwd": "/"}
        process["terminal"] = changes.get("terminal", False)
        out = f"file://{self.base}/{name}.{exec_id}.out"
        spec = AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=json.dumps(process).encode()
        )
        request = pb.ExecProcessRequest(id=name, exec_id=exec_id, spec=spec, **{"stdout": out, **changes})
        await self.call("Exec", request, Empty)

    async def wait(self, name: str, exec_id: str = "") -> pb.WaitResponse:
        return await self.call("Wait", pb.WaitRequest(id=name, exec_id=exec_id), pb.WaitResponse)

    async def state(self, name: str, exec_id: str = "") -> pb.StateResponse:
        return await self.call("State", pb.StateRequest(id=name, exec_id=exec_id), pb.StateResponse)

    async def kill(self, name: str, signal: int = 9, exec_id: str = "", *, all: bool = False) -> None:
        await self.call("Kill", pb.KillRequest(id=name, exec_id=exec_id, signal=signal, all=all), Empty)

    async def delete(self, name: str, exec_id: str = "") -> pb.DeleteResponse:
        answer = await self.call("Delete", pb.DeleteRequest(id=name, exec_id=exec_id), pb.DeleteResponse)
        if not exec_id:
            self.containers.remove(name)
        return answer

    async def shutdown(self) -> None:
        """End the shim and whatever it still has."""
        if self.client.is_closed:
            return
        await self.call(
            "ShutdownSandbox",
            sandbox_pb2.ShutdownSandboxRequest(sandbox_id=self.id),
            sandbox_pb2.ShutdownSandboxResponse,
        )
        await self.client.closed

    # the pod

    async def create_sandbox(self, config: PodSandboxConfig, *, netns: str = "", **annotations: str) -> None:
        options = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())
        request = sandbox_pb2.CreateSandboxRequest(
            sandbox_id=self.id,
            bundle_path=str(self.bundle),
            options=options,
            netns_path=netns,
            annotations={f"io.atoll.sandbox.{key}": value for key, value in annotations.items()},
        )
        await self.call("CreateSandbox", request, sandbox_pb2.CreateSandboxResponse)

    async def start_sandbox(self) -> sandbox_pb2.StartSandboxResponse:
        request = sandbox_pb2.StartSandboxRequest(sandbox_id=self.id)
        return await self.call("StartSandbox", request, sandbox_pb2.StartSandboxResponse)

    async def stop_sandbox(self, timeout_s: int = 0) -> None:
        request = sandbox_pb2.StopSandboxRequest(sandbox_id=self.id, timeout_secs=timeout_s)
        await self.call("StopSandbox", request, sandbox_pb2.StopSandboxResponse)

    async def wait_sandbox(self) -> sandbox_pb2.WaitSandboxResponse:
        request = sandbox_pb2.WaitSandboxRequest(sandbox_id=self.id)
        return await self.call("WaitSandbox", request, sandbox_pb2.WaitSandboxResponse)

    async def status(self, *, verbose: bool = False) -> sandbox_pb2.SandboxStatusResponse:
        request = sandbox_pb2.SandboxStatusRequest(sandbox_id=self.id, verbose=verbose)
        return await self.call("SandboxStatus", request, sandbox_pb2.SandboxStatusResponse)

    async def shim_ended(self) -> None:
        """Return when the shim is gone; its process may serve others."""
        async with asyncio.timeout(10):
            await self.client.closed
        assert not self.socket.exists()

    async def process_ended(self) -> None:
        """Return when the process itself is gone."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.forked.pidfd, ended.set)
        try:
            async with asyncio.timeout(10):
                await ended.wait()
        finally:
            loop.remove_reader(self.forked.pidfd)


SANDBOX_REQUESTS = tuple(
    getattr(sandbox_pb2, name)
    for name in dir(sandbox_pb2)
    if name.endswith("Request") and name != "UpdateSandboxRequest"
)


@dataclass(slots=True, kw_only=True)
class ShimYard:
    """A zygote, an event sink, and the shims a test forked."""

    zygote: Zygote
    base: Path
    state: Path
    prefix: str
    runtime: str
    sink: EventSink
    sink_address: str
    shims: list[ShimUnderTest] = field(default_factory=list[ShimUnderTest])

    async def shim(self, *, events: bool = False) -> ShimUnderTest:
        name = f"{self.prefix}-pod{len(self.shims)}"
        bundle = self.state / name
        bundle.mkdir(mode=0o700)
        path = self.state / f"s{len(self.shims)}"
        request = ShimRequest(
            id=name,
            namespace="test",
            bundle=str(bundle),
            socket=str(path),
            ttrpc_address=self.sink_address if events else "",
            runtime=RuntimeChoice(binary=self.runtime, root=str(self.state / "oci")),
        )
        forked = await self.zygote.fork(request)
        client = await Client.connect(str(path))
        shim = ShimUnderTest(
            id=name, bundle=bundle, base=self.base, prefix=self.prefix, forked=forked, client=client, socket=path
        )
        self.shims.append(shim)
        return shim

    async def close(self) -> None:
        for shim in self.shims:
            try:
                for name in list(shim.containers):
                    if not shim.client.is_closed:
                        state = await shim.state(name)
                        if state.status != 3:
                            await shim.kill(name, all=True)
                            await shim.wait(name)
                        await shim.delete(name)
                if not shim.client.is_closed:
                    await shim.call(
                        "ShutdownSandbox",
                        sandbox_pb2.ShutdownSandboxRequest(sandbox_id=shim.id),
                        sandbox_pb2.ShutdownSandboxResponse,
                    )
                    await shim.shim_ended()
            finally:
                await shim.client.aclose()
                os.close(shim.forked.pidfd)
        await self.zygote.aclose()
        # The parent of the containers' cgroups belongs to whoever chose it: this test.
        Cgroup(f"/{self.prefix}", cgroup_layout.detect()).delete()


async def open_yard(
    base: Path, state: Path, prefix: str, runtime: str, *, pods_per_shim: int = 32
) -> tuple[ShimYard, Server]:
    """A yard; its server takes events."""
    shutil.copy("/bin/busybox", base / "busybox")
    sink = EventSink()
    server = Server()
    server.add_service(events_pb2.DESCRIPTOR.services_by_name["Events"], sink)
    address = state / "events"
    await server.serve(address)
    zygote = await Zygote.start(pods_per_shim=pods_per_shim)
    yard = ShimYard(
        zygote=zygote,
        base=base,
        state=state,
        prefix=prefix,
        runtime=runtime,
        sink=sink,
        sink_address=f"unix://{address}",
    )
    return yard, server
