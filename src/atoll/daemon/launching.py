"""A launcher for sandboxes whose runtime is their caller's choice."""

from __future__ import annotations

from atoll.engine.drivers import is_foreign
from atoll.runtime.binary import BINARY_FILE
from atoll.runtime.shim import Launcher, LaunchRequest, Shim
from atoll.sandbox.controller import ExitStatus


class LauncherByRuntime:
    """Our own shim where the request's runtime is that, else anybody's program; implements `Launcher`.

    A request that names no runtime, of a sandbox that an earlier daemon left, goes by what is in its bundle.
    """

    def __init__(self, own: Launcher, foreign: Launcher) -> None:
        self._own = own
        self._foreign = foreign

    def _of(self, request: LaunchRequest) -> Launcher:
        name = request.runtime.name
        foreign = is_foreign(name) if name else (request.bundle.path / BINARY_FILE).exists()
        return self._foreign if foreign else self._own

    async def launch(self, request: LaunchRequest) -> Shim:
        return await self._of(request).launch(request)

    async def reconnect(self, request: LaunchRequest) -> Shim:
        return await self._of(request).reconnect(request)

    async def ended(self, request: LaunchRequest) -> ExitStatus | None:
        return await self._of(request).ended(request)

    async def delete(self, request: LaunchRequest, *, has_hung_up: bool = False) -> ExitStatus | None:
        return await self._of(request).delete(request, has_hung_up=has_hung_up)
