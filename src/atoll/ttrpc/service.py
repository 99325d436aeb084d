"""What a served service is made of: its methods and what a handler learns about its call.

The four shapes of a handler, `request` and `response` being messages of the method's declared types:

    unary             async def State(self, request, context) -> response
    server streaming  async def Watch(self, request, context, send) -> None
    client streaming  async def Upload(self, requests, context) -> response
    both              async def Stream(self, requests, context, send) -> None

`requests` is an async iterator that ends at the client's half-close; `await send(message)` waits while the
connection is full.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll import errors
from atoll.ttrpc.address import PeerCredentials

NAMESPACE_KEY = "containerd-namespace-ttrpc"

Send: TypeAlias = Callable[[Message], Awaitable[None]]
Requests: TypeAlias = AsyncIterator[Message]
# The four shapes differ in their parameters; `Method` says which applies.
Handler: TypeAlias = Callable[..., Awaitable[Message | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method as it is served; `handler` has the shape that the two flags name."""

    handler: Handler
    request_type: type[Message]
    client_streaming: bool = False
    server_streaming: bool = False


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a handler may know about its call.

    `deadline` is in loop time; the handler is cancelled when it passes, and when the peer goes.
    """

    service: str
    method: str
    metadata: Mapping[str, tuple[str, ...]]
    deadline: float | None
    peer: PeerCredentials | None

    @property
    def namespace(self) -> str | None:
        """The containerd namespace that the caller sent, if it did."""
        values = self.metadata.get(NAMESPACE_KEY)
        return values[0] if values else None


def methods_of(descriptor: ServiceDescriptor, implementation: object) -> dict[str, Method]:
    """The methods of `descriptor` that `implementation` has, by name; the others stay unimplemented."""
    methods: dict[str, Method] = {}
    declared: list[MethodDescriptor] = list(descriptor.methods)
    for method in declared:
        handler: Handler | None = getattr(implementation, method.name, None)
        if handler is None:
            continue
        if not callable(handler):
            raise errors.InvalidArgument(f"{descriptor.full_name}/{method.name}: its handler cannot be called")
        methods[method.name] = Method(
            handler=handler,
            request_type=GetMessageClass(method.input_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
    return methods
