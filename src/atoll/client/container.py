"""A container as an object."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import datetime

from atoll import crilog, errors
from atoll.api import atoll_control_v1_pb2 as control_pb
from atoll.api import atoll_processes_v1_pb2 as processes_pb
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import branches as branching
from atoll.client import control, foreign, request, wire
from atoll.client.background import BackgroundProcess, ProcessStatus
from atoll.client.branches import CommitOptions, DiffEntry, Identified, Snapshot
from atoll.client.control import Controlled
from atoll.client.files import Files
from atoll.client.model import CommandFailed, ContainerStatus, ExecResult, Exit, LogLine
from atoll.client.process import AttachedProcess, ExecProcess, Outbox, Q
from atoll.concurrency import run_to_completion

CALL_TIMEOUT_S = 120.0
START_TIMEOUT_S = 240.0
STOP_GRACE_S = 10.0
STOP_LIMIT_S = 366 * 24 * 3600
EXEC_LATE_S = 30.0
"""How much longer than its own time limit an exec may take to be answered."""

# What the daemon says of a command, and where it could make nothing of its runtime's words, those.
_OF_A_COMMAND = re.compile(r"^command |^working folder |^user |^group |exec|chdir")
_NOT_FOUND = re.compile(
    r"^command .*: is not in |^working folder |executable file .*not found|no such file or directory", re.DOTALL
)
_NOT_EXECUTABLE = re.compile(
    r"^command .*: cannot be executed in |^(user|group) .*: the image has no such "
    r"|exec: |exec user process|permission denied|cannot exec",
    re.DOTALL,
)


class Container(Controlled):
    """A container in a pod, by its ID; holds no state of its own, each question asks the daemon."""

    def __init__(self, connection: wire.Wire, container_id: str, name: str, pod_id: str) -> None:
        super().__init__(connection, container_id)
        self.name = name
        self.pod_id = pod_id

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.id[:13]}>"

    @property
    def files(self) -> Files:
        """Read, write, move and watch its files, also where it does not run."""
        return Files(self._wire, self.id)

    async def status(self, *, verbose: bool = False) -> ContainerStatus:
        """What is known now; `verbose` adds the runtime's own `info` texts. Raises `NotFound`."""
        asked = cri.ContainerStatusRequest(container_id=self.id, verbose=verbose)
        answer = await self._wire.call(wire.CONTAINER_STATUS, asked, timeout_s=CALL_TIMEOUT_S)
        return ContainerStatus.read(answer, self.pod_id)

    async def start(self) -> None:
        """Run a created container. Raises `CommandFailed` where its command cannot be executed.

        A caller that is cancelled waits for the daemon's answer first, so that what it does next meets no start.
        """
        asked = cri.StartContainerRequest(container_id=self.id)
        starting = self._wire.call(wire.START_CONTAINER, asked, timeout_s=START_TIMEOUT_S)
        try:
            await run_to_completion(starting, within=START_TIMEOUT_S + 5)
        except errors.AtollError as error:
            raise command_error(error) from None

    async def exec(
        self,
        command: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        stdin: bytes | None = None,
    ) -> ExecResult:
        """Run a command in the container to its end and keep its output.

        After `timeout` seconds its whole process tree is killed; the result then has cause `TIMEOUT` and the
        output so far. Raises `CommandFailed` where the command cannot be executed, `ResourceExhausted` for
        more than 64 MiB of output, and ends the exec when cancelled.
        """
        if self._wire.peer:
            refused = [("env", bool(env)), ("cwd", bool(cwd)), ("user", bool(user)), ("stdin", stdin is not None)]
            asked = foreign.Exec(timeout=timeout, refused=refused)
            return await foreign.exec_sync(self._wire, self.id, request.words(command, "command"), asked)
        process = self.exec_stream(command, timeout=timeout, env=env, cwd=cwd, user=user, stdin=stdin is not None)
        try:
            async with process:
                if stdin is not None:
                    await process.write(stdin)
                    await process.close_stdin()
                return await process.collect()
        except errors.AtollError as error:
            raise command_error(error) from None

    def exec_stream(
        self,
        command: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        tty: bool = False,
        stdin: bool = False,
        size: tuple[int, int] | None = None,
    ) -> ExecProcess:
        """Run a command with live streams: `async with container.exec_stream([...]) as process`.

        `size` is the terminal's width and height.
        """
        if timeout is not None and not timeout > 0:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be more than 0 seconds")
        words = request.words(command, "command")
        if not words:
            raise errors.InvalidArgument("command: is empty; name a program")
        start = own.ExecStart(
            container_id=self.id,
            command=words,
            env=request.environment(env or {}),
            working_dir=request.folder(cwd),
            user=user,
            tty=tty,
            stdin=stdin,
            timeout_s=timeout or 0.0,
        )
        if size is not None:
            start.size.width, start.size.height = size
        outbox = Outbox[own.ExecRequest]()
        call = self._wire.duplex(wire.EXEC, _led_by(own.ExecRequest(start=start), outbox))
        return ExecProcess(outbox, call, own.ExecRequest)

    async def spawn(  # noqa: PLR0913 - one keyword an option
        self,
        command: Sequence[str],
        *,
        name: str = "",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        stdin: bool = False,
        tty: bool = False,
        size: tuple[int, int] | None = None,
    ) -> BackgroundProcess:
        """Start a process that goes on without us, kept by the daemon.

        With `stdin` it takes input by `BackgroundProcess.write`, from any client, until `close_stdin`; else it has
        none. With `tty` its stdio is a terminal, of `size` (width, height): all it writes is in stdout then.

        `name` is its ID, one is made up without it; `AlreadyExists` for one in use. After `timeout` seconds its whole
        tree is killed, whoever is there. Raises `CommandFailed` where the command cannot be executed.
        """
        if timeout is not None and not timeout > 0:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be more than 0 seconds")
        asked = processes_pb.SpawnRequest(
            container_id=self.id,
            command=request.words(command, "command"),
            env=request.environment(env or {}),
            working_dir=request.folder(cwd),
            user=user,
            timeout_s=timeout or 0.0,
            name=name,
            stdin=stdin,
            tty=tty,
        )
        if size is not None:
            asked.size.width, asked.size.height = size
        try:
            answer = await self._wire.call(wire.PROCESS_SPAWN, asked, timeout_s=START_TIMEOUT_S)
        except errors.AtollError as error:
            raise command_error(error) from None
        return BackgroundProcess(self._wire, self.id, answer.id)

    async def processes(self) -> tuple[ProcessStatus, ...]:
        """The background processes of this container, the oldest first; ended ones too, until they are forgotten."""
        asked = processes_pb.ListRequest(container_id=self.id)
        answer = await self._wire.call(wire.PROCESS_LIST, asked, timeout_s=CALL_TIMEOUT_S)
        return tuple(ProcessStatus.read(one) for one in answer.processes)

    def process(self, process_id: str) -> BackgroundProcess:
        """The background process of that ID; asks nobody."""
        return BackgroundProcess(self._wire, self.id, process_id)

    def attach(self, *, stdin: bool = False) -> AttachedProcess:
        """Join the live stdio of the main process: `async with container.attach() as process`.

        Output from before is in `logs`.
        """
        start = own.AttachStart(container_id=self.id, stdin=stdin)
        outbox = Outbox[own.AttachRequest]()
        call = self._wire.duplex(wire.ATTACH, _led_by(own.AttachRequest(start=start), outbox))
        return AttachedProcess(outbox, call, own.AttachRequest)

    async def wait(self, timeout: float | None = None) -> Exit:
        """Wait for the container's end; at once, always the same, after it. `DeadlineExceeded` after `timeout` s."""
        if timeout is not None and not timeout >= 0:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be 0 or more seconds")
        if self._wire.peer:
            return await foreign.wait(self.status, self.name, timeout)
        try:
            answer = await self._wire.call(wire.WAIT, own.WaitRequest(container_id=self.id), timeout_s=timeout)
        except errors.DeadlineExceeded:
            raise errors.DeadlineExceeded(f"container {self.name}: still runs after {timeout or 0:g} s") from None
        return Exit.read(answer.exit)

    async def logs(
        self, *, follow: bool = False, tail: int | None = None, since: datetime | int | None = None
    ) -> AsyncGenerator[LogLine]:
        """The container's log, oldest line first; `follow` goes on until the container has ended.

        `tail` is how many lines from the end, `since` a time or ns since the epoch.
        """
        if tail is not None and not 0 <= tail <= request.INT64_MAX:
            raise errors.InvalidArgument(f"tail {tail}: must be a number of lines, 0 or more")
        if since is not None and not isinstance(since, int | datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
            raise errors.InvalidArgument(f"since {since!r}: must be a datetime, or ns since the epoch")
        asked = own.LogsRequest(container_id=self.id, follow=follow, tail=-1 if tail is None else tail)
        if since is not None:
            since_ns = since if isinstance(since, int) else int(since.timestamp() * 1e9)
            asked.since = min(max(since_ns, 0), request.INT64_MAX)
        if self._wire.peer:
            lines = foreign.logs(self.status, follow=follow, tail=tail, since_ns=asked.since)
            async with contextlib.aclosing(lines) as found:
                async for line in found:
                    yield line
            return
        answers = self._wire.stream(wire.LOGS, asked)
        try:
            async for answer in answers:
                for line in crilog.lines(answer.block):
                    yield line
        finally:
            await answers.aclose()

    # --- branches of its files ---

    async def snapshot(self, name: str = "") -> Snapshot:
        """Keep its files as they are now; `name` is made up where none is given. Durable when it returns.

        While it runs it stands still for as long as what it has written is copied, or shared where the file system can.
        Raises `AlreadyExists` for a name in use, `FailedPrecondition` in a pod with users of its own.
        """
        return await branching.take(self._wire, self.id, name)

    async def rollback(self, snapshot: Identified | str, *, timeout: float = 0.0) -> Container:
        """A new container of the same name and configuration upon the snapshot, in the place of this one.

        Files can be rolled back, processes cannot: this one is stopped, within `timeout` seconds, and its command
        begins anew. Raises `InvalidArgument` for a snapshot of another image; this container is left alone then.
        """
        key = snapshot if isinstance(snapshot, str) else snapshot.id
        return await branching.rollback(self._wire, self.id, key, timeout)

    async def diff(self, since: Identified | str = "") -> tuple[DiffEntry, ...]:
        """What it has that its image has not, or that a snapshot of the same image has not, as one of itself."""
        return await branching.diff(self._wire, self.id, since if isinstance(since, str) else since.id)

    def diff_tar(self, since: Identified | str = "") -> AsyncGenerator[bytes, None]:
        """The same as a layer of an image, in chunks: an uncompressed tar with `.wh.` marks for what was deleted."""
        return branching.export(self._wire, self.id, since if isinstance(since, str) else since.id)

    async def commit(
        self,
        reference: str = "",
        *,
        changes: Sequence[str] = (),
        author: str = "",
        message: str = "",
        pause: bool = True,
    ) -> str:
        """An image of its image and what it has changed; the image's ID.

        `changes` are instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
        VOLUME, WORKDIR. With `pause` it stands still while its files are read. Raises `InvalidArgument` for a bad
        change.
        """
        options = CommitOptions(reference=reference, changes=changes, author=author, message=message, pause=pause)
        return await branching.commit(self._wire, self.id, options)

    async def stop(self, timeout: float = STOP_GRACE_S) -> None:
        """Ask it to end, and kill it after `timeout` whole seconds. Idempotent, also for one that is gone."""
        if not 0 <= timeout <= STOP_LIMIT_S:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be 0 to {STOP_LIMIT_S} seconds")
        asked = cri.StopContainerRequest(container_id=self.id, timeout=math.ceil(timeout))
        await self._wire.call(wire.STOP_CONTAINER, asked, timeout_s=timeout + CALL_TIMEOUT_S)

    async def restart(self, timeout: float = STOP_GRACE_S) -> None:
        """Stop it as `stop` does where it runs, and start it again: the same container, files and log, a new process.

        One that has ended, and one that was never started, is started. Its background processes and execs end. Raises
        as `start`; after a start that failed it can be restarted again.
        """
        if not 0 <= timeout <= STOP_LIMIT_S:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be 0 to {STOP_LIMIT_S} seconds")
        asked = control_pb.RestartRequest(container_id=self.id, timeout_s=timeout)
        restarting = self._wire.call(control.RESTART, asked, timeout_s=timeout + START_TIMEOUT_S)
        try:
            await run_to_completion(restarting, within=timeout + START_TIMEOUT_S + 5)
        except errors.AtollError as error:
            raise command_error(error) from None

    async def remove(self) -> None:
        """Kill it where it runs and take it away, its log and its files too. Idempotent."""
        asked = cri.RemoveContainerRequest(container_id=self.id)
        await self._wire.call(wire.REMOVE_CONTAINER, asked, timeout_s=CALL_TIMEOUT_S)


async def _led_by(first: Q, outbox: Outbox[Q]) -> AsyncIterator[Q]:
    yield first
    async for message in outbox.messages():
        yield message


def command_error(error: errors.AtollError) -> errors.AtollError:
    """`CommandFailed` for an error that says the command itself is at fault, else the error."""
    if not isinstance(error, errors.Unknown | errors.FailedPrecondition | errors.InvalidArgument | errors.NotFound):
        return error
    if not _OF_A_COMMAND.search(error.message):
        return error
    if _NOT_FOUND.search(error.message):
        return CommandFailed(error.message, 127)
    if _NOT_EXECUTABLE.search(error.message):
        return CommandFailed(error.message, 126)
    return error
