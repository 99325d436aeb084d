"""The `shim` sandboxer: one shim a sandbox, asked through its Sandbox service.

What it holds in memory can be had again from the bundle: `recover` connects to the shim of a
sandbox that an earlier daemon started.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, run_to_completion
from atoll.runtime.bundle import Bundle
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
    Sandbox,
    State,
)

log = logging.getLogger(__name__)

CLEANUP_TIMEOUT_S = 60.0
HANG_UP_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Held:
    request: LaunchRequest
    shim: Shim | None
    instance: ControllerInstance | None = None
    exit: ExitStatus | None = None


class ShimController(Controller):
    """Drives any shim that serves `containerd.runtime.sandbox.v1.Sandbox`, ours or another's.

    `bundles` is where each sandbox's bundle is made, as `<bundles>/<id>`.
    """

    def __init__(self, *, launcher: Launcher, bundles: Path, namespace: str, blocking: Blocking) -> None:
        self._launcher = launcher
        self._bundles = bundles
        self._namespace = namespace
        self._blocking = blocking
        self._held: dict[str, _Held] = {}

    def _request(self, sandbox: Sandbox) -> LaunchRequest:
        bundle = Bundle(id=sandbox.id, namespace=self._namespace, path=self._bundles / sandbox.id)
        return LaunchRequest(id=sandbox.id, namespace=self._namespace, runtime=sandbox.runtime, bundle=bundle)

    def _get(self, sandbox_id: str) -> _Held:
        held = self._held.get(sandbox_id)
        if held is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this sandboxer")
        return held

    def _shim(self, sandbox_id: str) -> Shim:
        shim = self._get(sandbox_id).shim
        if shim is None or shim.client.is_closed:
            raise errors.Unavailable(f"sandbox {sandbox_id}: its shim is gone")
        return shim

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if sandbox.id in self._held:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        request = self._request(sandbox)
        held = self._held[sandbox.id] = _Held(request=request, shim=None)
        spec = sandbox.spec.value if sandbox.spec is not None else None
        try:
            await self._blocking.run(request.bundle.create, spec)
            held.shim = await self._launcher.launch(request)
            await held.shim.sandbox.create(sandbox.id, str(request.bundle.path), options)
        except BaseException as error:
            await self._undo(held, error)
            raise

    async def start(self, sandbox_id: str) -> ControllerInstance:
        held = self._get(sandbox_id)
        if held.instance is not None:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")
        shim = self._shim(sandbox_id)
        try:
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
        shim = held.shim
        if shim is not None and not shim.client.is_closed:
            try:
                await shim.sandbox.shutdown(held.request.id)
                await shim.wait_closed(HANG_UP_TIMEOUT_S)
            except errors.AtollError as error:
                log.warning("sandbox %s: its shim refused to shut down: %s", held.request.id, error)
            await shim.aclose()
        held.shim = None
        await self._launcher.delete(held.request)
        self._held.pop(held.request.id, None)

    async def platform(self, sandbox_id: str) -> Platform:
        return await self._shim(sandbox_id).sandbox.platform(sandbox_id)

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        held = self._held.get(sandbox_id)
        if held is None or held.shim is None or held.shim.client.is_closed:
            return
        try:
            await held.shim.sandbox.stop(sandbox_id, timeout_s)
        except (errors.NotFound, errors.Unavailable) as error:
            log.info("sandbox %s: stop found nothing to stop: %s", sandbox_id, error)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        held = self._get(sandbox_id)
        if held.exit is None:
            held.exit = await self._wait(held)
        return held.exit

    async def _wait(self, held: _Held) -> ExitStatus:
        try:
            return await self._shim(held.request.id).sandbox.wait(held.request.id)
        except errors.Unavailable:
            if held.exit is not None:
                return held.exit
            return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC))

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        held = self._get(sandbox_id)
        created_at = held.instance.created_at if held.instance is not None else None
        shim = held.shim
        if shim is None or shim.client.is_closed:
            exited_at = held.exit.exited_at if held.exit is not None else None
            return ControllerStatus(
                sandbox_id=sandbox_id,
                state=State.NOTREADY,
                created_at=created_at,
                exited_at=exited_at,
                reason="the shim is gone",
            )
        status = await shim.sandbox.status(sandbox_id, verbose)
        return replace(
            status,
            created_at=status.created_at or created_at,
            address=shim.bootstrap.endpoint,
            version=shim.bootstrap.version,
        )

    async def shutdown(self, sandbox_id: str) -> None:
        held = self._held.get(sandbox_id)
        if held is not None:
            await self._free(held)

    async def metrics(self, sandbox_id: str) -> Metric:
        return await self._shim(sandbox_id).sandbox.metrics(sandbox_id)

    async def ping(self, sandbox_id: str) -> None:
        await self._shim(sandbox_id).sandbox.ping(sandbox_id)

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Connect again to the shim of a sandbox that an earlier daemon made; what is known of it now.

        A shim that is gone leaves a sandbox that can be shut down; raises `NotFound` where there is no
        bundle either.
        """
        request = self._request(sandbox)
        if not request.bundle.path.is_dir():
            raise errors.NotFound(f"sandbox {sandbox.id}: has no bundle at {request.bundle.path}")
        held = self._held[sandbox.id] = _Held(request=request, shim=None)
        try:
            held.shim = await self._launcher.reconnect(request)
        except (errors.NotFound, errors.Unavailable, errors.DataLoss) as error:
            return ControllerStatus(sandbox_id=sandbox.id, state=State.NOTREADY, reason=str(error))
        status = await self.status(sandbox.id)
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
            if held.shim is not None:
                await held.shim.aclose()
