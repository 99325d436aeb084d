"""What shims are tried with: a binary, a folder of its own, and a trial of one check on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as bootstrap_pb2
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as forwarding
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.linux import process
from atoll.linux.process import PidfdSpawner
from atoll.runtime import program
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.bundle import Bundle, remove_mounted_tree
from atoll.runtime.shim import Shim
from atoll.runtime.task import StdioPaths
from atoll.sandbox.controller import Mount
from atoll.testing.conformance.bounded import in_time
from atoll.testing.conformance.check import told
from atoll.testing.conformance.host import LinuxHost, Trace
from atoll.testing.conformance.workload import process as oci_process
from atoll.testing.conformance.workload import spec
from atoll.ttrpc import address as addresses
from atoll.ttrpc.service import CallContext

T = TypeVar("T")

WITHIN_S = 20.0
SETTLE_S = 3.0
ASK_AGAIN_S = 0.02
MAX_SHIM_VERSION = "2"
"""What containerd sets, though version 3 is accepted."""
SLEEP = ("/bin/sleep", "1000000")
NAMESPACES = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")]


class Events:
    """The service that shims forward their events to; keeps topics and messages in the order of their arrival."""

    def __init__(self) -> None:
        self.arrived: list[forwarding.ForwardRequest] = []

    async def Forward(self, request: forwarding.ForwardRequest, context: CallContext) -> Empty:  # noqa: N802  its name
        self.arrived.append(request)
        return Empty()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimSubject:
    """A shim binary, and the folder, short and empty, in which the kit is its daemon.

    `rootfs` is a root file system with busybox; `events` is served at `<folder>/c.sock.ttrpc`.
    """

    binary: Path
    folder: Path
    rootfs: Path
    namespace: str
    events: Events = field(default_factory=Events)
    within_s: float = WITHIN_S
    settle_s: float = SETTLE_S

    @property
    def grpc_address(self) -> str:
        return str(self.folder / "c.sock")

    @property
    def ttrpc_address(self) -> str:
        return f"{self.grpc_address}.ttrpc"

    @property
    def sockets(self) -> Path:
        """Where a shim of today's generation is told to put its sockets."""
        return self.folder / "s"


@dataclass(slots=True)
class _Made:
    """A bundle of a trial, and what was seen of its shim and its container."""

    bundle: Bundle
    bootstrap: Bootstrap | None = None
    server: process.ProcessId | None = None
    trace: Trace | None = None


class ShimTrial:
    """One check under way on a shim: makes bundles, shims and containers, and takes them away."""

    def __init__(self, subject: ShimSubject, name: str) -> None:
        self.subject = subject
        self.host = LinuxHost()
        self.doing = ""
        self._name = "".join(word[:3] for word in name.split("_"))[:24]
        self._numbers = itertools.count(1)
        self._made: dict[str, _Made] = {}
        self._shims: list[Shim] = []
        self._ends: list[Callable[[], None]] = []

    # bundles and calls of the binary

    def bundle(
        self, arguments: tuple[str, ...] = SLEEP, *, terminal: bool = False, sandbox: str = "", bare: bool = False
    ) -> Bundle:
        """A bundle of a container; `sandbox` puts it into that group, `bare` leaves its config out."""
        made = f"{self.subject.namespace}-{self._name}-{next(self._numbers)}"
        bundle = Bundle(id=made, namespace=self.subject.namespace, path=self.subject.folder / "b" / made)
        text = spec(
            arguments,
            cgroup=f"/{self.subject.namespace}/{made}",
            namespaces=NAMESPACES,
            terminal=terminal,
            annotations={"io.kubernetes.cri.sandbox-id": sandbox} if sandbox else {},
        )
        bundle.create(None if bare else text)
        (bundle.path / "log").touch(0o600)
        self._made[made] = _Made(bundle)
        return bundle

    async def run(
        self, bundle: Bundle | None, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> bytes:
        """Run the binary as a daemon does, in the bundle; what it printed. Errors as `program.run`."""
        subject = self.subject
        argv = [str(subject.binary), "-namespace", subject.namespace, "-address", subject.grpc_address]
        argv += ["-publish-binary", "/bin/true", *(("-id", bundle.id) if bundle is not None else ()), *words]
        self.doing = f"{subject.binary.name} {words[-1]}"
        call = program.ShimCall(
            argv=argv,
            what=self.doing,
            cwd=bundle.path if bundle is not None else subject.folder,
            env={
                **os.environ,
                "GOMAXPROCS": "2",
                "NAMESPACE": subject.namespace,
                "GRPC_ADDRESS": subject.grpc_address,
                "TTRPC_ADDRESS": subject.ttrpc_address,
                **({"MAX_SHIM_VERSION": MAX_SHIM_VERSION} if env is None else env),
            },
            timeout_s=subject.within_s,
            stdin=stdin,
        )
        return await program.run(PidfdSpawner(), call)

    async def start(self, bundle: Bundle, *, stdin: bytes = b"", env: dict[str, str] | None = None) -> Bootstrap:
        """The `start` call, as of containerd 1.7 to 2.2 unless `stdin` and `env` say otherwise; where it answers."""
        return self.answered(bundle, await self.run(bundle, "start", stdin=stdin, env=env))

    def answered(self, bundle: Bundle, answer: bytes) -> Bootstrap:
        """Read what a `start` of the bundle printed, and remember it."""
        bootstrap = self._made[bundle.id].bootstrap = Bootstrap.parse(answer)
        return bootstrap

    def params(self, bundle: Bundle) -> bytes:
        """What containerd 2.3 says on stdin of `start`."""
        subject = self.subject
        subject.sockets.mkdir(mode=0o700, exist_ok=True)
        return bootstrap_pb2.BootstrapParams(
            instance_id=bundle.id,
            namespace=subject.namespace,
            containerd_version="2.3.4",
            containerd_grpc_address=subject.grpc_address,
            containerd_ttrpc_address=subject.ttrpc_address,
            containerd_binary="/bin/true",
            socket_dir=str(subject.sockets),
        ).SerializeToString()

    async def delete(self, bundle: Bundle) -> task_pb2.DeleteResponse:
        """The `delete` call of the binary."""
        answer = await self.run(bundle, "-bundle", str(bundle.path), "delete")
        return task_pb2.DeleteResponse.FromString(answer)

    # the shim

    async def connect(self, bundle: Bundle) -> Shim:
        """A connection to the shim that serves a bundle, which was started."""
        made = self._made[bundle.id]
        assert made.bootstrap is not None
        self.doing = f"connect to {made.bootstrap.address}"
        shim = await Shim.connect(id=bundle.id, namespace=self.subject.namespace, bootstrap=made.bootstrap)
        self._shims.append(shim)
        made.server = process.identify(await shim.check_version())
        return shim

    async def launched(self, arguments: tuple[str, ...] = SLEEP, *, terminal: bool = False) -> tuple[Bundle, Shim]:
        """A shim for a container that is not made yet."""
        bundle = self.bundle(arguments, terminal=terminal)
        await self.start(bundle)
        return bundle, await self.connect(bundle)

    async def created(self, bundle: Bundle, shim: Shim, stdio: StdioPaths | None = None) -> int:
        """Make the container of a bundle, on a bind mount of the root file system; its pid."""
        self.doing = f"Create of {bundle.id}"
        root = Mount(type="bind", source=str(self.subject.rootfs), options=("rbind", "ro"))
        pid = await shim.tasks.create(bundle.id, bundle=str(bundle.path), rootfs=(root,), stdio=stdio or StdioPaths())
        self._made[bundle.id].trace = await self.host.trace(bundle.id, pid, "", frozenset({"pid", "mnt", "ipc"}))
        return pid

    async def running(
        self, arguments: tuple[str, ...] = SLEEP, *, stdio: StdioPaths | None = None, terminal: bool = False
    ) -> tuple[Bundle, Shim, int]:
        """A container that was started, its shim and its pid."""
        bundle, shim = await self.launched(arguments, terminal=terminal)
        pid = await self.created(bundle, shim, stdio)
        self.doing = f"Start of {bundle.id}"
        await shim.tasks.start(bundle.id)
        return bundle, shim, pid

    def server(self, bundle: Bundle) -> process.ProcessId:
        """The process that serves a bundle."""
        server = self._made[bundle.id].server
        assert server is not None
        return server

    async def is_gone(self, server: process.ProcessId) -> bool:
        """Whether a process has ended, or does so within the time to settle."""
        return await self.soon(lambda: not _lives(server))

    async def soon(self, holds: Callable[[], bool]) -> bool:
        """Whether a condition holds within the time to settle."""
        deadline = time.monotonic() + self.subject.settle_s
        while True:
            if holds():
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(ASK_AGAIN_S)

    async def bounded(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """What `work` gives, which it must within the subject's time."""
        return await in_time(work, within=self.subject.within_s, what=what)

    def on_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the check is over."""
        self._ends.append(undo)

    def exec_spec(self, *arguments: str) -> bytes:
        """The JSON of a process for Exec."""
        return json.dumps(oci_process(arguments)).encode()

    # the end

    async def clean_up(self) -> tuple[str, ...]:
        """End containers and shims, politely first; what had to be forced, and what is left, in words."""
        found: list[str] = []
        for undo in self._ends:
            undo()
        self._ends.clear()
        for made in self._made.values():
            if made.bootstrap is not None:
                found += await self._end(made)
        for shim in self._shims:
            await shim.aclose()
        for made in self._made.values():
            found += await self._remove(made)
        self._made.clear()
        self._shims.clear()
        return tuple(found)

    async def _end(self, made: _Made) -> list[str]:
        """Kill and delete the container, shut the shim down, call `delete`: what a daemon does."""
        found: list[str] = []
        bundle = made.bundle
        for shim in [shim for shim in self._shims if shim.id == bundle.id and not shim.client.is_closed][:1]:
            with contextlib.suppress(errors.AtollError):
                await in_time(self._delete_task(shim, bundle.id), within=self.subject.within_s, what="clean-up")
        try:
            await self.delete(bundle)
        except (errors.AtollError, ValueError) as error:
            if _has_container(bundle):
                found.append(f"delete of {bundle.id}: {told(error)}")
        if made.server is not None and not await self.is_gone(made.server):
            if process.send_signal(made.server, signal.SIGKILL):
                found.append(f"process {made.server.pid}, which serves {bundle.id}, had to be killed")
            await self.is_gone(made.server)
        return found

    async def _delete_task(self, shim: Shim, container_id: str) -> None:
        try:
            await shim.tasks.kill(container_id, signal.SIGKILL, all_processes=True)
            await shim.tasks.wait(container_id)
        except errors.AtollError:
            pass
        with contextlib.suppress(errors.AtollError):
            await shim.tasks.delete(container_id)
        await shim.tasks.shutdown(container_id)

    async def _remove(self, made: _Made) -> list[str]:
        bundle = made.bundle
        trace = made.trace or Trace(sandbox_id=bundle.id)
        deadline = time.monotonic() + self.subject.settle_s
        while True:
            left = await self.host.left(trace)
            if not left or time.monotonic() >= deadline:
                break
            await asyncio.sleep(ASK_AGAIN_S)
        found = [f"{one} of {bundle.id}" for one in left]
        for pid, ticks in trace.processes:
            process.send_signal(
                process.ProcessId(pid=pid, start_ticks=ticks, boot_id=process.boot_id()), signal.SIGKILL
            )
        await asyncio.to_thread(remove_mounted_tree, bundle.path)
        if made.bootstrap is not None:
            self._remove_socket(made.bootstrap.address)
        return found

    def _remove_socket(self, address: str) -> None:
        """A shim that was killed leaves its socket."""
        with contextlib.suppress(errors.AtollError, OSError):
            name = addresses.socket_names(address)[0]
            if name.startswith("/"):
                os.unlink(name)


def _has_container(bundle: Bundle) -> bool:
    return bool(os.listdir(bundle.rootfs)) if bundle.rootfs.exists() else False


def _lives(server: process.ProcessId) -> bool:
    seen = process.stat(server.pid)
    return seen is not None and seen.start_ticks == server.start_ticks and seen.state not in "ZX"
