"""The `shim` sandboxer: one shim a sandbox, asked through its Sandbox service.

What it holds in memory can be had again from the bundle: `recover` connects to the shim of a
sandbox that an earlier daemon started.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, Latch, run_to_completion
from atoll.identifiers import is_identifier, require_identifier
from atoll.runtime.bundle import Bundle
from atoll.runtime.link import Link
from atoll.runtime.shim import Launcher, LaunchRequest, Shim
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Runtime,
    Sandbox,
    State,
)

log = logging.getLogger(__name__)

CLEANUP_TIMEOUT_S = 60.0
HANG_UP_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Held:
    request: LaunchRequest
    link: Link
    instance: ControllerInstance | None = None
    platform: Platform | None = None
    is_stopped: bool = False
    exit: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])


class ShimController(Controller):
    """Drives any shim that serves `containerd.runtime.sandbox.v1.Sandbox`, ours or another's.

    `bundles` is where each sandbox's bundle is made, as `<bundles>/<id>`. A failed create or start takes everything
    of the sandbox away; the ID is then unknown, unless `CleanupFailed` says that `shutdown` has something left to do.
    """

    def __init__(self, *, launcher: Launcher, bundles: Path, namespace: str, blocking: Blocking) -> None:
        self._launcher = launcher
        self._bundles = bundles
        self._namespace = namespace
        self._blocking = blocking
        self._held: dict[str, _Held] = {}

    def _hold(self, sandbox_id: str, runtime: Runtime) -> _Held:
        path = self._bundles / require_identifier(sandbox_id, "sandbox id")
        bundle = Bundle(id=sandbox_id, namespace=self._namespace, path=path)
        request = LaunchRequest(id=sandbox_id, namespace=self._namespace, runtime=runtime, bundle=bundle)
        return _Held(request=request, link=Link(self._launcher, request))

    def _get(self, sandbox_id: str) -> _Held:
        held = self._held.get(sandbox_id)
        if held is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this sandboxer")
        return held

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if sandbox.id in self._held:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        held = self._held[sandbox.id] = self._hold(sandbox.id, sandbox.runtime)
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

    async def start(self, sandbox_id: str) -> ControllerInstance:
        held = self._get(sandbox_id)
        if held.is_stopped or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended; create another one")
        if held.instance is not None:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")
        try:
            shim = await held.link.shim()
            instance = await shim.sandbox.start(sandbox_id)
        except BaseException as error:
            await self._undo(held, error)
            raise
        held.instance = replace(instance, address=shim.bootstrap.endpoint, version=shim.bootstrap.version)
        return held.instance

    async def _undo(self, held: _Held, cause: BaseException) -> None:
        """Take back a failed create or start; what cannot be taken back is named and left to `shutdown`."""
        try:
            await run_to_completion(self._free(held), within=CLEANUP_TIMEOUT_S)
        except errors.AtollError as error:
            log.warning("sandbox %s: clean-up after a failed start: %s", held.request.id, error)
            if isinstance(cause, errors.AtollError):
                raise CleanupFailed(cause, (f"shim of sandbox {held.request.id}: {error}",)) from cause

    async def _free(self, held: _Held) -> None:
        """Everything of one sandbox: asked of the shim first, taken without it where it does not answer."""
        sandbox_id = held.request.id
        try:
            shim = await held.link.shim()
            await shim.sandbox.shutdown(sandbox_id)
            await shim.wait_closed(HANG_UP_TIMEOUT_S)
        except errors.AtollError as error:
            log.info("sandbox %s: is freed without its shim: %s", sandbox_id, error)
        await held.link.aclose()
        await self._launcher.delete(held.request)
        held.exit.set(_unknown_exit())  # whoever still waits is told
        self._held.pop(sandbox_id, None)

    async def platform(self, sandbox_id: str) -> Platform:
        held = self._get(sandbox_id)
        if held.platform is None:
            held.platform = await held.link.ask(lambda shim: shim.sandbox.platform(sandbox_id))
        return held.platform

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        held = self._held.get(sandbox_id)
        if held is None:
            return
        held.is_stopped = True
        try:
            await held.link.ask(lambda shim: shim.sandbox.stop(sandbox_id, timeout_s))
        except (errors.NotFound, errors.Unavailable) as error:
            log.info("sandbox %s: stop found nothing to stop: %s", sandbox_id, error)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        held = self._get(sandbox_id)
        if not held.exit.is_set:
            try:
                ended = await held.link.ask(lambda shim: shim.sandbox.wait(sandbox_id))
            except (errors.NotFound, errors.Unavailable):
                await self._settle_without_shim(held)
            else:
                held.exit.set(ended)
        return await held.exit.wait()

    async def _settle_without_shim(self, held: _Held) -> None:
        """The exit as the shim recorded it, else one that says that nobody knows; not for a shim that may live."""
        if held.exit.is_set:
            return
        recorded: ExitStatus | None = None
        if held.link.is_gone:
            try:
                recorded = await self._launcher.ended(held.request)
            except errors.DataLoss as error:
                log.warning("sandbox %s: how it ended is lost: %s", held.request.id, error)
        elif held.request.id in self._held and not await self._is_unknown_to_shim(held):
            raise errors.Unavailable(f"sandbox {held.request.id}: its shim cannot be asked now")
        held.exit.set(recorded or _unknown_exit())

    async def _is_unknown_to_shim(self, held: _Held) -> bool:
        try:
            await held.link.ask(lambda shim: shim.sandbox.status(held.request.id, verbose=False))
        except errors.NotFound:
            return True
        return False

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        held = self._get(sandbox_id)
        found: Shim | None = None
        try:
            found = await held.link.shim()
            status = await held.link.ask(lambda shim: shim.sandbox.status(sandbox_id, verbose))
        except errors.AtollError as error:
            return await self._last_known(held, error)
        instance = held.instance
        return replace(
            status,
            created_at=status.created_at or (instance.created_at if instance is not None else None),
            address=found.bootstrap.endpoint,
            version=found.bootstrap.version,
        )

    async def _last_known(self, held: _Held, error: errors.AtollError) -> ControllerStatus:
        instance = held.instance
        is_over = held.link.is_gone or isinstance(error, errors.NotFound)
        if is_over:
            await self._settle_without_shim(held)
        ended = held.exit.value
        return ControllerStatus(
            sandbox_id=held.request.id,
            state=State.NOTREADY if is_over or ended is not None else State.UNKNOWN,
            pid=instance.pid if instance is not None and ended is None else 0,
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
            reason=str(error),
        )

    async def shutdown(self, sandbox_id: str) -> None:
        """As the contract says; also for an ID that it does not know but whose bundle an earlier daemon left."""
        held = self._held.get(sandbox_id)
        if held is None:
            if not is_identifier(sandbox_id):
                return
            held = self._hold(sandbox_id, Runtime(name=""))
            if not held.request.bundle.path.is_dir():
                return
        await self._free(held)

    async def metrics(self, sandbox_id: str) -> Metric:
        return await self._get(sandbox_id).link.ask(lambda shim: shim.sandbox.metrics(sandbox_id))

    async def ping(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        if held.instance is None or held.is_stopped or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")
        await held.link.ask(lambda shim: shim.sandbox.ping(sandbox_id))

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Connect again to the shim of a sandbox that an earlier daemon made; what is known of it now.

        A shim that is gone leaves a sandbox that can be shut down; raises `NotFound` where there is no
        bundle either.
        """
        held = self._held.get(sandbox.id)
        if held is None:
            held = self._hold(sandbox.id, sandbox.runtime)
            if not held.request.bundle.path.is_dir():
                raise errors.NotFound(f"sandbox {sandbox.id}: has no bundle at {held.request.bundle.path}")
            self._held[sandbox.id] = held
        status = await self.status(sandbox.id)
        if held.instance is None and (status.state is State.READY or status.exited_at is not None):
            held.instance = ControllerInstance(
                sandbox_id=sandbox.id,
                pid=status.pid,
                created_at=status.created_at or sandbox.created_at,
                address=status.address,
                version=status.version,
            )
        return status

    async def aclose(self) -> None:
        """Let go of the connections; the sandboxes live on."""
        for held in self._held.values():
            await held.link.aclose()


def _unknown_exit() -> ExitStatus:
    return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC))
