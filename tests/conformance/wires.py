"""The same subject through a wire: its controller served at an address in this process, and called by `remote`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from atoll.sandbox.controller import Controller, Sandbox
from atoll.sandbox.serving import listening
from atoll.testing.conformance import Subject
from atoll.testing.conformance.remote import PlainController

GRPC, TTRPC = "grpc", "ttrpc"


class Served:
    """Who serves a controller now; `restart` ends that and serves another one."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = AsyncExitStack()

    async def begin(self, controller: Controller) -> None:
        await self._stack.enter_async_context(listening(controller, self._address))

    async def end(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def through(subject: Subject, wire: str, folder: Path) -> AsyncGenerator[Subject]:
    """`subject` behind a socket in `folder`; a restart of it ends every connection."""
    address = f"{wire}+unix://{folder}/{wire}.sock"
    served = Served(address)
    await served.begin(subject.controller)
    remote = PlainController(address)

    async def restart(sandboxes: tuple[Sandbox, ...]) -> Controller:
        assert subject.restart is not None
        await served.end()
        await served.begin(await subject.restart(sandboxes))
        return remote

    @asynccontextmanager
    async def another() -> AsyncGenerator[Controller]:
        made = PlainController(address)
        try:
            yield made
        finally:
            await made.aclose()

    try:
        yield replace(
            subject,
            controller=remote,
            name=f"{subject.name} over {wire}",
            restart=restart if subject.restart is not None else None,
            another=another,
        )
    finally:
        await remote.aclose()
        await served.end()
