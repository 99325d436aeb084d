"""The Sandbox service of a shim, in our words."""

from __future__ import annotations

import logging
from typing import TypeVar

from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_runtime_sandbox_v1_pb2 as wire
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    State,
)
from atoll.sandbox.wire import from_any, from_timestamp, to_any, to_mount
from atoll.ttrpc.client import Client
from atoll.ttrpc.service import NAMESPACE_KEY

M = TypeVar("M", bound=Message)
log = logging.getLogger(__name__)

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0
STOP_MARGIN_S = 30.0


class SandboxClient:
    """Calls the sandbox service of the shim of one sandbox."""

    def __init__(self, client: Client, *, namespace: str) -> None:
        self._client = client
        self._metadata = {NAMESPACE_KEY: namespace}

    async def _call(self, method: str, request: Message, kind: type[M], timeout_s: float | None = CALL_TIMEOUT_S) -> M:
        return await self._client.call(SERVICE, method, request, kind, timeout=timeout_s, metadata=self._metadata)

    async def create(self, sandbox_id: str, bundle: str, options: CreateOptions) -> None:
        request = wire.CreateSandboxRequest(
            sandbox_id=sandbox_id,
            bundle_path=bundle,
            rootfs=[to_mount(mount) for mount in options.rootfs],
            options=None if options.options is None else to_any(options.options),
            netns_path=options.netns_path,
            annotations=dict(options.annotations),
        )
        await self._call("CreateSandbox", request, wire.CreateSandboxResponse, START_TIMEOUT_S)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        request = wire.StartSandboxRequest(sandbox_id=sandbox_id)
        answer = await self._call("StartSandbox", request, wire.StartSandboxResponse, START_TIMEOUT_S)
        return ControllerInstance(
            sandbox_id=sandbox_id,
            pid=answer.pid,
            created_at=from_timestamp(answer.created_at),
            spec=from_any(answer.spec) if answer.HasField("spec") else None,
        )

    async def platform(self, sandbox_id: str) -> Platform:
        answer = await self._call("Platform", wire.PlatformRequest(sandbox_id=sandbox_id), wire.PlatformResponse)
        return Platform(
            os=answer.platform.os, architecture=answer.platform.architecture, variant=answer.platform.variant
        )

    async def stop(self, sandbox_id: str, timeout_s: float | None) -> None:
        """End the pod's processes; `timeout_s` goes over the wire in whole seconds, rounded up."""
        seconds = -int(-timeout_s // 1) if timeout_s else 0
        request = wire.StopSandboxRequest(sandbox_id=sandbox_id, timeout_secs=seconds)
        await self._call("StopSandbox", request, wire.StopSandboxResponse, seconds + STOP_MARGIN_S)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        request = wire.WaitSandboxRequest(sandbox_id=sandbox_id)
        answer = await self._call("WaitSandbox", request, wire.WaitSandboxResponse, None)
        return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))

    async def status(self, sandbox_id: str, verbose: bool) -> ControllerStatus:
        request = wire.SandboxStatusRequest(sandbox_id=sandbox_id, verbose=verbose)
        answer = await self._call("SandboxStatus", request, wire.SandboxStatusResponse)
        known = answer.state in set(State)
        return ControllerStatus(
            sandbox_id=sandbox_id,
            state=State(answer.state) if known else State.UNKNOWN,
            reason="" if known else f"the shim reports the state {answer.state!r}",
            pid=answer.pid,
            info=dict(answer.info),
            created_at=from_timestamp(answer.created_at) if answer.HasField("created_at") else None,
            exited_at=from_timestamp(answer.exited_at) if answer.HasField("exited_at") else None,
            extra=from_any(answer.extra) if answer.HasField("extra") else None,
        )

    async def ping(self, sandbox_id: str) -> None:
        await self._call("PingSandbox", wire.PingRequest(sandbox_id=sandbox_id), wire.PingResponse, 2.0)

    async def shutdown(self, sandbox_id: str) -> None:
        request = wire.ShutdownSandboxRequest(sandbox_id=sandbox_id)
        try:
            await self._call("ShutdownSandbox", request, wire.ShutdownSandboxResponse, STOP_MARGIN_S)
        except errors.Unavailable as error:
            if not self._client.is_closed:
                raise
            log.debug("sandbox %s: its shim ended before its answer arrived: %s", sandbox_id, error)

    async def metrics(self, sandbox_id: str) -> Metric:
        request = wire.SandboxMetricsRequest(sandbox_id=sandbox_id)
        answer = await self._call("SandboxMetrics", request, wire.SandboxMetricsResponse)
        return Metric(
            timestamp=from_timestamp(answer.metrics.timestamp),
            id=answer.metrics.id,
            data=from_any(answer.metrics.data),
        )
