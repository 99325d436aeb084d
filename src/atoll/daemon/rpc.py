"""gRPC services from their descriptors: one handler a method, one place where errors become statuses."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll import errors

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Activity(Protocol):
    """Told of every call, so that an idle daemon can know that it is."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


Gate = Callable[[], Awaitable[None]]
"""Awaited before a call, such as until the daemon knows what an earlier one left."""


async def _open() -> None:
    """A gate that is never shut."""


def handlers(
    service: ServiceDescriptor,
    implementation: object,
    activity: Activity,
    *,
    gate: Gate = _open,
    ungated: frozenset[str] = frozenset(),
) -> grpc.GenericRpcHandler:
    """The methods of `service` that `implementation` has; gRPC itself answers Unimplemented for the others.

    Every call but of the `ungated` methods waits for the `gate`. A unary method is
    `async def Name(self, request, context)`, a streaming one an async generator.
    """
    found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        work = getattr(implementation, method.name, None)
        if work is not None:
            found[method.name] = _handler(method, work, activity, _open if method.name in ungated else gate)
    return grpc.method_handlers_generic_handler(service.full_name, found)


def _handler(
    method: MethodDescriptor, work: Callable[..., Any], activity: Activity, gate: Gate
) -> grpc.RpcMethodHandler[Any, Any]:
    decode: Callable[[bytes], Message] = GetMessageClass(method.input_type).FromString
    streams = inspect.isasyncgenfunction(work)
    if streams != method.server_streaming:
        raise TypeError(f"{method.full_name}: a server stream needs an async generator, anything else a coroutine")
    if method.server_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(_streaming(method.full_name, work, activity, gate), decode, _encode)
    make_unary = (
        grpc.stream_unary_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
    )
    return make_unary(_unary(method.full_name, work, activity, gate), decode, _encode)


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(name: str, work: Callable[..., Awaitable[Message]], activity: Activity, gate: Gate) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Message:
        activity.begin()
        try:
            await gate()
            return await work(request, context)
        except Exception as error:  # noqa: BLE001  the one boundary where errors become statuses
            return await _abort(name, error, context)
        finally:
            activity.end()

    return call


def _streaming(
    name: str, work: Callable[..., AsyncGenerator[Message]], activity: Activity, gate: Gate
) -> Callable[..., Any]:
    """A coroutine, so that a client that leaves while a message waits for it cancels the work in here.

    In a generator gRPC would be cancelled outside of it, and its clean-up left to the garbage collector.
    """

    async def call(request: Any, context: Context) -> None:
        activity.begin()
        try:
            await gate()
            async with contextlib.aclosing(work(request, context)) as messages:
                async for message in messages:
                    await context.write(message)
        except Exception as error:  # noqa: BLE001  the one boundary where errors become statuses
            await _abort(name, error, context)
        finally:
            activity.end()

    return call


async def _abort(name: str, error: Exception, context: Context) -> Any:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, errors.AtollError):
        await context.abort(_CODES[error.code], str(error))
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error) or "the time ran out")
    mark = secrets.token_hex(4)
    log.error("%s failed (%s)", name, mark, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"internal error {mark}: {type(error).__name__}; see the daemon's log"
    )
