"""The face of controllers on the wires: containerd's Controller service and ours beside it, on gRPC and ttrpc alike.

A handler translates and nothing else: `find` chooses the controller, `Operations` orders what changes a sandbox. It
has what containerd's own front lacks: Platform, and every field of the answers of Start and Status.

A caller that goes away ends its own Wait, Status, Platform, Metrics or Ping. A Create or Start that it leaves is
finished, then undone; any other change is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar

from google.protobuf.descriptor import ServiceDescriptor

from atoll import errors
from atoll.api import atoll_sandbox_v1_pb2 as own
from atoll.api import containerd_services_sandbox_v1_pb2 as wire
from atoll.identifiers import is_identifier, require_identifier
from atoll.sandbox.controller import Controller
from atoll.sandbox.operations import Key, Operations
from atoll.sandbox.waits import SharedWaits
from atoll.sandbox.wire import (
    from_create,
    from_sandbox,
    to_exit,
    to_instance,
    to_metric,
    to_platform,
    to_status,
)
from atoll.ttrpc.service import NAMESPACE_KEY, CallContext

T = TypeVar("T")

NAMESPACE_HEADER = "containerd-namespace"
CALL_TIMEOUT_S = 60.0
STOP_MARGIN_S = 30.0
"""For a controller that hangs (C47): every call but Wait, and what a Stop may take over its own time-out."""

Find: TypeAlias = Callable[[str, str], Controller]
"""From a containerd namespace and the name of a sandboxer to the controller.

Raises `InvalidArgument` for an empty name where one is needed, `NotFound` for one that is not known.
"""


class GrpcContext(Protocol):
    """What is used of gRPC's context, which this module can do without."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


Context: TypeAlias = CallContext | GrpcContext


class UnknownID(errors.NotFound):
    """No sandbox can have this ID: what ends one has nothing to do."""


class _Named(Protocol):
    """What most requests have."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def sandboxer(self) -> str: ...


class ControllerService:
    """Serves what `find` finds; a state of its own it has only while operations run. End it with `aclose`."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self.operations = Operations()
        self._waits = SharedWaits("sandbox service")

    def services(self) -> dict[ServiceDescriptor, object]:
        """What to register, with a gRPC server or a ttrpc one: both services, this object for each."""
        return {
            wire.DESCRIPTOR.services_by_name["Controller"]: self,
            own.DESCRIPTOR.services_by_name["Controller"]: self,
        }

    async def aclose(self) -> None:
        """Let running operations end, bounded; those whose callers have gone are undone. Idempotent."""
        await self._waits.aclose()
        await self.operations.aclose()

    def _enter(self, request: _Named, context: Context, sandboxer: str = "") -> tuple[Controller, Key]:
        """The controller of a request, and the sandbox that it is about; `NotFound` for an ID that none can have."""
        namespace = namespace_of(context)
        controller = self._find(namespace, request.sandboxer or sandboxer)
        if not is_identifier(request.sandbox_id):
            raise UnknownID(f"sandbox {request.sandbox_id[:100]!r}: is not known")
        return controller, (namespace, request.sandbox_id)

    # containerd.services.sandbox.v1.Controller

    async def Create(self, request: wire.ControllerCreateRequest, context: Context) -> wire.ControllerCreateResponse:
        namespace = namespace_of(context)
        sandbox, options = from_create(request)
        key = namespace, require_identifier(sandbox.id, "sandbox id")
        controller = self._find(namespace, request.sandboxer or sandbox.sandboxer)

        async def create() -> None:
            await self.operations.settle_debt(key)
            await controller.create(sandbox, options)

        await self.operations.run(
            key, "create", create, within=CALL_TIMEOUT_S, undo=lambda: controller.shutdown(sandbox.id)
        )
        return wire.ControllerCreateResponse(sandbox_id=sandbox.id)

    async def Start(self, request: wire.ControllerStartRequest, context: Context) -> wire.ControllerStartResponse:
        controller, key = self._enter(request, context)
        sandbox_id = request.sandbox_id
        instance = await self.operations.run(
            key,
            "start",
            lambda: controller.start(sandbox_id),
            within=CALL_TIMEOUT_S,
            undo=lambda: controller.shutdown(sandbox_id),
        )
        return to_instance(instance)

    async def Platform(
        self, request: wire.ControllerPlatformRequest, context: Context
    ) -> wire.ControllerPlatformResponse:
        controller, _ = self._enter(request, context)
        platform = await _bounded(controller.platform(request.sandbox_id), "platform")
        return wire.ControllerPlatformResponse(platform=to_platform(platform))

    async def Stop(self, request: wire.ControllerStopRequest, context: Context) -> wire.ControllerStopResponse:
        try:
            controller, key = self._enter(request, context)
        except UnknownID:
            return wire.ControllerStopResponse()
        timeout_s = float(request.timeout_secs) if request.timeout_secs else None
        await self.operations.run(
            key,
            "stop",
            lambda: controller.stop(request.sandbox_id, timeout_s),
            within=STOP_MARGIN_S + (timeout_s or 0.0),
            ends=True,
        )
        return wire.ControllerStopResponse()

    async def Wait(self, request: wire.ControllerWaitRequest, context: Context) -> wire.ControllerWaitResponse:
        controller, key = self._enter(request, context)
        ended = await self._waits.join((key, request.sandboxer), lambda: controller.wait(request.sandbox_id))
        return to_exit(ended)

    async def Status(self, request: wire.ControllerStatusRequest, context: Context) -> wire.ControllerStatusResponse:
        controller, _ = self._enter(request, context)
        return to_status(await _bounded(controller.status(request.sandbox_id, request.verbose), "status"))

    async def Shutdown(
        self, request: wire.ControllerShutdownRequest, context: Context
    ) -> wire.ControllerShutdownResponse:
        try:
            controller, key = self._enter(request, context)
        except UnknownID:
            return wire.ControllerShutdownResponse()

        async def shutdown() -> None:
            await controller.shutdown(request.sandbox_id)
            self.operations.forgive(key)

        await self.operations.run(key, "shutdown", shutdown, within=CALL_TIMEOUT_S, ends=True)
        return wire.ControllerShutdownResponse()

    async def Metrics(self, request: wire.ControllerMetricsRequest, context: Context) -> wire.ControllerMetricsResponse:
        controller, _ = self._enter(request, context)
        metric = await _bounded(controller.metrics(request.sandbox_id), "metrics")
        return wire.ControllerMetricsResponse(metrics=to_metric(metric))

    async def Update(self, request: wire.ControllerUpdateRequest, context: Context) -> wire.ControllerUpdateResponse:
        """containerd's own client leaves `sandboxer` empty here, so the record's stands in."""
        controller, key = self._enter(request, context, request.sandbox.sandboxer)
        if not request.HasField("sandbox"):
            raise errors.InvalidArgument(f"sandbox {request.sandbox_id}: an update needs the sandbox's record")
        record = type(request.sandbox)()
        record.CopyFrom(request.sandbox)
        if record.sandbox_id not in ("", request.sandbox_id):
            raise errors.InvalidArgument(
                f"sandbox {request.sandbox_id}: the record sent with it is of sandbox {record.sandbox_id}"
            )
        record.sandbox_id = request.sandbox_id
        sandbox, fields = from_sandbox(record, sandboxer=request.sandboxer), tuple(request.fields)
        await self.operations.run(
            key,
            "update",
            lambda: controller.update(request.sandbox_id, sandbox, fields),
            within=CALL_TIMEOUT_S,
        )
        return wire.ControllerUpdateResponse()

    # atoll.sandbox.v1.Controller

    async def Pause(self, request: own.PauseRequest, context: Context) -> own.PauseResponse:
        controller, key = self._enter(request, context)
        await self.operations.run(key, "pause", lambda: controller.pause(request.sandbox_id), within=CALL_TIMEOUT_S)
        return own.PauseResponse()

    async def Resume(self, request: own.ResumeRequest, context: Context) -> own.ResumeResponse:
        controller, key = self._enter(request, context)
        await self.operations.run(key, "resume", lambda: controller.resume(request.sandbox_id), within=CALL_TIMEOUT_S)
        return own.ResumeResponse()

    async def Ping(self, request: own.PingRequest, context: Context) -> own.PingResponse:
        controller, _ = self._enter(request, context)
        await _bounded(controller.ping(request.sandbox_id), "ping")
        return own.PingResponse()


async def _bounded(question: Coroutine[Any, Any, T], what: str) -> T:
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await question
    except TimeoutError as error:
        raise errors.DeadlineExceeded(f"{what}: the controller did not answer within {CALL_TIMEOUT_S:g} s") from error


def namespace_of(context: Context) -> str:
    """The containerd namespace of a call; `FailedPrecondition` without one, `InvalidArgument` for a bad one."""
    found: str | bytes | None
    if isinstance(context, CallContext):
        header, found = NAMESPACE_KEY, context.namespace
    else:
        header = NAMESPACE_HEADER
        found = next((value for key, value in context.invocation_metadata() or () if key == header), None)
    if not found:
        raise errors.FailedPrecondition(f"namespace is required: send it as {header!r}")
    return require_identifier(found if isinstance(found, str) else found.decode("utf-8", "replace"), "namespace")
