"""Serve a controller of one's own: `serve` from a program with a loop, `run` from a script.

On SIGTERM or SIGINT running operations are finished, those whose callers have gone are undone, and every open Wait
ends with its connection: a caller of the kind of containerd asks again until the next process answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from atoll import errors, rpc
from atoll.concurrency import run_to_completion, wait_all
from atoll.sandbox.address import FORMS, TTRPC, Address
from atoll.sandbox.controller import Controller
from atoll.sandbox.service import ControllerService
from atoll.ttrpc.server import Server

GRACE_S = 5.0
"""How long running operations may keep a server up that is told to end; open Waits do not."""
LAST_ANSWERS_S = 0.2
END_TIMEOUT_S = 30.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Stop = Callable[[], Coroutine[Any, Any, None]]


async def serve(controller: Controller, *addresses: str) -> None:
    """Serve `controller` at every one of `addresses` until SIGTERM or SIGINT, or until cancelled.

    `atoll.sandbox.address` has the forms. A unix socket has mode 0600; a dead one at its path is replaced, for a
    live one `FailedPrecondition` is raised. Any sandboxer's name and any namespace is served. With systemd's
    Type=notify the unit is up when the sockets are.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with listening(controller, *addresses):
        for number in SIGNALS:
            loop.add_signal_handler(number, stop.set)
        try:
            _tell_systemd("READY=1")
            await stop.wait()
            _tell_systemd("STOPPING=1")
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def run(controller: Controller | Callable[[], Controller], *addresses: str) -> None:
    """`serve`, blocking, in a loop of its own; a class or function is called in that loop to make the controller.

    A controller that is an async context manager is entered, and left at the end; every one is closed then.
    """
    asyncio.run(_run(controller, addresses))


async def _run(controller: Controller | Callable[[], Controller], addresses: tuple[str, ...]) -> None:
    made = controller if isinstance(controller, Controller) else controller()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.aclose)
        if isinstance(made, contextlib.AbstractAsyncContextManager):
            await stack.enter_async_context(made)
        await serve(made, *addresses)


@contextlib.asynccontextmanager
async def listening(controller: Controller, *addresses: str) -> AsyncGenerator[ControllerService]:
    """Serve `controller` for as long as the context is open; no signal is touched."""
    parsed = [Address.parse(text) for text in addresses]
    if not parsed:
        raise errors.InvalidArgument(f"no address to serve at: give {FORMS}")
    service = ControllerService(lambda namespace, sandboxer: controller)
    stops: list[Stop] = []
    try:
        for address in parsed:
            begin = _begin_ttrpc if address.protocol == TTRPC else _begin_grpc
            stops.append(await begin(address, service))
        yield service
    finally:
        await run_to_completion(_end(service, stops), within=END_TIMEOUT_S)


async def _end(service: ControllerService, stops: list[Stop]) -> None:
    """First what runs, then the connections with their open Waits."""
    await service.operations.drain(GRACE_S)
    await wait_all([stop() for stop in stops])
    await service.aclose()


async def _begin_ttrpc(address: Address, service: ControllerService) -> Stop:
    server = Server()
    for descriptor, work in service.services().items():
        server.add_service(descriptor, work)
    where = address.bind()
    try:
        if isinstance(where, Path):
            where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await server.serve(where)
    except errors.AlreadyExists as error:
        raise errors.FailedPrecondition(str(error)) from error
    except OSError as error:
        raise errors.FailedPrecondition(f"{address}: cannot be listened on: {error.strerror}") from error
    return lambda: server.shutdown(within=LAST_ANSWERS_S)


async def _begin_grpc(address: Address, service: ControllerService) -> Stop:
    server = rpc.make_server()
    rpc.add_services(server, service.services(), rpc.Unwatched())
    if not address.path:
        rpc.bind_port(server, address.target)
        await server.start()
        return lambda: server.stop(LAST_ANSWERS_S)
    path = Path(address.path)
    bound = rpc.bind(server, path)
    await server.start()

    async def stop() -> None:
        rpc.unlink_own(path, bound)
        await server.stop(LAST_ANSWERS_S)

    return stop


def _tell_systemd(state: str) -> None:
    """As sd_notify(3) does; nothing where nobody asked."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
        notify.connect("\0" + name[1:] if name.startswith("@") else name)
        notify.send(state.encode())
