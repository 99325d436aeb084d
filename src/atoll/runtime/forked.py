"""Our own shims: forked by the zygote, found again by their records."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking
from atoll.linux import process
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import LaunchRequest, Shim
from atoll.runtime.zygote import Zygote
from atoll.sandbox.controller import ExitStatus
from atoll.shim import records
from atoll.shim.request import RuntimeChoice, ShimRequest

log = logging.getLogger(__name__)

TASK_API_VERSION = 3
KILL_TIMEOUT_S = 5.0


class AtollLauncher:
    """Forks our shim from the zygote; implements `Launcher`.

    `runtime` is the OCI runtime that every shim of this launcher drives.
    """

    def __init__(
        self, zygote: Zygote, *, sockets: Path, runtime: RuntimeChoice, events_address: str, blocking: Blocking
    ) -> None:
        self._zygote = zygote
        self._sockets = sockets
        self._runtime = runtime
        self._events_address = events_address
        self._blocking = blocking

    def _socket(self, request: LaunchRequest) -> Path:
        # Short, because sun_path ends at 108 bytes; derived, so that whoever finds the socket can tell whose it is.
        name = hashlib.sha256(f"{request.namespace}/{request.id}".encode()).hexdigest()[:32]
        return self._sockets / name

    async def launch(self, request: LaunchRequest) -> Shim:
        path = self._socket(request)
        forked = await self._zygote.fork(
            ShimRequest(
                id=request.id,
                namespace=request.namespace,
                bundle=str(request.bundle.path),
                socket=str(path),
                ttrpc_address=self._events_address,
                runtime=self._runtime,
            )
        )
        os.close(forked.pidfd)
        bootstrap = Bootstrap(version=TASK_API_VERSION, address=f"unix://{path}")
        return await Shim.connect(id=request.id, namespace=request.namespace, bootstrap=bootstrap)

    async def reconnect(self, request: LaunchRequest) -> Shim:
        bootstrap = Bootstrap.load(request.bundle.path)
        return await Shim.connect(id=request.id, namespace=request.namespace, bootstrap=bootstrap)

    async def delete(self, request: LaunchRequest) -> ExitStatus | None:
        """End the shim where it still lives, then its socket and bundle."""
        await self._kill(request)
        self._socket(request).unlink(missing_ok=True)
        await self._blocking.run(request.bundle.delete)
        return None

    async def _kill(self, request: LaunchRequest) -> None:
        record = records.read(request.bundle.path / records.SHIM, records.ShimRecord)
        if record is None:
            return
        shim = process.open_pidfd(
            process.ProcessId(pid=record.pid, start_ticks=record.start_ticks, boot_id=record.boot_id)
        )
        if shim is None:
            return
        try:
            log.warning("shim %s: still runs as pid %d, killed", request.id[:13], record.pid)
            signal.pidfd_send_signal(shim, signal.SIGKILL)
            await _gone(shim, KILL_TIMEOUT_S)
        except ProcessLookupError:
            return
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"shim {request.id}: pid {record.pid} did not end within {KILL_TIMEOUT_S:g} s of SIGKILL"
            ) from None
        finally:
            os.close(shim)


async def _gone(pidfd: int, within: float) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, lambda: ended.done() or ended.set_result(None))
    try:
        await asyncio.wait_for(ended, within)
    finally:
        loop.remove_reader(pidfd)
