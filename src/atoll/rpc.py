"""gRPC services from their descriptors, and the unix socket that they are served on.

One handler a method, one place where errors become statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from atoll import errors, tracing
from atoll.api.status import to_status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Each way, as containerd has it."""
MAX_PENDING_REQUESTS = 1 << 20
MAX_TRAILER_BYTES = 3500
"""Of an error's text, and of its details: a client takes 8 KiB of both together."""
DETAILS_KEY = "grpc-status-details-bin"
"""Where gRPC carries a whole google.rpc.Status."""
FileId = tuple[int, int]
"""Device and inode."""


class Activity(Protocol):
    """Told of every call, so that an idle daemon can know that it is."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Unwatched:
    """The `Activity` of a server whose calls nobody counts."""

    def begin(self) -> None:
        """Nothing to count."""

    def end(self) -> None:
        """Nothing to count."""


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

    Every call but of the `ungated` methods, named alone or in full, waits for the `gate`. A unary method is
    `async def Name(self, request, context)`, a streaming one an async generator.
    """
    found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        work = getattr(implementation, method.name, None)
        if work is not None:
            is_open = method.name in ungated or method.full_name in ungated
            found[method.name] = _handler(method, work, activity, _open if is_open else gate)
    return grpc.method_handlers_generic_handler(service.full_name, found)


def _handler(
    method: MethodDescriptor, work: Callable[..., Any], activity: Activity, gate: Gate
) -> grpc.RpcMethodHandler[Any, Any]:
    # A single request is decoded in the call, where what is none becomes InvalidArgument and not gRPC's own Internal.
    parse: Callable[[bytes], Message] = GetMessageClass(method.input_type).FromString
    decode = parse if method.client_streaming else None
    if not method.client_streaming:
        work = _decoding(method.full_name, parse, work, streams=inspect.isasyncgenfunction(work))
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


def _decoding(
    name: str, parse: Callable[[bytes], Message], work: Callable[..., Any], *, streams: bool
) -> Callable[..., Any]:
    """`work` on the bytes of its request; raises `InvalidArgument` for what is no such message."""

    def request(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError as error:
            raise errors.InvalidArgument(f"{name}: the request is none of its messages: {error}") from error

    async def one(data: bytes, context: Context) -> Message:
        return await work(request(data), context)

    async def many(data: bytes, context: Context) -> AsyncGenerator[Message]:
        async with contextlib.aclosing(work(request(data), context)) as messages:
            async for message in messages:
                yield message

    return many if streams else one


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(name: str, work: Callable[..., Awaitable[Message]], activity: Activity, gate: Gate) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Message:
        activity.begin()
        _take_up_trace(context)
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
        _take_up_trace(context)
        try:
            await gate()
            async with contextlib.aclosing(work(request, context)) as messages:
                async for message in messages:
                    await context.write(message)
        except grpc.aio.InternalError as error:
            log.debug("%s: its reader has gone: %s", name, error)
        except Exception as error:  # noqa: BLE001  the one boundary where errors become statuses
            await _abort(name, error, context)
        finally:
            activity.end()

    return call


def _take_up_trace(context: Context) -> None:
    """Each call is answered in a task of its own, so what is set here is set for it alone."""
    for key, value in context.invocation_metadata() or ():
        if key == tracing.HEADER and isinstance(value, str):
            tracing.PARENT.set(tracing.parse(value))


async def _abort(name: str, error: Exception, context: Context) -> Any:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, errors.AtollError):
        await context.abort(_CODES[error.code], _cut(str(error)), *_details(error))
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error) or "the time ran out")
    mark = secrets.token_hex(4)
    log.error("%s failed (%s)", name, mark, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"internal error {mark}: {type(error).__name__}; see the server's log"
    )


def _cut(text: str) -> str:
    """What of a text fits into a trailer, where all but printable ASCII is percent-encoded."""
    text, left = text[:MAX_TRAILER_BYTES].encode("utf-8", "replace").decode(), MAX_TRAILER_BYTES
    for at, letter in enumerate(text):
        left -= 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())
        if left < 0:
            return text[:at]
    return text


def _details(error: errors.AtollError) -> tuple[tuple[tuple[str, bytes]], ...]:
    """The trailing metadata of an error that has more to tell, as the last argument of `abort`; else nothing."""
    if not error.joined and not error.details:
        return ()
    whole = to_status(error).SerializeToString()
    return (((DETAILS_KEY, whole),),) if len(whole) <= MAX_TRAILER_BYTES * 3 // 4 else ()


# The server and its socket


def make_server() -> grpc.aio.Server:
    """A server that takes messages as large as containerd's do, and shares its socket with nobody."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            # Else a burst of calls is answered in part with CANCELLED, which ends a Wait of containerd's for good.
            ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
        ]
    )


def add_services(
    server: grpc.aio.Server,
    services: Mapping[ServiceDescriptor, object],
    activity: Activity,
    *,
    gate: Gate = _open,
    ungated: frozenset[str] = frozenset(),
    readiness: Readiness | None = None,
) -> None:
    """Serve `services`, each with its implementation, reflection over them, and health, which follows `readiness`."""
    names = [service.full_name for service in services]
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    served: dict[ServiceDescriptor, object] = {**services}
    served[health] = Health(names, readiness)  # pyright: ignore[reportArgumentType]  its stubs name the C class
    ungated |= {f"{health.full_name}.{method}" for method in ("Check", "Watch")}
    server.add_generic_rpc_handlers(
        [handlers(service, work, activity, gate=gate, ungated=ungated) for service, work in served.items()]
    )
    _add_reflection(server, (*names, str(health.full_name)))


def _add_reflection(server: grpc.aio.Server, names: tuple[str, ...]) -> None:
    """Reflection in both versions, whose messages are the same on the wire; the package has the older one."""
    newer = _newer_reflection()
    every = (*names, reflection.SERVICE_NAME, newer)
    reflection.enable_server_reflection(every, server)
    method = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(every).ServerReflectionInfo,  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]  untyped
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=_encode,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(newer, {"ServerReflectionInfo": method})])


@functools.cache
def _newer_reflection() -> str:
    """Make the file of grpc.reflection.v1 known, so that reflection can tell of itself; its service's name."""
    package = str(reflection_pb2.DESCRIPTOR.package)
    newer = package.removesuffix("alpha")
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = f"{newer.replace('.', '/')}/reflection.proto", newer
    for message in file.message_type:
        for field in (one for one in message.field if one.type_name):
            field.type_name = field.type_name.replace(f".{package}.", f".{newer}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{package}.", f".{newer}.")
        method.output_type = method.output_type.replace(f".{package}.", f".{newer}.")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return f"{newer}.{file.service[0].name}"


class Readiness(Protocol):
    """Whether a server has taken up all that it is to serve."""

    @property
    def is_recovered(self) -> bool: ...

    async def recovered(self) -> None: ...


class Health:
    """grpc.health.v1.Health: what is served is healthy once the server is ready, for as long as the socket answers."""

    def __init__(self, names: list[str], readiness: Readiness | None = None) -> None:
        self._names = {"", *names}
        self._readiness = readiness

    async def Check(  # noqa: N802  the name of its .proto file
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            raise errors.NotFound(f"service {request.service!r}: is not served here")
        return self._answer()

    async def Watch(  # noqa: N802  the name of its .proto file
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse]:
        """The status, then every change of it; never ends by itself."""
        if request.service not in self._names:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        else:
            first = self._answer()
            yield first
            if self._readiness is not None and first.status != health_pb2.HealthCheckResponse.SERVING:
                await self._readiness.recovered()
                yield self._answer()
        await asyncio.Event().wait()

    def _answer(self) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        is_serving = self._readiness is None or self._readiness.is_recovered
        return health_pb2.HealthCheckResponse(status=states.SERVING if is_serving else states.NOT_SERVING)


def bind(server: grpc.aio.Server, path: Path, *, over: bool = False) -> FileId:
    """Listen on a socket of mode 0600 that was never open to others, and tell which file it is.

    A dead socket at `path` is replaced, `over` a live one too, in one instant. Raises `FailedPrecondition` for
    a live one else, and for a file that is none.
    gRPC makes a socket with the rights that the umask leaves, so it is made in a folder of its owner's alone, then
    moved. The folder is named by its descriptor, so that no path is too long for the moment.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not over:
            _claim(path)
        folder = Path(tempfile.mkdtemp(prefix=".atoll-", dir=path.parent))
    except OSError as error:
        raise errors.FailedPrecondition(f"socket {path}: cannot be listened on: {error.strerror}") from error
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.add_insecure_port(f"unix:/proc/self/fd/{fd}/{folder.name}")
        os.chmod(folder / folder.name, 0o600)
        bound = file_id(folder / folder.name)
        os.rename(folder / folder.name, path)
    except (RuntimeError, OSError) as error:
        raise errors.FailedPrecondition(f"socket {path}: cannot be listened on: {error}") from error
    finally:
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)
    return bound


def bind_port(server: grpc.aio.Server, target: str) -> None:
    """Listen on what gRPC's core can name and is no file, such as `vsock:2:1024`."""
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise errors.FailedPrecondition(f"{target}: cannot be listened on: {error}") from error
    if not port:
        raise errors.FailedPrecondition(f"{target}: cannot be listened on")


def file_id(path: Path) -> FileId:
    """Which file is there now, a link not followed."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def unlink_own(path: Path, bound: FileId) -> None:
    """Remove our socket, and not the one of a server that has the path by now."""
    with contextlib.suppress(FileNotFoundError):
        if file_id(path) == bound:
            path.unlink()


def _claim(path: Path) -> None:
    """Make way for our socket: a dead one is removed, a live one is another server's."""
    if not _is_socket(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))  # answered by the kernel, at once
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and has a full queue
    raise errors.FailedPrecondition(f"socket {path}: another server listens on it; choose another path")


def _is_socket(path: Path) -> bool:
    """Whether a socket is there; what is there and none is not ours to remove."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise errors.FailedPrecondition(f"socket {path}: there is a file which is no socket; choose another path")
    return True
