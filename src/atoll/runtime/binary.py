"""Shims of anybody: found by runtime type, started and deleted by their command line.

Source: containerd's shim protocol (runtime v2): binary names, the `start` and `delete` calls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_task_v2_pb2 as wire
from atoll.concurrency import Blocking
from atoll.linux.process import Spawner
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import LaunchRequest, Shim
from atoll.runtime.task import from_timestamp, to_any
from atoll.sandbox.controller import ExitStatus

START_TIMEOUT_S = 20.0
DELETE_TIMEOUT_S = 15.0
MAX_OUTPUT_BYTES = 1024 * 1024
BINARY_FILE = "shim-binary-path"
CONNECT_TIMEOUT_S = 5.0


def resolve(runtime: str) -> Path:
    """The binary of a runtime type (`io.containerd.runc.v2`) or path; raises `NotFound` or `InvalidArgument`."""
    if runtime.startswith("/"):
        path = Path(runtime)
        if not path.is_file():
            raise errors.NotFound(f"shim {path}: no such file")
        return path
    parts = runtime.split(".")
    if "/" in runtime or len(parts) < 2 or not all(parts):
        raise errors.InvalidArgument(f"runtime type {runtime!r}: must be like io.containerd.runc.v2, or a full path")
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    found = shutil.which(name)
    if found is None:
        raise errors.NotFound(f"runtime type {runtime!r}: no {name} in PATH; install it or give its full path")
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What a foreign shim is told about the daemon that starts it."""

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
        """Run `start`, connect, and write the bootstrap file; on an error `delete` has run."""
        binary = resolve(request.runtime.name)
        (request.bundle.path / BINARY_FILE).write_text(str(binary))
        (request.bundle.path / "log").touch()  # a plain file where containerd has a fifo, so nobody needs to read it
        options = request.runtime.options
        stdin = b"" if options is None else to_any(options).SerializeToString()
        output = await self._run(binary, request, ["start"], stdin, START_TIMEOUT_S)
        try:
            bootstrap = Bootstrap.parse(output)
            bootstrap.store(request.bundle.path)
            return await Shim.connect(id=request.id, namespace=request.namespace, bootstrap=bootstrap)
        except BaseException:
            with contextlib.suppress(errors.AtollError):
                await self._run(binary, request, ["delete"], b"", DELETE_TIMEOUT_S)
            raise

    async def reconnect(self, request: LaunchRequest) -> Shim:
        bootstrap = Bootstrap.load(request.bundle.path)
        return await Shim.connect(id=request.id, namespace=request.namespace, bootstrap=bootstrap)

    async def delete(self, request: LaunchRequest) -> ExitStatus | None:
        """Run `delete` in the bundle, then remove the bundle; nothing to do where there is no bundle."""
        if not request.bundle.path.is_dir():
            return None
        exit_status: ExitStatus | None = None
        await self._shutdown(request)
        binary = self._binary(request)
        answer = wire.DeleteResponse()
        with contextlib.suppress(errors.NotFound, DecodeError):
            output = await self._run(binary, request, ["delete"], b"", DELETE_TIMEOUT_S)
            answer.ParseFromString(output)
            exit_status = ExitStatus(
                exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at)
            )
        await self._blocking.run(request.bundle.delete)
        return exit_status

    async def _shutdown(self, request: LaunchRequest) -> None:
        """Tell a shim that still listens to go; one that does not is left to its `delete` call."""
        try:
            shim = await self.reconnect(request)
        except (errors.NotFound, errors.Unavailable, errors.DataLoss):
            return
        try:
            await shim.tasks.shutdown(request.id)
            await shim.wait_closed(1.0)
        except errors.AtollError:
            return
        finally:
            await shim.aclose()

    def _binary(self, request: LaunchRequest) -> Path:
        try:
            return Path((request.bundle.path / BINARY_FILE).read_text())
        except FileNotFoundError:
            return resolve(request.runtime.name)

    async def _run(
        self, binary: Path, request: LaunchRequest, command: list[str], stdin: bytes, timeout_s: float
    ) -> bytes:
        """Run the shim binary in the bundle; its output goes to memory, so a child that keeps it open holds up nobody."""
        argv = [str(binary), "-namespace", request.namespace, "-address", self._daemon.grpc_address]
        argv += ["-publish-binary", self._daemon.binary, "-id", request.id]
        if command == ["delete"]:
            argv += ["-bundle", str(request.bundle.path)]
        environment = {
            **os.environ,
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "NAMESPACE": request.namespace,
            "TTRPC_ADDRESS": self._daemon.events_address,
            "GRPC_ADDRESS": self._daemon.grpc_address,
        }
        source = os.memfd_create("atoll-shim-stdin")
        output = os.memfd_create("atoll-shim-output")
        noise = os.memfd_create("atoll-shim-stderr")
        try:
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            code = await self._spawner.run(
                argv + command,
                stdin=source,
                stdout=output,
                stderr=noise,
                cwd=request.bundle.path,
                env=environment,
                timeout_s=timeout_s,
            )
            text = os.pread(output, MAX_OUTPUT_BYTES, 0)
            if code != 0:
                said = (text + os.pread(noise, MAX_OUTPUT_BYTES, 0)).decode(errors="replace").strip()
                raise errors.Unknown(f"{binary.name} {command[0]} for {request.id}: exit {code}: {said[-2000:]}")
            return text
        except FileNotFoundError as error:
            raise errors.NotFound(f"shim {binary}: cannot be run: {error}") from error
        finally:
            for fd in (source, output, noise):
                os.close(fd)
