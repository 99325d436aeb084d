"""The `shim` sandboxer: one shim a sandbox, asked through its Sandbox service.

What it holds in memory can be had again from the bundle: `recover` connects to the shim of a
sandbox that an earlier daemon started.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.identifiers import is_identifier, require_identifier
from atoll.runtime.bundle import Bundle
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.link import Link
from atoll.runtime.shim import Launcher
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Runtime,
    Sandbox,
    SandboxInfo,
    State,
    host_platform,
)
from atoll.sandboxers import update as updates
from atoll.sandboxers.held import Held, HeldController, Undoing
from atoll.sandboxers.info import of_record

log = logging.getLogger(__name__)

HANG_UP_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Held(Held):
    platform: Platform | None = None
    was_told: bool = False
    """Its shim has answered that it stopped it."""


class ShimController(HeldController[_Held]):
    """Drives any shim that serves `containerd.runtime.sandbox.v1.Sandbox`, ours or another's.

    `bundles` is where each sandbox's bundle is made, as `<bundles>/<id>`. A failed create or start takes everything
    of the sandbox away; the ID is then unknown, unless `CleanupFailed` says that `shutdown` has something left to do.
    Another's shim cannot pause, and takes of an update only what is told of the record: `Unimplemented` else.
    """

    def __init__(self, *, launcher: Launcher, bundles: Path, namespace: str, blocking: Blocking) -> None:
        super().__init__(launcher=launcher, namespace=namespace, blocking=blocking)
        self._bundles = bundles

    def _hold(self, sandbox: Sandbox) -> _Held:
        path = self._bundles / require_identifier(sandbox.id, "sandbox id")
        request = self._request(sandbox, Bundle(id=sandbox.id, namespace=self._namespace, path=path))
        return _Held(sandbox=sandbox, request=request, link=Link(self._launcher, request))

    # create and start

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if sandbox.id in self._held:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        held = self._held[sandbox.id] = self._hold(sandbox)
        async with held.turn:
            spec = sandbox.spec.value if sandbox.spec is not None else None
            try:
                await self._blocking.run(held.request.bundle.create, spec)
            except errors.AlreadyExists:
                del self._held[sandbox.id]  # of an earlier daemon, and not ours to undo: `recover` or `shutdown` it
                raise
            except BaseException as error:
                await self._undo(held, error)
                raise
            try:
                shim = await self._launcher.launch(held.request)
                held.link = Link(self._launcher, held.request, shim)
                await shim.sandbox.create(sandbox.id, str(held.request.bundle.path), options)
            except BaseException as error:
                await self._undo(held, error)
                raise
            self._watch(held)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_fresh(held)
            try:
                shim = await held.link.shim()
                instance = await shim.sandbox.start(sandbox_id)
            except BaseException as error:
                await self._undo(held, error)
                raise
            bootstrap = shim.bootstrap
            labels = {**held.sandbox.labels, **instance.labels}
            held.instance = replace(instance, labels=labels, address=bootstrap.endpoint, version=bootstrap.version)
            return held.instance

    async def _free(self, held: _Held) -> Undoing:
        """Everything of one sandbox: asked of the shim first, taken without it where it does not answer."""
        undoing = Undoing()
        has_hung_up = False
        try:
            shim = await held.link.shim()
            await shim.sandbox.shutdown(held.id)
            has_hung_up = await shim.wait_closed(HANG_UP_TIMEOUT_S)
        except errors.AtollError as error:
            log.info("sandbox %s: is freed without its shim: %s", held.id, error)
        await held.link.aclose()
        held.link = Link(self._launcher, held.request)
        with undoing.step(f"the pod, shim and bundle of sandbox {held.id}"):
            await self._launcher.delete(held.request, has_hung_up=has_hung_up)
        if not undoing.left:
            self._forget(held)
        return undoing

    # the end

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        held = self._held.get(sandbox_id)
        if held is None:
            return
        async with held.turn:  # behind a start; what comes later finds it stopped
            held.is_stopped = True
        if held.was_told and held.exit.is_set:
            return
        # Not in a turn: a stop that gives less time, or a shutdown, goes ahead of one that still waits.
        try:
            await held.link.ask(lambda shim: shim.sandbox.stop(sandbox_id, timeout_s))
            held.was_told = True
        except (errors.NotFound, errors.Unavailable) as error:
            log.info("sandbox %s: stop found nothing to stop: %s", sandbox_id, error)
            if isinstance(error, errors.Unavailable) and not held.link.is_gone and not held.exit.is_set:
                raise
        except errors.DataLoss as error:
            await self._kill_shim(held, error)
        if held.is_watched:
            await self._ends(held)

    async def _asked_end(self, held: _Held) -> ExitStatus:
        try:
            return await held.link.ask(lambda shim: shim.sandbox.wait(held.id))
        except errors.NotFound as error:
            return await self._recorded_end(held, error)
        except errors.Unavailable as error:
            # One that hangs up each time may be about to end, and may live: only what is gone has ended.
            if not held.link.is_gone:
                raise
            if isinstance(self._launcher, AtollLauncher):
                await self._launcher.kill_left(held.request)
            return await self._recorded_end(held, error)

    async def shutdown(self, sandbox_id: str) -> None:
        """As the contract says; also for an ID that it does not know but whose bundle an earlier daemon left."""
        held = self._held.get(sandbox_id)
        if held is None:
            if not is_identifier(sandbox_id):
                return
            held = self._hold(Sandbox(id=sandbox_id, sandboxer="", runtime=Runtime(name="")))
            if not held.request.bundle.path.is_dir():
                return
        await self._free_all(held)

    # questions

    async def platform(self, sandbox_id: str) -> Platform:
        held = self._get(sandbox_id)
        if held.platform is None and isinstance(self._launcher, AtollLauncher):
            held.platform = host_platform()
        if held.platform is None:
            held.platform = await held.link.ask(lambda shim: shim.sandbox.platform(sandbox_id))
        return held.platform

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        held = self._get(sandbox_id)
        known = self._known(held)
        if known is None or verbose:
            known = await self._asked_status(held, known, verbose=verbose)
        return known

    async def _asked_status(self, held: _Held, known: ControllerStatus | None, *, verbose: bool) -> ControllerStatus:
        try:
            status = await held.link.ask(lambda shim: shim.sandbox.status(held.id, verbose))
        except errors.AtollError as error:
            status = await self._without_shim(held, error)
        else:
            held.doubt = ""
            await self._take_up(held, status)
        told = replace(known or self._told(held, status.state), reason=status.reason, extra=status.extra)
        return replace(told, info=self._info(held, told, status)) if verbose else told

    async def _without_shim(self, held: _Held, error: errors.AtollError) -> ControllerStatus:
        """What is known where the shim does not answer; its end, where it is gone."""
        if held.is_watched and (held.link.is_gone or isinstance(error, errors.NotFound)):
            await self._ends(held)
        state = State.NOTREADY if held.exit.is_set else State.UNKNOWN
        return ControllerStatus(sandbox_id=held.id, state=state, reason=str(error))

    def _info(self, held: _Held, told: ControllerStatus, status: ControllerStatus) -> Mapping[str, str]:
        """What the shim tells, and above it what the record says."""
        try:
            info = SandboxInfo.decode(status.info)
        except errors.DataLoss:
            return status.info  # of another's shim, in its own words
        record = of_record(held.sandbox)
        if not info.process_status:
            info = msgspec.structs.replace(info, pid=told.pid, process_status=_process_status(held, told))
        return {**status.info, **msgspec.structs.replace(info, **record).encode()}

    async def metrics(self, sandbox_id: str) -> Metric:
        held = self._get(sandbox_id)
        self._require_running(held)
        try:
            return await held.link.ask(lambda shim: shim.sandbox.metrics(sandbox_id))
        except (errors.NotFound, errors.Unavailable) as error:
            raise self._still_running(held, error) from error

    async def ping(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        self._require_running(held)
        try:
            await held.link.ask(lambda shim: shim.sandbox.ping(sandbox_id))
        except (errors.NotFound, errors.Unavailable) as error:
            raise self._still_running(held, error) from error

    # changes

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_alive(held)
            wanted = updates.plan(held.sandbox, sandbox, fields)
            if wanted.reaches_the_sandbox:
                await self._update(held, wanted)
            held.sandbox = wanted.sandbox

    async def _update(self, held: _Held, wanted: updates.Update) -> None:
        change = wanted.annotations or updates.AnnotationChange(values={})
        try:
            await held.link.ask(
                lambda shim: shim.own.update(
                    resources=wanted.resources_json,
                    updated=wanted.updated_json,
                    annotations=change.values,
                    removed=change.removed,
                    all_annotations=change.is_all,
                )
            )
        except (errors.NotFound, errors.Unavailable) as error:
            raise self._still_running(held, error) from error

    async def pause(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_running(held)
            try:
                await held.link.ask(lambda shim: shim.own.pause())
            except (errors.NotFound, errors.Unavailable) as error:
                raise self._still_running(held, error) from error

    async def resume(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_running(held)
            try:
                await held.link.ask(lambda shim: shim.own.resume())
            except (errors.NotFound, errors.Unavailable) as error:
                raise self._still_running(held, error) from error

    # restart

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Connect again to the shim of a sandbox that an earlier daemon made; what is known of it now.

        A shim that is gone leaves a sandbox that can be shut down; raises `NotFound` where there is no
        bundle either.
        """
        held = self._held.get(sandbox.id)
        if held is None:
            held = self._hold(sandbox)
            if not held.request.bundle.path.is_dir():
                raise errors.NotFound(f"sandbox {sandbox.id}: has no bundle at {held.request.bundle.path}")
            self._held[sandbox.id] = held
            held.doubt = "it was not asked yet"
            self._watch(held)
        return await self.status(sandbox.id)

    async def _take_up(self, held: _Held, status: ControllerStatus) -> None:
        """What an earlier daemon started, as its shim tells it."""
        if held.instance is None and (status.state is State.READY or status.exited_at is not None):
            shim = await held.link.shim()
            held.instance = ControllerInstance(
                sandbox_id=held.id,
                pid=status.pid,
                created_at=status.created_at or held.sandbox.created_at,
                labels=held.sandbox.labels,
                address=shim.bootstrap.endpoint,
                version=shim.bootstrap.version,
            )
        if status.exited_at is not None and held.is_watched:
            await self._ends(held)


def _process_status(held: _Held, told: ControllerStatus) -> str:
    """Where its shim does not say."""
    if told.state is State.NOTREADY:
        return "deleted" if held.link.is_gone else "stopped" if told.exited_at is not None else "created"
    return "unknown" if told.reason else "running"
