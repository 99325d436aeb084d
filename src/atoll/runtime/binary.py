"""Shims of anybody: found by runtime type, started and deleted by their command line.

    <bundle>/shim-binary-path   which program; written before it runs, so what it made can be cleared away
             shim.json          which process serves, once it answered
             bootstrap.json     where it answers

Source: containerd's shim protocol (runtime v2): binary names, the `start` and `delete` calls.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_task_v2_pb2 as wire
from atoll.concurrency import Blocking, run_to_completion
from atoll.linux import process
from atoll.linux.process import Spawner
from atoll.runtime import bootstrap as bootstraps
from atoll.runtime import program
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.ending import kill_recorded
from atoll.runtime.shim import LaunchRequest, Shim
from atoll.sandbox.controller import ExitStatus
from atoll.sandbox.wire import from_timestamp, to_any
from atoll.shim import records
from atoll.ttrpc import address as addresses

START_TIMEOUT_S = 20.0
REAP_MARGIN_S = 10.0
DELETE_TIMEOUT_S = 15.0
UNDO_TIMEOUT_S = 30.0
HANG_UP_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 1.0
BINARY_FILE = "shim-binary-path"
LOG_FILE = "log"
OWN_FILES = frozenset(
    (BINARY_FILE, LOG_FILE, "config.json", "rootfs", records.SHIM, records.TASK, bootstraps.FILE, bootstraps.OLD_FILE)
)
"""What is in a bundle before anything was made from it."""
BEGUN_FILES = frozenset(made for name in OWN_FILES for made in (f".{name}.new", f"{name}.new"))
"""What a kill while one of them is written leaves beside it."""

_PART = re.compile(r"[A-Za-z0-9_-]+")

log = logging.getLogger(__name__)


def program_of(runtime: str) -> str:
    """The name of the program of a runtime type or path; empty where it names none."""
    if runtime.startswith("/"):
        return Path(runtime).name
    parts = runtime.split(".")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}" if len(parts) > 1 and all(map(_PART.fullmatch, parts)) else ""


def resolve(runtime: str, beside: Path | None = None) -> Path:
    """The binary of a runtime type (`io.containerd.runc.v2`), searched in PATH and then in `beside`, or of a full path.

    Raises `NotFound` or `InvalidArgument`.
    """
    if runtime.startswith("/"):
        path = Path(runtime)
        if "\0" in runtime or not path.is_file():
            raise errors.NotFound(f"shim {runtime!r}: no such file")
        return path
    name = program_of(runtime)
    if not name:
        raise errors.InvalidArgument(f"runtime type {runtime!r}: must be like io.containerd.runc.v2, or a full path")
    found = shutil.which(name) or (shutil.which(name, path=str(beside)) if beside is not None else None)
    if found is None:
        raise errors.NotFound(f"runtime type {runtime!r}: no {name} in PATH; install it or give its full path")
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What a foreign shim is told about the daemon that starts it.

    `grpc_address` need not be served: shims use it as a name, and derive their socket's from it. `events_address`
    serves `containerd.services.events.ttrpc.v1.Events`. `binary` is the daemon's own program.
    """

    grpc_address: str
    events_address: str
    binary: str


class BinaryLauncher:
    """Drives foreign shims; implements `Launcher`."""

    def __init__(self, daemon: Daemon, spawner: Spawner, blocking: Blocking) -> None:
        self._daemon = daemon
        self._spawner = spawner
        self._blocking = blocking

    async def launch(self, request: LaunchRequest) -> Shim:
        """Run `start`, connect, and write the bootstrap file; on an error the shim was ended and `delete` has run."""
        binary = resolve(request.runtime.name, Path(self._daemon.binary).parent)
        path = request.bundle.path
        await self._blocking.run(_prepare, path, binary)
        try:
            # A `start` that is cut short may have made a shim that nobody could find: it runs to its end.
            await run_to_completion(self._start(binary, request), within=START_TIMEOUT_S + REAP_MARGIN_S)
            return await self._connect(request, Bootstrap.load(path))
        except BaseException:
            try:
                await run_to_completion(self._clear(request), within=UNDO_TIMEOUT_S)
            except errors.AtollError as error:
                log.warning("shim %s: its failed start is not undone: %s", request.id, error)
            raise

    async def _start(self, binary: Path, request: LaunchRequest) -> None:
        options = request.runtime.options
        stdin = b"" if options is None else to_any(options).SerializeToString()
        output = await self._run(binary, request, "start", stdin, START_TIMEOUT_S)
        Bootstrap.parse(output).store(request.bundle.path)

    async def _connect(self, request: LaunchRequest, bootstrap: Bootstrap) -> Shim:
        shim = await Shim.connect(
            id=request.id, namespace=request.namespace, bootstrap=bootstrap, bundle=request.bundle.path
        )
        try:
            found = process.identify(await shim.check_version())
            if found is not None:
                where = shim.bootstrap
                record = records.ShimRecord(
                    pid=found.pid,
                    start_ticks=found.start_ticks,
                    boot_id=found.boot_id,
                    version="",
                    bootstrap=records.BootstrapRecord(
                        version=where.version, address=where.address, protocol=where.protocol
                    ),
                )
                records.write(request.bundle.path / records.SHIM, record)
            if shim.bootstrap != bootstrap:
                shim.bootstrap.store(request.bundle.path)
        except BaseException:
            shim.client.close()
            raise
        return shim

    async def adopt(self, bundle: Path, runtime: str) -> None:
        """Write into the bundle of a task that a running shim is to serve which program clears it away.

        With it `delete` works for the task once its shim is gone. Errors as `resolve`, and `Unavailable`.
        """
        binary = resolve(runtime, Path(self._daemon.binary).parent)
        await self._blocking.run(_prepare, bundle, binary)

    async def reconnect(self, request: LaunchRequest) -> Shim:
        bootstrap = _load(request.bundle.path)
        return await Shim.connect(
            id=request.id, namespace=request.namespace, bootstrap=bootstrap, bundle=request.bundle.path
        )

    async def ended(self, request: LaunchRequest) -> ExitStatus | None:
        return None  # only its `delete` may know

    async def delete(self, request: LaunchRequest, *, has_hung_up: bool = False) -> ExitStatus | None:
        """End the shim, run `delete` in the bundle, then remove the bundle; nothing to do where there is no bundle.

        A bundle that no shim was started in is only removed.
        """
        if not request.bundle.path.is_dir():
            return None
        ended = await self._clear(request)
        await self._blocking.run(request.bundle.delete)
        return ended

    async def _clear(self, request: LaunchRequest) -> ExitStatus | None:
        """Everything of the shim but its bundle."""
        path = request.bundle.path
        try:
            binary = Path((path / BINARY_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        await self._shutdown(request)
        await kill_recorded(path / records.SHIM, request.id)
        ended = await self._delete(binary, request)
        await self._remove_socket(path)
        return ended

    async def _delete(self, binary: Path, request: LaunchRequest) -> ExitStatus | None:
        """The `delete` call, which has to succeed where something may have been made that it alone can clear away."""
        answer = wire.DeleteResponse()
        try:
            answer.ParseFromString(await self._run(binary, request, "delete", b"", DELETE_TIMEOUT_S))
            return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))
        except DecodeError as error:
            log.warning("shim %s: its delete printed no answer: %s", request.id, error)
        except (errors.Unknown, errors.NotFound) as error:
            if not set(os.listdir(request.bundle.path)) <= OWN_FILES | BEGUN_FILES:
                raise
            log.info("shim %s: nothing to delete: %s", request.id, error)
        return None

    async def _shutdown(self, request: LaunchRequest) -> None:
        """Tell a shim that still listens to go, which it does where it holds nothing."""
        try:
            shim = await self.reconnect(request)
        except (errors.NotFound, errors.Unavailable, errors.DataLoss, errors.DeadlineExceeded):
            return
        try:
            await shim.tasks.shutdown(request.id)
            await shim.wait_closed(HANG_UP_TIMEOUT_S)
        except errors.AtollError as error:
            log.info("shim %s: does not shut down: %s", request.id, error)
        finally:
            await shim.aclose()

    async def _remove_socket(self, bundle: Path) -> None:
        """A shim that was killed leaves its socket; one that somebody listens on is not touched."""
        try:
            name = addresses.socket_names(_load(bundle).address)[0]
        except errors.AtollError:
            return
        if not name.startswith("/") or not _is_socket(name):
            return
        try:
            (await addresses.connect(name, timeout_s=PROBE_TIMEOUT_S)).close()
        except errors.Unavailable:
            Path(name).unlink(missing_ok=True)  # noqa: ASYNC240  one unlink
        except errors.AtollError:
            return

    async def _run(self, binary: Path, request: LaunchRequest, command: str, stdin: bytes, timeout_s: float) -> bytes:
        argv = [str(binary), "-namespace", request.namespace, "-address", self._daemon.grpc_address]
        argv += ["-publish-binary", self._daemon.binary, "-id", request.id]
        if command == "delete":
            argv += ["-bundle", str(request.bundle.path)]
        environment = {
            **os.environ,
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "NAMESPACE": request.namespace,
            "TTRPC_ADDRESS": self._daemon.events_address,
            "GRPC_ADDRESS": self._daemon.grpc_address,
        }
        call = program.ShimCall(
            argv=[*argv, command],
            what=f"{binary.name} {command} for {request.id}",
            cwd=request.bundle.path,
            env=environment,
            timeout_s=timeout_s,
            stdin=stdin,
        )
        return await program.run(self._spawner, call)


def _load(bundle: Path) -> Bootstrap:
    """Where the shim of a bundle answers: by its bootstrap file, or, where that is damaged, by its other record."""
    try:
        return Bootstrap.load(bundle)
    except errors.DataLoss as damage:
        record = records.read(bundle / records.SHIM, records.ShimRecord)
        if record is None or record.bootstrap is None:
            raise
        log.warning("shim of %s: asked where its record says: %s", bundle, damage)
        kept = record.bootstrap
        return Bootstrap(version=kept.version, address=kept.address, protocol=kept.protocol)


def _prepare(bundle: Path, binary: Path) -> None:
    """Write down what is about to run. The log is a plain file where containerd has a fifo, so nobody must read it."""
    try:
        for name, content in ((BINARY_FILE, str(binary)), (LOG_FILE, "")):
            fd = os.open(bundle / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as stream:
                stream.write(content)
    except OSError as error:
        raise errors.Unavailable(f"bundle {bundle}: cannot be written: {error.strerror}") from error


def _is_socket(name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(name).st_mode)
    except OSError:
        return False
