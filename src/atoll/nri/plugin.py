"""One connected plugin.

    connect ──RegisterPlugin──> registered ──Configure──> configured ──Synchronize──> part of every request
       └────────────── closed: it hangs up, breaks the protocol, or does not answer in time ───────────┘

The plugin serves `Plugin` on one connection of the trunk, the runtime `Runtime` on the other. A plugin that does not
answer within the request timeout is closed, and its request goes on without it; an answer that is an error is the
request's error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.nri import mux, trunk
from atoll.ttrpc.calls import ServedConnection
from atoll.ttrpc.client import Client
from atoll.ttrpc.codec import MAX_PAYLOAD_BYTES
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext
from atoll.ttrpc.stream import ClientProtocol
from atoll.ttrpc.transport import FramedProtocol

SAID_LETTERS = 500
"""Of what a plugin gives as a reason."""
log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT", bound=Message)
Updater = Callable[["Plugin", pb.UpdateContainersRequest], Awaitable[pb.UpdateContainersResponse]]

PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME = "nri.pkg.api.v1alpha1.Runtime"
NRI_VERSION = "v0.12.0"
"""The release of NRI whose protocol this is, by which plugins tell what the runtime knows."""
VALID_EVENTS = (1 << (pb.LAST - 1)) - 1
CLOSE_TIMEOUT_S = 1.0
SYNC_BYTES = MAX_PAYLOAD_BYTES - (64 << 10)
"""Most bytes of pods and containers in one message: what is more goes in further ones."""

METHODS: dict[int, str] = {
    pb.RUN_POD_SANDBOX: "RunPodSandbox",
    pb.UPDATE_POD_SANDBOX: "UpdatePodSandbox",
    pb.POST_UPDATE_POD_SANDBOX: "PostUpdatePodSandbox",
    pb.STOP_POD_SANDBOX: "StopPodSandbox",
    pb.REMOVE_POD_SANDBOX: "RemovePodSandbox",
    pb.CREATE_CONTAINER: "CreateContainer",
    pb.POST_CREATE_CONTAINER: "PostCreateContainer",
    pb.START_CONTAINER: "StartContainer",
    pb.POST_START_CONTAINER: "PostStartContainer",
    pb.UPDATE_CONTAINER: "UpdateContainer",
    pb.POST_UPDATE_CONTAINER: "PostUpdateContainer",
    pb.STOP_CONTAINER: "StopContainer",
    pb.REMOVE_CONTAINER: "RemoveContainer",
    pb.VALIDATE_CONTAINER_ADJUSTMENT: "ValidateContainerAdjustment",
}
ANSWERED = frozenset(
    (
        pb.UPDATE_POD_SANDBOX,
        pb.CREATE_CONTAINER,
        pb.UPDATE_CONTAINER,
        pb.STOP_CONTAINER,
        pb.VALIDATE_CONTAINER_ADJUSTMENT,
    )
)
"""Events that older plugins have a method for too; the others reach those by `StateChange`."""

_INDEX = re.compile(r"[0-9]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a plugin is: `index`, two digits, says when it is asked; `name` is of letters, digits and `_.+-`."""

    index: str
    name: str

    @classmethod
    def checked(cls, index: str, name: str) -> Identity:
        """Raises `InvalidArgument` for an index or a name that is none."""
        if not _INDEX.fullmatch(index):
            raise errors.InvalidArgument(f"plugin index {index[:20]!r}: must be two digits")
        if not _NAME.fullmatch(name):
            raise errors.InvalidArgument(f"plugin name {name[:60]!r}: must be of letters, digits and _ . + -")
        return cls(index=index, name=name)

    def __str__(self) -> str:
        return f"{self.index}-{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Both in seconds."""

    registration_s: float
    request_s: float


class Plugin:
    """The runtime's end of a plugin; made by `connect`, ended by `close`.

    `gone` is done when the connection is over. Calls go one at a time: whoever calls sees to that.
    """

    def __init__(self, timeouts: Timeouts, identity: Identity | None, updater: Updater) -> None:
        """Not for callers: use `connect`."""
        self._timeouts = timeouts
        self._identity = identity
        self._updater = updater
        self._client: Client | None = None
        self._trunk: trunk.Trunk | None = None
        self._server = Server(peer_uid=os.geteuid())
        self._server.add_service(pb.DESCRIPTOR.services_by_name["Runtime"], self)
        self._registered: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
        self._without_methods = False
        self._closed = False
        self.events = 0
        self.pid = 0

    @classmethod
    async def connect(
        cls, connection: socket.socket, *, timeouts: Timeouts, updater: Updater, identity: Identity | None = None
    ) -> Plugin:
        """Take a connected socket, which is the plugin's from now on; `identity` where the runtime started it."""
        plugin = cls(timeouts, identity, updater)
        plugin._trunk = await trunk.carry(connection, plugin._protocols)
        assert plugin._client is not None
        plugin.pid = plugin._client.peer_credentials.pid
        return plugin

    def _protocols(self) -> dict[int, FramedProtocol]:
        protocol = ClientProtocol("nri plugin")
        self._client = Client(protocol)
        return {mux.PLUGIN_SERVICE: protocol, mux.RUNTIME_SERVICE: ServedConnection(self._server)}

    def __str__(self) -> str:
        return str(self._identity) if self._identity is not None else f"plugin of process {self.pid}"

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "it is not registered"
        return self._identity

    @property
    def is_closed(self) -> bool:
        return self._closed or self._client is None or self._client.is_closed

    @property
    def gone(self) -> asyncio.Future[None]:
        """A future that is done when the connection is over; cancelling it is harmless."""
        assert self._client is not None
        return self._client.closed

    def wants(self, event: int) -> bool:
        """Whether it has asked to be told of the event."""
        return bool(self.events & 1 << (event - 1)) and not self.is_closed

    # --- what the plugin calls ---

    async def RegisterPlugin(self, request: pb.RegisterPluginRequest, context: CallContext) -> pb.Empty:
        if self._registered.done():
            raise errors.FailedPrecondition(f"{self}: is registered already")
        identity = self._identity or Identity.checked(request.plugin_idx, request.plugin_name)
        self._identity = identity
        self._registered.set_result(identity)
        return pb.Empty()

    async def UpdateContainers(
        self, request: pb.UpdateContainersRequest, context: CallContext
    ) -> pb.UpdateContainersResponse:
        if not self.events:
            raise errors.FailedPrecondition("containers can be updated by a plugin that is registered and configured")
        return await self._updater(self, request)

    # --- the handshake ---

    async def start(self, *, runtime: str, version: str, config: str) -> None:
        """Wait for its registration and configure it; raises where it does neither in time, or not well."""
        await self._register()
        answer = await self._ask(
            "Configure",
            pb.ConfigureRequest(
                config=config,
                runtime_name=runtime,
                runtime_version=version,
                registration_timeout=int(self._timeouts.registration_s * 1000),
                request_timeout=int(self._timeouts.request_s * 1000),
                NRI_version=NRI_VERSION,
            ),
            pb.ConfigureResponse,
        )
        if answer.events & ~VALID_EVENTS:
            raise errors.InvalidArgument(f"nri: {self}: subscribes to events that there are not: {answer.events:#x}")
        self.events = answer.events or VALID_EVENTS

    async def _register(self) -> None:
        gone = self.gone
        try:
            await asyncio.wait(
                {self._registered, gone},
                timeout=self._timeouts.registration_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            gone.cancel()
        if self._registered.done():
            return
        if self.is_closed:
            raise errors.Unavailable(f"nri: {self}: hung up before it registered")
        raise errors.DeadlineExceeded(
            f"nri: {self}: did not register within {self._timeouts.registration_s:g} s of its connection"
        )

    async def synchronize(
        self, pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container]
    ) -> list[pb.ContainerUpdate]:
        """Tell it everything there is, within one request timeout; the updates that it asks for."""
        deadline = asyncio.get_running_loop().time() + self._timeouts.request_s
        for request in split(pods, containers):
            left = max(deadline - asyncio.get_running_loop().time(), 0.0)
            answer = await self._ask("Synchronize", request, pb.SynchronizeResponse, timeout_s=left)
            if not request.more:
                return list(answer.update)
            if answer.update or not answer.more:
                raise errors.FailedPrecondition(f"nri: {self}: cannot be told everything in more than one message")
        raise errors.Internal("a synchronisation has a last message")

    # --- what it is told and asked ---

    async def call(self, event: int, request: Message, answer: type[AnswerT]) -> AnswerT | None:
        """Ask it about an event; None where it did not subscribe, has nothing to say, or was closed for it.

        Raises `FailedPrecondition` where it answers with an error.
        """
        if not self.wants(event):
            return None
        method = METHODS[event]
        try:
            return await self._invoke(event, method, request, answer)
        except errors.Unimplemented:
            log.debug("nri: %s: has subscribed to %s and does not serve it", self, method)
            return None
        except (errors.DeadlineExceeded, errors.Unavailable) as error:
            log.error("nri: plugin %s is closed, it has failed to handle %s: %s", self, method, error)
            await self.close()
            return None
        except errors.AtollError as error:
            raise errors.FailedPrecondition(f"nri plugin {self}: {method}: {in_short(str(error))}") from error

    async def _invoke(self, event: int, method: str, request: Message, answer: type[AnswerT]) -> AnswerT:
        """By the event's own method, or by the one method that older plugins have for all that need no answer."""
        if not self._without_methods or event in ANSWERED:
            try:
                return await self._ask(method, request, answer)
            except errors.Unimplemented:
                if event in ANSWERED:
                    raise
        change = pb.StateChangeEvent(event=pb.Event.Name(event), pod=getattr(request, "pod", None))
        change.container.MergeFrom(getattr(request, "container", pb.Container()))
        await self._ask("StateChange", change, pb.Empty)
        if not self._without_methods:
            self._without_methods = True
            log.warning("nri: plugin %s is of an older version: events reach it by StateChange", self)
        return answer()

    async def validate(self, request: pb.ValidateContainerAdjustmentRequest) -> None:
        """Ask it whether an adjustment may be made; raises `FailedPrecondition` where not, or where it cannot tell."""
        try:
            answer = await self._ask("ValidateContainerAdjustment", request, pb.ValidateContainerAdjustmentResponse)
        except errors.AtollError as error:
            if isinstance(error, errors.DeadlineExceeded | errors.Unavailable):
                log.error("nri: plugin %s is closed, it has failed to validate: %s", self, error)
                await self.close()
            why = in_short(str(error))
            raise errors.FailedPrecondition(f"nri plugin {self}: cannot validate the adjustment: {why}") from error
        if answer.reject:
            raise errors.FailedPrecondition(
                f"nri plugin {self}: rejects the adjustment: {in_short(answer.reason) or 'it gives no reason'}"
            )

    async def shutdown(self) -> None:
        """Tell it that the runtime ends, and close it."""
        if not self.is_closed:
            try:
                await self._ask("Shutdown", pb.Empty(), pb.Empty, timeout_s=CLOSE_TIMEOUT_S)
            except errors.AtollError as error:
                log.debug("nri: %s: Shutdown: %s", self, error)
        await self.close()

    async def close(self) -> None:
        """End the connection; idempotent. Requests that wait fail as `Unavailable`."""
        self._closed = True
        if self._client is not None and self._trunk is not None:
            self._client.close()
            self._trunk.abort()  # one that hangs does not read what is left for it either
            await self._server.shutdown(within=0.0)
            await self._client.aclose()

    async def _ask(
        self, method: str, request: Message, answer: type[AnswerT], timeout_s: float | None = None
    ) -> AnswerT:
        assert self._client is not None
        within = self._timeouts.request_s if timeout_s is None else timeout_s
        return await self._client.call(PLUGIN, method, request, answer, timeout=within)


def split(
    pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container], limit: int = SYNC_BYTES
) -> list[pb.SynchronizeRequest]:
    """The messages that tell of all of these, each of at most `limit` bytes; `more` in all but the last."""
    requests = [pb.SynchronizeRequest()]
    size = 0
    for one in (*pods, *containers):
        length = one.ByteSize() + 16  # a tag and a length, whatever they are
        if size and size + length > limit:
            requests[-1].more = True
            requests.append(pb.SynchronizeRequest())
            size = 0
        size += length
        if isinstance(one, pb.PodSandbox):
            requests[-1].pods.append(one)
        else:
            requests[-1].containers.append(one)
    return requests


def in_short(text: str) -> str:
    """What a plugin says, fit for the text of a status: one line, and not without end."""
    words = " ".join(text[: 4 * SAID_LETTERS].split())
    return words if len(words) <= SAID_LETTERS else f"{words[:SAID_LETTERS]}..."
