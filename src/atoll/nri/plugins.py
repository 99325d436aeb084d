"""All plugins: who joins, in which order they are asked, and who is let go.

A plugin joins while nothing changes: `changing` is entered by whoever makes or starts something, from before plugins
are asked until it can be listed, and a synchronisation waits for those who are in and holds up those who come. So a
plugin knows each pod and container from the list or from an event, never from both or neither.

One request at a time goes to the plugins, by their index: a plugin that hangs costs everybody its timeout once, and is
closed. Where no plugin wants an event nothing of this is entered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.concurrency import Blocking, TaskOwner, wait_all
from atoll.nri import installed
from atoll.nri.merge import Creation, Updates
from atoll.nri.plugin import Plugin, Timeouts
from atoll.ttrpc import address

log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT", bound=Message)

MAX_PLUGINS = 64
STILL_TIMEOUT_S = 10.0
"""How long a plugin that joins waits for creations and starts under way, while others wait for it."""
ACCEPT_PAUSE_S = 0.5
"""After a connection could not be accepted, such as for a lack of descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where plugins come from; `socket` None accepts no connections."""

    runtime: str
    version: str
    socket: Path | None
    plugin_path: Path
    config_path: Path
    timeouts: Timeouts


class Runtime(Protocol):
    """What plugins are shown, and what they may ask for beside their answers."""

    async def listed(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """Every pod and container that a plugin which joins has to know."""
        ...

    async def update(self, plugin: str, updates: list[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        """Change limits of containers; those updates that failed."""
        ...

    async def evict(self, plugin: str, evictions: list[pb.ContainerEviction]) -> None:
        """Stop containers, behind the caller."""
        ...


class Plugins:
    """Made once; `start` lets plugins in, `aclose` lets all go."""

    def __init__(self, settings: Settings, *, blocking: Blocking) -> None:
        self._settings = settings
        self._blocking = blocking
        self._tasks = TaskOwner("nri")
        self._plugins: list[Plugin] = []
        self._processes: dict[Plugin, installed.Process] = {}
        self._runtime: Runtime | None = None
        self._bound: int | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._joining = asyncio.Lock()
        self._changes = 0
        self._still = asyncio.Event()
        self._still.set()
        self._open = asyncio.Event()
        self._open.set()

    def __len__(self) -> int:
        return len(self._plugins)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are asked, in that order."""
        return tuple(map(str, self._plugins))

    # --- who joins ---

    async def start(self, runtime: Runtime) -> None:
        """Start the installed plugins, wait until each is synchronised or has failed, then accept others.

        A plugin or a socket that fails is logged: pods run without it.
        """
        self._runtime = runtime
        found = await self._blocking.run(installed.find, self._settings.plugin_path, self._settings.config_path)
        await wait_all([self._start_installed(one) for one in found[:MAX_PLUGINS]])
        if self._settings.socket is not None:
            try:
                listener = await self._blocking.run(self._listen, self._settings.socket)
            except (errors.AtollError, OSError) as error:
                log.error("nri: no plugin can connect: %s", error)
                return
            self._accepting = self._tasks.spawn(self._accept(listener), name="nri/accept")

    async def _start_installed(self, one: installed.Installed) -> None:
        try:
            connection, process = installed.launch(one)
        except errors.FailedPrecondition as error:
            log.error("nri: %s", error)
            return
        plugin = await Plugin.connect(
            connection, timeouts=self._settings.timeouts, updater=self._update, identity=one.identity
        )
        plugin.pid = process.pid  # the kernel's word for a pair is whoever made it
        self._processes[plugin] = process
        await self._join(plugin, one.config)

    def _listen(self, path: Path) -> socket.socket:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = address.bind(path)
        self._bound = address.inode(path)
        listener.listen(address.LISTEN_BACKLOG)
        listener.setblocking(False)
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.error("nri: cannot accept a plugin: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                if len(self._tasks) > MAX_PLUGINS:
                    log.error("nri: a plugin is turned away: %d are connected", MAX_PLUGINS)
                    connection.close()
                    continue
                self._tasks.spawn(self._admit(connection), name="nri/plugin")
        finally:
            listener.close()

    async def _admit(self, connection: socket.socket) -> None:
        plugin = await Plugin.connect(connection, timeouts=self._settings.timeouts, updater=self._update)
        await self._join(plugin, "")

    async def _join(self, plugin: Plugin, config: str) -> None:
        """Have a connected plugin be part of every request from now on, or be closed."""
        try:
            await plugin.start(runtime=self._settings.runtime, version=self._settings.version, config=config)
            async with self._joining:
                updates = await self._synchronized(plugin)
            self._tasks.spawn(self._part(plugin), name=f"nri/{plugin}")
            log.info("nri: plugin %s (process %d) has joined: %s", plugin, plugin.pid, ", ".join(self.names))
        except TimeoutError:
            log.error("nri: plugin %s does not join: no pause between creations in %g s", plugin, STILL_TIMEOUT_S)
            await self._let_go(plugin)
            return
        except errors.AtollError as error:
            log.error("nri: plugin %s does not join: %s", plugin, error)
            await self._let_go(plugin)
            return
        except BaseException:
            await self._let_go(plugin)
            raise
        if updates:
            await self._update(plugin, pb.UpdateContainersRequest(update=updates))

    async def _synchronized(self, plugin: Plugin) -> list[pb.ContainerUpdate]:
        assert self._runtime is not None
        self._open.clear()
        try:
            async with asyncio.timeout(STILL_TIMEOUT_S):
                while self._changes:
                    self._still.clear()
                    await self._still.wait()
            async with self._asking:
                updates = await plugin.synchronize(*await self._runtime.listed())
                self._plugins.append(plugin)
                self._plugins.sort(key=lambda one: (one.identity.index, one.identity.name))
        finally:
            self._open.set()
        return updates

    async def _part(self, plugin: Plugin) -> None:
        """Forget a plugin when it is gone."""
        await plugin.gone
        log.info("nri: plugin %s has gone", plugin)
        await self._let_go(plugin)

    async def _let_go(self, plugin: Plugin) -> None:
        if plugin in self._plugins:
            self._plugins.remove(plugin)
        await plugin.close()
        process = self._processes.pop(plugin, None)
        if process is not None:
            await process.end()

    async def aclose(self) -> None:
        """Tell every plugin that the runtime ends, and end those that were started here. Idempotent."""
        if self._accepting is not None:
            self._accepting.cancel()
        plugins, self._plugins = self._plugins, []
        await wait_all([plugin.shutdown() for plugin in plugins])
        await wait_all([self._let_go(plugin) for plugin in plugins])
        await self._tasks.aclose()
        await wait_all([process.end() for process in self._processes.values()])
        path = self._settings.socket
        if path is not None and self._bound is not None:
            with contextlib.suppress(FileNotFoundError):
                if address.inode(path) == self._bound:
                    path.unlink()

    # --- what changes ---

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncGenerator[None]:
        """Something is being made that a plugin which joins now could neither be listed nor told."""
        while not self._open.is_set():
            await self._open.wait()
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            if not self._changes:
                self._still.set()

    # --- what plugins are asked ---

    def wants(self, event: int) -> bool:
        """Whether any plugin subscribed to the event."""
        return any(plugin.wants(event) for plugin in self._plugins)

    async def tell(self, event: int, request: Message, answer: type[Message]) -> None:
        """Ask each plugin about an event that changes nothing; raises `FailedPrecondition` where one refuses."""
        async with self._asking:
            for plugin in tuple(self._plugins):
                await plugin.call(event, request, answer)

    async def create(self, request: pb.CreateContainerRequest) -> Creation:
        """What all plugins together make of a container; `request` changes.

        Raises `FailedPrecondition` for a conflict of two, and where one refuses or rejects.
        """
        async with self._asking:
            plugins = tuple(self._plugins)
            validators = [plugin for plugin in plugins if plugin.wants(pb.VALIDATE_CONTAINER_ADJUSTMENT)]
            pristine = pb.ValidateContainerAdjustmentRequest(pod=request.pod)
            pristine.container.CopyFrom(request.container)
            made = Creation(request)
            for plugin in plugins:
                pristine.plugins.add(name=plugin.identity.name, index=plugin.identity.index)
                answer = await plugin.call(pb.CREATE_CONTAINER, request, pb.CreateContainerResponse)
                if answer is not None:
                    made.apply(answer, str(plugin))
            if validators:
                pristine.adjust.CopyFrom(made.adjust)
                pristine.update.extend(made.updates.others)
                pristine.owners.CopyFrom(made.owners.message())
                await wait_all([validator.validate(pristine) for validator in validators])
            return made

    async def update(self, request: pb.UpdateContainerRequest) -> Updates:
        """What all plugins together make of new limits; `request.linux_resources` has those of the container after."""
        merged = Updates(own=(request.container.id, request.linux_resources))
        return await self._collect(pb.UPDATE_CONTAINER, request, pb.UpdateContainerResponse, merged)

    async def stop(self, request: pb.StopContainerRequest) -> Updates:
        """What plugins change of other containers, now that one has ended."""
        return await self._collect(pb.STOP_CONTAINER, request, pb.StopContainerResponse, Updates())

    async def _collect(
        self,
        event: int,
        request: Message,
        kind: type[pb.UpdateContainerResponse | pb.StopContainerResponse],
        merged: Updates,
    ) -> Updates:
        async with self._asking:
            for plugin in tuple(self._plugins):
                answer = await plugin.call(event, request, kind)
                if answer is not None:
                    merged.apply(answer.update, str(plugin))
                if isinstance(answer, pb.UpdateContainerResponse):
                    merged.evictions.extend(answer.evict)
        return merged

    async def _update(self, plugin: Plugin, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
        """What a plugin asks for of its own accord; it goes on where the plugin hangs up."""
        work = self._tasks.spawn(self._updated(plugin, request), name=f"nri/{plugin}/update")
        return await asyncio.shield(work)

    async def _updated(self, plugin: Plugin, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
        assert self._runtime is not None
        failed = await self._runtime.update(str(plugin), list(request.update))
        await self._runtime.evict(str(plugin), list(request.evict))
        return pb.UpdateContainersResponse(failed=failed)
