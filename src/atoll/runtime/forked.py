"""Our own shims: forked by the zygote, found again by their records."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_task_v3_pb2 as wire
from atoll.concurrency import Blocking, run_to_completion
from atoll.linux.process import PidfdSpawner, Spawner
from atoll.runtime import ending, hung, program
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import LaunchRequest, Shim
from atoll.runtime.zygote import ForkedShim, Zygote, ZygoteEnded
from atoll.sandbox.controller import ExitStatus
from atoll.sandbox.wire import from_timestamp
from atoll.shim import cleanup, records
from atoll.shim.request import RuntimeChoice, ShimRequest

log = logging.getLogger(__name__)

TASK_API_VERSION = 3
DELETE_TIMEOUT_S = 30.0
ROOM_BYTES = 32 << 10
"""What the records and the first lines of the log of a shim take, in pages."""
UNDO_TIMEOUT_S = 10.0


class AtollLauncher:
    """Forks our shim from the zygote; implements `Launcher`.

    `runtime` is the OCI runtime that every shim of this launcher drives; `sockets` the folder of their sockets,
    whose path must be short, for sun_path ends at 108 bytes.
    """

    def __init__(
        self,
        zygote: Zygote,
        *,
        sockets: Path,
        runtime: RuntimeChoice,
        events_address: str,
        blocking: Blocking,
        spawner: Spawner | None = None,
    ) -> None:
        self._zygote = zygote
        self._sockets = sockets
        self._runtime = runtime
        self._events_address = events_address
        self._blocking = blocking
        self._spawner = spawner or PidfdSpawner()

    def _socket(self, request: LaunchRequest) -> Path:
        # Derived, so that whoever finds the socket can tell whose it is.
        name = hashlib.sha256(f"{request.namespace}/{request.id}".encode()).hexdigest()[:32]
        return self._sockets / name

    async def launch(self, request: LaunchRequest) -> Shim:
        path = self._socket(request)
        _require_room(request.bundle.path)
        _have_folder(path.parent)
        asked = ShimRequest(
            id=request.id,
            namespace=request.namespace,
            bundle=str(request.bundle.path),
            socket=str(path),
            ttrpc_address=self._events_address,
            runtime=self._runtime,
        )
        try:
            forked = await self._zygote.fork(asked)
        except ZygoteEnded as error:
            log.warning("shim %s: is asked for again: %s", request.id, error)
            await ending.end_shared(path, request.id)  # it may have been made before
            path.unlink(missing_ok=True)
            forked = await self._zygote.fork(asked)
        try:
            return await Shim.connect(
                id=request.id,
                namespace=request.namespace,
                bootstrap=self._bootstrap(request),
                bundle=request.bundle.path,
            )
        except BaseException:
            await run_to_completion(self._undo(request, forked), within=UNDO_TIMEOUT_S)
            raise
        finally:
            os.close(forked.pidfd)

    def _bootstrap(self, request: LaunchRequest) -> Bootstrap:
        return Bootstrap(version=TASK_API_VERSION, address=f"unix://{self._socket(request)}")

    async def _undo(self, request: LaunchRequest, forked: ForkedShim) -> None:
        await ending.undo(forked.pidfd, self._socket(request), request.id, alone=forked.alone)

    async def reconnect(self, request: LaunchRequest) -> Shim:
        try:
            bootstrap = Bootstrap.load(request.bundle.path)
        except errors.DataLoss as error:
            log.warning("shim %s: asked where it was told to listen: %s", request.id, error)
            bootstrap = self._bootstrap(request)
        return await Shim.connect(
            id=request.id, namespace=request.namespace, bootstrap=bootstrap, bundle=request.bundle.path
        )

    async def ended(self, request: LaunchRequest) -> ExitStatus | None:
        """As the shim recorded it: of the pod that it was, else of its own container."""
        bundle = request.bundle.path
        pod = records.read(bundle / records.SANDBOX, records.SandboxRecord)
        if pod is not None:
            return _exit(pod.exit)
        return _exit(records.read(bundle / records.EXIT, records.ExitRecord))

    async def kill_left(self, request: LaunchRequest) -> None:
        """SIGKILL what runs of the containers of a shim that is gone, whoever asked for them: nobody watches it now."""
        await self._blocking.run(cleanup.kill_guests, request.bundle.path)

    async def delete(self, request: LaunchRequest, *, has_hung_up: bool = False) -> ExitStatus | None:
        """End the shim where it still lives, then what it did not clear away itself, its socket and its bundle.

        Other shims of its process go on, and where that does not answer this one is put aside (`hung`).
        """
        bundle = request.bundle.path
        if has_hung_up and await self._blocking.run(self._is_swept, request):
            return None
        try:
            await ending.end_recorded(bundle / records.SHIM, self._socket(request), request.id)
        except errors.Unavailable as error:
            log.warning("%s: is freed without it: %s", hung.describe(bundle), error)
            hung.put_aside(self._socket(request))
        ended: ExitStatus | None = None
        if _has_left(bundle):
            ended = await self._clear(request)
        else:  # its record is lost, or it never came to one
            await self._blocking.run(cleanup.kill_holders, bundle)
        self._socket(request).unlink(missing_ok=True)
        await self._blocking.run(request.bundle.delete)
        return ended

    def _is_swept(self, request: LaunchRequest) -> bool:
        """Sweep up behind a shim that shared its process and cleared all away itself; False where it is another."""
        bundle = request.bundle.path
        record = records.last(bundle / records.SHIM, records.ShimRecord)
        if record is None or record.alone or _has_left(bundle):
            return False
        self._socket(request).unlink(missing_ok=True)
        request.bundle.delete()
        return True

    async def _clear(self, request: LaunchRequest) -> ExitStatus | None:
        """What the shim's `delete` does, in a process of its own: it reaps as the parent of what it runs."""
        argv = [sys.executable, "-m", "atoll.shim.main", "-namespace", request.namespace, "-id", request.id]
        argv += ["-bundle", str(request.bundle.path), "delete"]
        call = program.ShimCall(
            argv=argv,
            what=f"shim {request.id}: clean-up",
            cwd=request.bundle.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            timeout_s=DELETE_TIMEOUT_S,
        )
        output = await program.run(self._spawner, call)
        try:
            answer = wire.DeleteResponse.FromString(output)
        except DecodeError as error:
            raise errors.Internal(f"shim {request.id}: its clean-up printed no answer: {error}") from error
        return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))


def _has_left(bundle: Path) -> bool:
    """Whether there is something in it of a pod or a container."""
    return any((bundle / name).exists() for name in (records.TASK, records.SANDBOX)) or bool(records.guests(bundle))


def _require_room(bundle: Path) -> None:
    """A shim that cannot write its records ends without a word, so that it is told before there is one."""
    probe = bundle / ".room"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, ROOM_BYTES)
        finally:
            os.close(fd)
            os.unlink(probe)
    except OSError as error:
        kind = errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Unavailable
        raise kind(f"bundle {bundle}: no shim can be started in it: {error.strerror}") from error


def _have_folder(folder: Path) -> None:
    """What cleans volatile folders up may have taken it."""
    try:
        folder.mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise errors.Unavailable(f"{folder}: cannot be made for the sockets of shims: {error.strerror}") from error


def _exit(record: records.ExitRecord | records.SandboxExit | None) -> ExitStatus | None:
    if record is None:
        return None
    at = datetime.fromtimestamp(record.exited_at_ns / 1e9, UTC)
    return ExitStatus(exit_status=record.exit_status, exited_at=at)
