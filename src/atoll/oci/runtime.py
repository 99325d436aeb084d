"""Driver of an OCI runtime's command line: runc, crun and what behaves like them.

One method an operation; each runs the program once, bounded by a named constant, and raises one of
`atoll.errors` with one line (`atoll.oci.failures`). What the runtime logs goes to a memory file, so
nothing is left on disk and nothing of it gets into the container's output. A container's standard
descriptors are handed to the runtime, which hands them on; this module never reads them.
Source: the OCI runtime command line interface; runc(8), crun(1).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import run_to_completion
from atoll.linux import flood, leftover
from atoll.linux.process import Spawner
from atoll.oci import execfifo, features, spec
from atoll.oci.failures import last_error, translate
from atoll.unreadable import UNREADABLE

CREATE_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 20.0
EXEC_TIMEOUT_S = 60.0
DELETE_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 20.0
FREEZE_TIMEOUT_S = 30.0
UPDATE_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 10.0
CHECKPOINT_TIMEOUT_S = 600.0

OUTPUT_LIMIT_BYTES = 1 << 20
LOG_TAIL_BYTES = 64 << 10

# A runtime and its hooks need no more of our environment; NOTIFY_SOCKET and LISTEN_FDS would change what it does.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_ID = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,254}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Descriptors for a new process, the caller's throughout; None is /dev/null.

    A process with a terminal gets it from `console_socket`: a unix socket that the caller listens on and
    that receives the terminal's master; the three are None then.
    """

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    console_socket: Path | None = None

    def arguments(self) -> list[str]:
        return [] if self.console_socket is None else ["--console-socket", str(self.console_socket)]


NO_STDIO = Stdio()


class ContainerState(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `state`; `status` is creating, created, running, stopped or paused; `pid` 0 when stopped."""

    id: str
    status: str
    pid: int = 0
    bundle: str = ""
    created: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """Where and how CRIU dumps a container: `image` is the folder of the dump, `work` that of CRIU's logs."""

    image: Path
    work: Path
    leave_running: bool = False
    tcp_established: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    parent_path: Path | None = None
    cgroups_mode: str = ""

    def arguments(self) -> list[str]:
        """The options shared by dump and restore."""
        flags = {
            "--tcp-established": self.tcp_established,
            "--ext-unix-sk": self.external_unix_sockets,
            "--shell-job": self.terminal,
            "--file-locks": self.file_locks,
        }
        arguments = ["--image-path", str(self.image), "--work-path", str(self.work)]
        arguments += [flag for flag, on in flags.items() if on]
        if self.cgroups_mode:
            arguments += ["--manage-cgroups-mode", self.cgroups_mode]
        for name in self.empty_namespaces:
            arguments += ["--empty-ns", name]
        return arguments


_state_decoder = msgspec.json.Decoder(ContainerState)
_pids_decoder = msgspec.json.Decoder(list[int] | None)


class OCIRuntime:
    """One runtime program with one folder of container states.

    Calls for different containers may run at the same time; those for one container are the caller's to order.
    """

    def __init__(self, binary: Path, root: Path, spawner: Spawner, *, systemd_cgroup: bool = False) -> None:
        self.binary = binary
        self.root = root
        self.name = binary.name
        self._spawner = spawner
        self._globals = [str(binary), "--root", str(root), *["--systemd-cgroup"] * systemd_cgroup]

    async def create(
        self,
        container: str,
        bundle: Path,
        *,
        pid_file: Path,
        stdio: Stdio = NO_STDIO,
        no_pivot: bool = False,
        no_new_keyring: bool = False,
    ) -> int:
        """Make the container of `bundle`, its command not yet executed; returns its pid, also in `pid_file`.

        Its first process becomes a child of the nearest subreaper. Raises `StartFailed` where the command cannot
        be executed, `AlreadyExists`. After any other error, a cancellation too, nothing of the container is left.
        """
        arguments = ["--bundle", str(bundle), "--pid-file", str(pid_file), *stdio.arguments()]
        arguments += ["--no-pivot"] * no_pivot + ["--no-new-keyring"] * no_new_keyring
        return await self._make("create", container, arguments, CREATE_TIMEOUT_S, pid_file, stdio)

    async def run(self, container: str, bundle: Path, *, timeout_s: float = RUN_TIMEOUT_S) -> int:
        """Create, start, wait and delete in one call; returns the exit code. For short probes, with no output.

        Raises `RuntimeFailed` where the runtime itself failed, told by what it logged; nothing is left then.
        """
        with _memory_file("log") as log:
            argv = [*self._globals, "--log", f"/proc/self/fd/{log}", "--log-format", "json"]
            argv += ["run", "--bundle", str(bundle), container]
            try:
                async with flood.bounded(log, limit_bytes=OUTPUT_LIMIT_BYTES, what=f"{self.name} run {container}"):
                    returncode = await self._spawn(argv, timeout_s, stderr=log, pass_fds=(log,))
                if returncode != 0 and last_error(_tail(log)):
                    raise translate(self.name, "run", container, returncode, _tail(log))
            except (errors.AtollError, asyncio.CancelledError):
                await run_to_completion(self._sweep(container), within=DELETE_TIMEOUT_S)
                raise
            return returncode

    async def start(self, container: str, *, has_hooks: bool = True) -> None:
        """Execute the command of a created container. Raises `FailedPrecondition` in any other state, `NotFound`.

        `has_hooks`: whether its spec may have poststart hooks, which only the program runs.
        """
        _require_id(container)
        if not has_hooks:
            try:
                if await execfifo.let_go(self.name, self.root / container):
                    return
            except errors.DeadlineExceeded as error:
                raise errors.DeadlineExceeded(
                    f"container {container}: its process does not go on to its command; is it frozen?"
                ) from error
        await self._call("start", container, timeout_s=START_TIMEOUT_S)

    async def delete(self, container: str, *, force: bool = False) -> None:
        """Remove a stopped container and its cgroup; with `force` kill it first.

        With `force` idempotent. Without, raises `NotFound`, and `FailedPrecondition` while it runs. `Internal` where
        the program says that it has, and has not.
        """
        try:
            await self._call("delete", container, ["--force"] if force else [], timeout_s=DELETE_TIMEOUT_S)
        except errors.NotFound:
            if not force:
                raise
        if os.path.lexists(left := self.root / container):  # noqa: ASYNC240  a lookup in memory
            raise errors.Internal(f"{self.name} delete {container}: succeeded but left {left}")

    async def kill(self, container: str, number: int, *, all_processes: bool = False) -> None:
        """Send signal `number` to the first process, or to all. Raises `NotFound` where none runs."""
        arguments = ["--all"] if all_processes else []
        await self._call("kill", container, arguments, str(number), timeout_s=KILL_TIMEOUT_S)

    async def exec(
        self,
        container: str,
        process: spec.Process | bytes,
        *,
        pid_file: Path,
        stdio: Stdio = NO_STDIO,
    ) -> int:
        """Run another process in the container, detached; returns its pid, also in `pid_file`.

        `process` may be the JSON of a foreign process spec, passed on as it is. Raises `StartFailed` where its
        command cannot be executed, `FailedPrecondition` where the container is not running, `NotFound`.
        """
        document = process if isinstance(process, bytes) else spec.encode(process)
        with _memory_file("process", document) as fd:
            arguments = ["--detach", "--pid-file", str(pid_file), "--process", f"/proc/self/fd/{fd}"]
            arguments += stdio.arguments()
            await self._call("exec", container, arguments, timeout_s=EXEC_TIMEOUT_S, stdio=stdio, pass_fds=(fd,))
        return _read_pid(pid_file, f"{self.name} exec {container}")

    async def pause(self, container: str) -> None:
        """Freeze every process. Raises `FailedPrecondition` where it does not run, `NotFound`."""
        await self._call("pause", container, timeout_s=FREEZE_TIMEOUT_S)

    async def resume(self, container: str) -> None:
        """Thaw a paused container. Raises `FailedPrecondition` where it is not paused, `NotFound`."""
        await self._call("resume", container, timeout_s=FREEZE_TIMEOUT_S)

    async def update(self, container: str, resources: spec.Resources | bytes) -> None:
        """Change the limits of a container; what `resources` leaves out stays."""
        document = resources if isinstance(resources, bytes) else spec.encode(resources)
        with _memory_file("resources", document) as fd:
            await self._call(
                "update",
                container,
                ["--resources", f"/proc/self/fd/{fd}"],
                timeout_s=UPDATE_TIMEOUT_S,
                pass_fds=(fd,),
            )

    async def ps(self, container: str) -> tuple[int, ...]:
        """The pids of the container, as the daemon's pid namespace numbers them."""
        output = await self._call("ps", container, ["--format", "json"], timeout_s=QUERY_TIMEOUT_S)
        return tuple(_decoded(_pids_decoder, output, f"{self.name} ps {container}") or ())

    async def state(self, container: str) -> ContainerState:
        """What the runtime knows of the container. Raises `NotFound`."""
        output = await self._call("state", container, timeout_s=QUERY_TIMEOUT_S)
        return _decoded(_state_decoder, output, f"{self.name} state {container}")

    async def checkpoint(self, container: str, options: CheckpointOptions) -> None:
        """Dump the container with CRIU; it ends unless `leave_running`.

        Raises `Unimplemented` where the runtime was built without CRIU.
        """
        await self._require_checkpoint()
        arguments = options.arguments() + ["--leave-running"] * options.leave_running
        if options.parent_path is not None:
            arguments += ["--parent-path", str(options.parent_path)]
        await self._call("checkpoint", container, arguments, timeout_s=CHECKPOINT_TIMEOUT_S)

    async def restore(
        self, container: str, bundle: Path, options: CheckpointOptions, *, pid_file: Path, stdio: Stdio = NO_STDIO
    ) -> int:
        """Make and start the container of `bundle` from a dump; returns its pid. Errors as `create`."""
        await self._require_checkpoint()
        arguments = ["--bundle", str(bundle), "--pid-file", str(pid_file), "--detach", "--no-subreaper"]
        arguments += [*options.arguments(), *stdio.arguments()]
        return await self._make("restore", container, arguments, CHECKPOINT_TIMEOUT_S, pid_file, stdio)

    async def features(self) -> features.RuntimeFeatures:
        """What this program can do: its `features`, else what its version line tells."""
        version = await self._output([str(self.binary), "--version"])
        try:
            document = await self._output([str(self.binary), "features"])
        except errors.AtollError:
            return features.from_version(self.name, version.decode("utf-8", "replace"))
        return features.from_document(self.name, version.decode("utf-8", "replace"), document)

    async def _require_checkpoint(self) -> None:
        if not (await self.features()).checkpoint:
            raise errors.Unimplemented(f"{self.binary}: was built without checkpoints; use runc with criu")

    async def _make(
        self, operation: str, container: str, arguments: Sequence[str], timeout_s: float, pid_file: Path, stdio: Stdio
    ) -> int:
        try:
            await self._call(operation, container, arguments, timeout_s=timeout_s, stdio=stdio)
            return _read_pid(pid_file, f"{self.name} {operation} {container}")
        except (errors.AlreadyExists, errors.InvalidArgument):
            raise
        except (errors.AtollError, asyncio.CancelledError):
            await run_to_completion(self._sweep(container), within=DELETE_TIMEOUT_S)
            raise

    async def _sweep(self, container: str) -> None:
        # What a runtime that failed or was killed half-way left behind; the caller's error is the one that counts.
        with contextlib.suppress(errors.AtollError):
            await self.delete(container, force=True)

    async def _output(self, argv: Sequence[str]) -> bytes:
        with _memory_file("output") as output, _memory_file("log") as log:
            async with flood.bounded(output, log, limit_bytes=OUTPUT_LIMIT_BYTES, what=f"{self.binary} {argv[-1]}"):
                returncode = await self._spawn(argv, QUERY_TIMEOUT_S, stdout=output, stderr=log)
            if returncode != 0:
                raise translate(self.name, argv[-1], "", returncode, _tail(log))
            return os.pread(output, OUTPUT_LIMIT_BYTES, 0)

    async def _call(
        self,
        operation: str,
        container: str,
        arguments: Sequence[str] = (),
        *more: str,
        timeout_s: float,
        stdio: Stdio = NO_STDIO,
        pass_fds: tuple[int, ...] = (),
    ) -> bytes:
        """Run `operation` on `container`; the output is the program's where it makes no process, else empty."""
        _require_id(container)
        own_output = operation not in ("create", "exec", "restore")
        with _memory_file("output") as output, _memory_file("log") as log:
            argv = [*self._globals, "--log", f"/proc/self/fd/{log}", "--log-format", "json"]
            argv += [operation, *arguments, container, *more]
            what = f"{self.name} {operation} {container}"
            async with _named(what), flood.bounded(output, log, limit_bytes=OUTPUT_LIMIT_BYTES, what=what):
                returncode = await self._spawn(
                    argv,
                    timeout_s,
                    stdin=stdio.stdin,
                    stdout=output if own_output else stdio.stdout,
                    stderr=log if own_output else stdio.stderr,
                    pass_fds=(*pass_fds, log),
                )
            if returncode != 0:
                raise translate(self.name, operation, container, returncode, _tail(log))
            return os.pread(output, OUTPUT_LIMIT_BYTES, 0)

    async def _spawn(
        self,
        argv: Sequence[str],
        timeout_s: float,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> int:
        try:
            return await self._spawner.run(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                env={**ENVIRONMENT, **leftover.marked_by(self.root)},
                timeout_s=timeout_s,
            )
        except OSError as error:
            raise errors.FailedPrecondition(
                f"{self.binary}: cannot be run ({error.strerror}); install it or name another runtime in the config"
            ) from error


def _require_id(container: str) -> None:
    if not _ID.fullmatch(container) or container in (".", ".."):
        raise errors.InvalidArgument(f"container id {container!r}: letters, digits and _+.- only, at most 255")


@contextlib.contextmanager
def _memory_file(name: str, content: bytes = b"") -> Generator[int, None, None]:
    fd = os.memfd_create(f"atoll-{name}", os.MFD_CLOEXEC)
    try:
        if content:
            with open(fd, "wb", closefd=False) as stream:
                stream.write(content)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            # The runtime opens it again by path for its log and inherits it as stderr: two offsets, one end.
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        yield fd
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _named(what: str) -> AsyncGenerator[None]:
    """Tell what a program that took too long was asked for."""
    try:
        yield
    except errors.DeadlineExceeded as error:
        raise errors.DeadlineExceeded(f"{what}: {error}") from error


def _tail(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))


def _read_pid(path: Path, what: str) -> int:
    try:
        return int(path.read_bytes())
    except OSError as error:
        raise errors.Internal(f"{what}: succeeded but left no pid in {path}: {error.strerror}") from error
    except ValueError as error:
        raise errors.Internal(f"{what}: succeeded but left no pid in {path}: {error}") from error


def _decoded(decoder: msgspec.json.Decoder[features.T], output: bytes, what: str) -> features.T:
    try:
        return decoder.decode(output)
    except UNREADABLE as error:
        raise errors.Internal(f"{what}: not the JSON that was expected: {error}") from error
