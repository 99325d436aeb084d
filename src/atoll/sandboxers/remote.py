"""The `remote` sandboxer: somebody else's controller behind a socket, by gRPC or ttrpc.

It holds nothing of a sandbox: what the other side remembers is what there is, over restarts of either side. A wait
outlives both: it is asked again until it is answered. Every other call has a bound, and fails at once with
`Unavailable` while nobody serves the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]  it ships none

from atoll import errors, faults
from atoll.api import atoll_sandbox_v1_pb2 as own
from atoll.api import containerd_services_sandbox_v1_pb2 as wire
from atoll.api.status import from_status as error_of
from atoll.rpc import DETAILS_KEY, MAX_MESSAGE_BYTES
from atoll.sandbox.address import TTRPC, Address
from atoll.sandbox.controller import (
    NOT_TORN_DOWN,
    TORN_DOWN,
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Sandbox,
    State,
)
from atoll.sandbox.service import NAMESPACE_HEADER
from atoll.sandbox.waits import SharedWaits
from atoll.sandbox.wire import (
    from_exit,
    from_instance,
    from_metric,
    from_platform,
    from_status,
    to_create,
    to_sandbox,
)
from atoll.ttrpc.client import Client
from atoll.ttrpc.service import NAMESPACE_KEY

M = TypeVar("M", bound=Message)
log = logging.getLogger(__name__)

SERVICE = wire.DESCRIPTOR.services_by_name["Controller"].full_name
OWN_SERVICE = own.DESCRIPTOR.services_by_name["Controller"].full_name
DEFAULT_NAMESPACE = "default"

CHANGE_TIMEOUT_S = 65.0
STOP_MARGIN_S = 35.0
QUESTION_TIMEOUT_S = 10.0
PING_TIMEOUT_S = 2.0
"""Bounds for calls of a side that hangs; the first two are over those that the contract gives the other side (C47)."""
CONNECT_TIMEOUT_S = 5.0
CALLS_PER_LINE = 512
UNASKED_LIMIT = 4096
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.128, 4.096
"""Between two tries of a wait, doubled after each; containerd's own client has the same."""


class Wire(Protocol):
    """How calls reach the other side; connects by itself, and again after a loss."""

    async def call(
        self, service: str, method: str, request: Message, answer: type[M], timeout_s: float | None
    ) -> M: ...

    async def aclose(self) -> None: ...


class RemoteController(Controller):
    """Drives a controller that is served at `address` (the forms of `atoll.sandbox.address`).

    `sandboxer` is the name that the other side knows its controller by, sent with every request; a controller that
    stands alone behind its socket takes any. `namespace` is the containerd namespace that its sandboxes live in.
    Nothing is connected before the first call. Errors are the other side's, with their codes; the text of an
    `Unavailable` names the address. End it with `aclose`, which ends no sandbox.
    """

    def __init__(self, address: str, *, sandboxer: str = "", namespace: str = DEFAULT_NAMESPACE) -> None:
        self.address = Address.parse(address)
        self._sandboxer = sandboxer
        self._reached = asyncio.Event()
        # Whose creation never reached anybody, the latest last: there is nothing of them to free.
        self._unasked: dict[str, None] = {}
        self._waits = SharedWaits(f"sandboxer at {self.address}")
        self._wire: Wire
        if self.address.protocol == TTRPC:
            self._wire = TtrpcWire(self.address, namespace)
        else:
            self._wire = GrpcWire(self.address, namespace)

    async def _call(
        self, method: str, request: Message, answer: type[M], timeout_s: float | None = QUESTION_TIMEOUT_S
    ) -> M:
        with faults.step(f"remote/{method}"):
            answered = await self._wire.call(SERVICE, method, request, answer, timeout_s)
        self._reached.set()
        return answered

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        """Raises `Unavailable` where nobody serves the address; such a sandbox is nowhere, and need not be freed."""
        request = to_create(sandbox, options, self._sandboxer or sandbox.sandboxer)
        await self._require_somebody(sandbox.id)
        try:
            await self._call("Create", request, wire.ControllerCreateResponse, CHANGE_TIMEOUT_S)
        except errors.AtollError as error:
            raise _with_left(error) from None

    async def _require_somebody(self, sandbox_id: str) -> None:
        self._unasked.pop(sandbox_id, None)
        try:
            (await self.address.connect(timeout_s=CONNECT_TIMEOUT_S)).close()
        except errors.Unavailable as error:
            self._unasked[sandbox_id] = None
            while len(self._unasked) > UNASKED_LIMIT:
                del self._unasked[next(iter(self._unasked))]
            told = _unavailable(self.address, error)
            raise errors.Unavailable(f"{told}; start the sandboxer, or correct its address") from error

    async def start(self, sandbox_id: str) -> ControllerInstance:
        request = wire.ControllerStartRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        try:
            answer = await self._call("Start", request, wire.ControllerStartResponse, CHANGE_TIMEOUT_S)
        except errors.AtollError as error:
            raise _with_left(error) from None
        return from_instance(answer, sandbox_id)

    async def platform(self, sandbox_id: str) -> Platform:
        request = wire.ControllerPlatformRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        return from_platform((await self._call("Platform", request, wire.ControllerPlatformResponse)).platform)

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """`timeout_s` goes over the wire in whole seconds, rounded up; `NotFound` is nothing to stop."""
        if sandbox_id in self._unasked:
            return
        seconds = -int(-timeout_s // 1) if timeout_s else 0
        request = wire.ControllerStopRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer, timeout_secs=seconds)
        with contextlib.suppress(errors.NotFound):
            await self._call("Stop", request, wire.ControllerStopResponse, seconds + STOP_MARGIN_S)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        """No bound, and no end but an answer: while nobody serves the address it is asked again and again."""
        return await self._waits.join(sandbox_id, lambda: self._wait(sandbox_id))

    async def _wait(self, sandbox_id: str) -> ExitStatus:
        request = wire.ControllerWaitRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        while True:
            asked_at = loop.time()
            try:
                return from_exit(await self._call("Wait", request, wire.ControllerWaitResponse, None))
            except (errors.Unavailable, errors.Cancelled) as error:  # the second: not by us, so the call was cut
                if loop.time() - asked_at > LONGEST_PAUSE_S:
                    pause_s = FIRST_PAUSE_S  # it was answered for a while: this is another loss
                log.info("sandbox %s: its wait is asked again in %g s: %s", sandbox_id, pause_s, error)
            await self._pause(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _pause(self, pause_s: float) -> None:
        """So long, or until another call has found the other side; never shorter than the first pause."""
        self._reached.clear()
        await asyncio.sleep(FIRST_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s - FIRST_PAUSE_S):
                await self._reached.wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        request = wire.ControllerStatusRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer, verbose=verbose)
        return from_status(await self._call("Status", request, wire.ControllerStatusResponse), sandbox_id)

    async def shutdown(self, sandbox_id: str) -> None:
        """`NotFound` is nothing to free."""
        if sandbox_id in self._unasked:
            del self._unasked[sandbox_id]
            return
        request = wire.ControllerShutdownRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        with contextlib.suppress(errors.NotFound):
            await self._call("Shutdown", request, wire.ControllerShutdownResponse, CHANGE_TIMEOUT_S)

    async def metrics(self, sandbox_id: str) -> Metric:
        request = wire.ControllerMetricsRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        return from_metric((await self._call("Metrics", request, wire.ControllerMetricsResponse)).metrics)

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        request = wire.ControllerUpdateRequest(
            sandbox_id=sandbox_id, sandboxer=self._sandboxer, sandbox=to_sandbox(sandbox), fields=fields
        )
        await self._call("Update", request, wire.ControllerUpdateResponse, CHANGE_TIMEOUT_S)

    # What containerd's service lacks: `Unimplemented` where the other side serves containerd's alone.

    async def pause(self, sandbox_id: str) -> None:
        request = own.PauseRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        await self._wire.call(OWN_SERVICE, "Pause", request, own.PauseResponse, CHANGE_TIMEOUT_S)

    async def resume(self, sandbox_id: str) -> None:
        request = own.ResumeRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        await self._wire.call(OWN_SERVICE, "Resume", request, own.ResumeResponse, CHANGE_TIMEOUT_S)

    async def ping(self, sandbox_id: str) -> None:
        """By the state that Status tells where the other side serves containerd's service alone."""
        request = own.PingRequest(sandbox_id=sandbox_id, sandboxer=self._sandboxer)
        try:
            await self._wire.call(OWN_SERVICE, "Ping", request, own.PingResponse, PING_TIMEOUT_S)
        except errors.Unimplemented:
            await super().ping(sandbox_id)

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """What is known of a sandbox that an earlier daemon made; raises `NotFound` where the other side has none.

        One that cannot be asked now is `UNKNOWN` with the reason, and is asked again by whoever wants to know.
        """
        try:
            return await self.status(sandbox.id)
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            return ControllerStatus(sandbox_id=sandbox.id, state=State.UNKNOWN, reason=str(error))

    async def aclose(self) -> None:
        """Let go of the connection, and of who waits: `Unavailable`; the sandboxes live on. Idempotent."""
        await self._waits.aclose()
        await self._wire.aclose()


def _with_left(error: errors.AtollError) -> errors.AtollError:
    """As the other side raised it: what came with a failed create or start is what could not be undone."""
    texts = [str(other) for other in error.joined]
    left = tuple(text.removeprefix(NOT_TORN_DOWN) for text in texts if not text.startswith(TORN_DOWN))
    if not left:
        return error
    undone = tuple(text.removeprefix(TORN_DOWN) for text in texts if text.startswith(TORN_DOWN))
    cause = str(error).partition(f"; {NOT_TORN_DOWN}")[0].partition(f"; {TORN_DOWN}")[0]
    return CleanupFailed(errors.from_status(error.code, cause), left, undone)


# The wires


@dataclass(slots=True, eq=False)
class _Line:
    """One ttrpc connection and how many calls it carries."""

    client: Client
    calls: int = 0


class TtrpcWire:
    """ttrpc: one connection for each `CALLS_PER_LINE` calls, made when it is needed; implements `Wire`.

    A server takes about a thousand calls on one connection, and each sandbox has a Wait that stays open.
    """

    def __init__(self, address: Address, namespace: str) -> None:
        self._address = address
        self._metadata = {NAMESPACE_KEY: namespace}
        self._lines: list[_Line] = []
        self._connecting = asyncio.Lock()
        self._is_closed = False

    def _free(self) -> _Line | None:
        self._lines = [line for line in self._lines if not line.client.is_closed]
        return next((line for line in self._lines if line.calls < CALLS_PER_LINE), None)

    async def _line(self) -> _Line:
        if (line := self._free()) is not None:
            return line
        async with self._connecting:
            if self._is_closed:
                raise errors.Unavailable(f"{self._address}: was let go")
            if (line := self._free()) is None:
                connection = await self._address.connect(timeout_s=CONNECT_TIMEOUT_S)
                line = _Line(await Client.from_socket(connection, peer=str(self._address)))
                self._lines.append(line)
            return line

    async def call(self, service: str, method: str, request: Message, answer: type[M], timeout_s: float | None) -> M:
        try:
            line = await self._line()
            line.calls += 1
            try:
                return await line.client.call(
                    service, method, request, answer, timeout=timeout_s, metadata=self._metadata
                )
            finally:
                line.calls -= 1
        except errors.Unavailable as error:
            raise _unavailable(self._address, error) from error

    async def aclose(self) -> None:
        self._is_closed = True
        for line in self._lines:
            await line.client.aclose()


class GrpcWire:
    """gRPC: a channel, replaced after each loss, so that no back-off of an earlier one delays a call.

    Implements `Wire`.
    """

    def __init__(self, address: Address, namespace: str) -> None:
        self._address = address
        self._metadata = ((NAMESPACE_HEADER, namespace),)
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}
        self._is_closed = False

    def _open(self) -> grpc.aio.Channel:
        if self._is_closed:
            raise errors.Unavailable(f"{self._address}: was let go")
        if self._channel is None:
            self._methods = {}
            self._channel = grpc.aio.insecure_channel(
                self._address.target,
                options=[
                    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the back-off of the old one
                    ("grpc.default_authority", "localhost"),
                    ("grpc.enable_retries", 0),
                ],
            )
        return self._channel

    async def call(self, service: str, method: str, request: Message, answer: type[M], timeout_s: float | None) -> M:
        channel = self._open()
        path = f"/{service}/{method}"
        ask = self._methods.get(path)
        if ask is None:
            ask = self._methods[path] = channel.unary_unary(path, _encode, answer.FromString)
        try:
            return await ask(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            failure = _error_of(error)
            if isinstance(failure, errors.Unavailable):
                await self._replace(channel)
                raise _unavailable(self._address, failure) from None
            raise failure from None

    async def _replace(self, channel: grpc.aio.Channel) -> None:
        """Let go of a channel that could not connect: nothing waits on it, and it would not try again for a while."""
        if channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE and self._channel is channel:
            self._channel = None
            await channel.close()

    async def aclose(self) -> None:
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _unavailable(address: Address, error: errors.Unavailable) -> errors.Unavailable:
    """The same, and where: the text of the kernel or of the other side may not say so."""
    named = errors.Unavailable(str(error) if str(address) in str(error) else f"{address}: {error}")
    named.joined = error.joined
    return named


def _error_of(error: grpc.aio.AioRpcError) -> errors.AtollError:
    """The error that the other side raised, with those joined to it."""
    code, text = error.code().value[0], error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                whole = error_of(status_pb2.Status.FromString(value))
                if whole.code == code:
                    return whole
    return errors.from_status(code, text)
