"""A controller behind an address as a subject: gRPC or ttrpc, as `atoll.sandbox.address` names them."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from atoll import errors
from atoll.api import containerd_services_sandbox_v1_pb2 as wire
from atoll.api.cri_runtime_v1_pb2 import NamespaceMode, NamespaceOption, PodSandboxConfig
from atoll.sandbox.controller import Controller, ControllerInstance, CreateOptions, Runtime, Sandbox, TypedAny
from atoll.sandboxers.remote import RemoteController
from atoll.testing.conformance.bounded import in_time
from atoll.testing.conformance.host import LinuxHost
from atoll.testing.conformance.subject import WITHIN_S, Subject
from atoll.testing.conformance.workload import ask_tasks, runs_busybox

CONFIG_TYPE = "runtime.v1.PodSandboxConfig"
END_WITHIN_S = 60.0
"""For a shutdown, and for a stop beyond its own time-out."""
RESTART_WITHIN_S = 60.0
ASK_AGAIN_S = 0.1
KILLED = 128 + signal.SIGKILL


def host_network() -> PodSandboxConfig:
    """A pod that needs nothing of its host but namespaces."""
    config = PodSandboxConfig()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    return config


def read_config(text: str) -> PodSandboxConfig:
    """A pod's config from JSON, with the names of CRI; raises `InvalidArgument`."""
    try:
        return json_format.Parse(text, PodSandboxConfig())
    except json_format.ParseError as error:
        raise errors.InvalidArgument(f"pod config: is no JSON of {CONFIG_TYPE}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a controller answers and what its sandboxes are made of.

    `restart` is a command that restarts the controller's process. A target that is `elsewhere` has its processes on
    another host, or out of this one's sight.
    """

    address: str
    sandboxer: str = ""
    namespace: str = "default"
    runtime: str = ""
    config: PodSandboxConfig = field(default_factory=host_network)
    netns: str = ""
    restart: tuple[str, ...] = ()
    elsewhere: bool = False
    owned_cgroups: tuple[str, ...] = ()
    within_s: float = WITHIN_S

    @property
    def namespaces(self) -> frozenset[str]:
        """The kinds that each of its sandboxes must have for itself."""
        asked = self.config.linux.security_context.namespace_options
        kinds = (("pid", asked.pid), ("ipc", asked.ipc), ("net", asked.network))
        return frozenset(kind for kind, mode in kinds if mode == NamespaceMode.POD)


class PlainController(RemoteController):
    """A remote controller as it answers: `NotFound` of Stop and Shutdown is an error here (C3)."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        seconds = -int(-timeout_s // 1) if timeout_s else 0
        request = wire.ControllerStopRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer, timeout_secs=seconds)
        await self._call("Stop", request, wire.ControllerStopResponse, seconds + END_WITHIN_S)

    async def shutdown(self, sandbox_id: str) -> None:
        request = wire.ControllerShutdownRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        await self._call("Shutdown", request, wire.ControllerShutdownResponse, END_WITHIN_S)


@asynccontextmanager
async def remote(target: Target) -> AsyncGenerator[Subject]:
    """The subject; raises `Unavailable`, `Unimplemented` or what else the controller says where it cannot be asked."""
    options = target.config.linux.security_context.namespace_options
    if options.network == NamespaceMode.POD and not target.netns:
        raise errors.InvalidArgument("the pod's config asks for a network of its own: give the path of its namespace")
    controller = PlainController(target.address, sandboxer=target.sandboxer, namespace=target.namespace)
    folder = Path(tempfile.mkdtemp(prefix="atoll-conformance-"))
    try:
        await _answers(controller, target)
        yield _subject(controller, target, folder)
    finally:
        await controller.aclose()
        shutil.rmtree(folder, ignore_errors=True)


async def _answers(controller: Controller, target: Target) -> None:
    """Ask for what nobody has; any answer but `NotFound` is an error that tells why nothing can be tried."""
    try:
        await in_time(controller.status(secrets.token_hex(16)), within=target.within_s, what=target.address)
    except errors.NotFound:
        return


def _subject(controller: PlainController, target: Target, folder: Path) -> Subject:
    prefix = f"kit{secrets.token_hex(4)}"
    is_near = not target.elsewhere and os.geteuid() == 0

    def config(made: str) -> TypedAny:
        asked = PodSandboxConfig()
        asked.CopyFrom(target.config)
        asked.metadata.name, asked.metadata.uid = made[:60], made[:60]
        asked.metadata.namespace = asked.metadata.namespace or "default"
        return TypedAny(type_url=CONFIG_TYPE, value=asked.SerializeToString())

    def refused(made: str) -> CreateOptions:
        wanted = PodSandboxConfig()
        wanted.CopyFrom(target.config)
        wanted.linux.security_context.namespace_options.CopyFrom(NamespaceOption())
        value = TypedAny(type_url=CONFIG_TYPE, value=wanted.SerializeToString())
        return CreateOptions(options=value, netns_path=str(folder / "no-such-netns"))

    async def tasks(instance: ControllerInstance) -> int:
        return await ask_tasks(instance, target.namespace)

    async def restart(sandboxes: tuple[Sandbox, ...]) -> Controller:
        await _restart(controller, target)
        return controller

    @asynccontextmanager
    async def another() -> AsyncGenerator[Controller]:
        made = PlainController(target.address, sandboxer=target.sandboxer, namespace=target.namespace)
        try:
            yield made
        finally:
            await made.aclose()

    return Subject(
        controller=controller,
        name=target.address,
        sandbox=lambda made: Sandbox(id=made, sandboxer=target.sandboxer, runtime=Runtime(name=target.runtime)),
        options=lambda made: CreateOptions(options=config(made), netns_path=target.netns),
        refused=refused,
        end=_kill if is_near else None,
        host=LinuxHost(target.owned_cgroups) if is_near else None,
        namespaces=target.namespaces,
        tasks=tasks if is_near else None,
        populate=runs_busybox(folder, target.namespace) if is_near else None,
        restart=restart if target.restart else None,
        another=another,
        prefix=prefix,
        within_s=target.within_s,
    )


async def _kill(instance: ControllerInstance) -> int:
    os.kill(instance.pid, signal.SIGKILL)
    return KILLED


async def _restart(controller: Controller, target: Target) -> None:
    """Run the command and wait until the controller answers again."""
    process = await asyncio.create_subprocess_exec(*target.restart, stdin=asyncio.subprocess.DEVNULL)
    if await process.wait() != 0:
        raise errors.Unknown(f"{target.restart[0]}: exit status {process.returncode}")
    deadline = time.monotonic() + RESTART_WITHIN_S
    while True:
        try:
            await _answers(controller, target)
        except errors.Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(ASK_AGAIN_S)
        else:
            return
