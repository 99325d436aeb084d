"""`atoll run` and `atoll exec`: a process in the foreground, with its streams, its terminal and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from atoll import errors
from atoll.cli import show, terminal
from atoll.cli.outcome import Ended, say
from atoll.cli.pulling import pull_shown
from atoll.client import Client, Container, Exit, Pod
from atoll.client.container import STOP_GRACE_S
from atoll.client.leases import asking
from atoll.client.pod import Pull
from atoll.client.process import AttachedProcess, ExecProcess
from atoll.client.request import (
    REMOVE_AT_END,
    ContainerOptions,
    Network,
    PodOptions,
    Publish,
    container_config,
    new_name,
    pod_config,
)
from atoll.concurrency import TaskOwner, run_to_completion

KIND = "io.atoll.run"
"""Label of a pod that `atoll run` made for one container: it stops and goes with it."""
REMOVE_WITHIN_S = 240.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 3
"""The how many-th signal kills what did not end at the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `atoll run` beside those of its container."""

    container: ContainerOptions
    network: Network
    ports: tuple[Publish, ...]
    runtime: str
    hostname: str
    init: bool
    detach: bool
    detach_keys: bytes
    keep: bool
    remove_at_end: bool
    ttl: float | None
    idle: float | None
    pull: Pull
    quiet: bool

    def check(self) -> None:
        """Raise `InvalidArgument` for what can never work, before a daemon is asked or started."""
        container_config(self.container)
        asking(self.ttl, self.idle)
        pod_config(PodOptions(name=self.container.name, network=self.network, ports=self.ports, hostname=self.hostname))
        if self.container.tty and not self.detach:
            require_terminal()


class Signals:
    """Where SIGINT, SIGTERM and SIGHUP go now: until `goes_to` says otherwise they cancel the command."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._task = asyncio.current_task()
        self._handle: Callable[[int], None] | None = None
        self.cancelled_by = 0

    @contextlib.contextmanager
    def caught(self) -> Generator[None]:
        with terminal.on_signals(ENDING, self._arrived):
            yield

    def _arrived(self, number: int) -> None:
        if self._handle is not None:
            self._handle(number)
        elif not self.cancelled_by and self._task is not None:
            self.cancelled_by = number
            self._task.cancel()
        else:
            say("cleaning up; one moment")

    @contextlib.contextmanager
    def stopping(self, container: Container) -> Generator[None]:
        """They stop the container: politely at first, at once the second time."""
        told: list[int] = []

        def stop(number: int) -> None:
            told.append(number)
            grace = STOP_GRACE_S if len(told) == 1 else 0.0
            self._owner.spawn(container.stop(grace), name="cli/stop")

        with self._to(stop):
            yield

    @contextlib.contextmanager
    def sent_to(self, process: ExecProcess) -> Generator[None]:
        """They go to the process; where it does not end it is killed at last."""
        told: list[int] = []

        def send(number: int) -> None:
            told.append(number)
            kills = len(told) >= PATIENCE
            self._owner.spawn(process.signal(signal.SIGKILL if kills else number), name="cli/signal")

        with self._to(send):
            yield

    @contextlib.contextmanager
    def _to(self, handle: Callable[[int], None]) -> Generator[None]:
        self._handle = handle
        try:
            yield
        finally:
            self._handle = None


@asynccontextmanager
async def interruptible() -> AsyncGenerator[Signals]:
    """A command during which signals are dealt with, clean-up included; ends with 128 + n where one ended it."""
    async with TaskOwner("cli") as owner:
        signals = Signals(owner)
        with signals.caught():
            try:
                yield signals
            except asyncio.CancelledError:
                if not signals.cancelled_by:
                    raise
                raise Ended(128 + signals.cancelled_by) from None


async def run(client: Client, options: RunOptions, report: Callable[[Pod, Container], Awaitable[None]]) -> int:
    """Run a container in a pod of its own; the exit code is its own in the foreground, 0 when detached.

    Whatever happens before it is detached, or at the end unless it is kept, the pod is removed.
    """
    name = options.container.name or new_name("run")
    async with interruptible() as signals, AsyncExitStack() as undo:
        await _have_image(client, options)
        pod = await _pod(client, name, options)
        undo.push_async_callback(_remove, pod)
        container = await pod.create(replace(options.container, name=name), pull="never")
        code, stays = 0, options.detach or options.keep
        if options.detach:
            await container.start()
        elif options.container.tty:
            await container.start()
            if await on_terminal(container, stdin=options.container.stdin, detach_keys=options.detach_keys):
                code = (await container.wait()).code
            else:
                stays = True
                terminal.write(sys.stdout.fileno(), b"\n")
                say(f"{name} goes on; `atoll attach {name}` comes back to it")
        else:
            await _with_pipes(container, signals, stdin=options.container.stdin)
            code = (await container.wait()).code
        await report(pod, container)
        if stays:
            undo.pop_all()
        return code


async def run_and_report(client: Client, options: RunOptions, *, timings: bool) -> int:
    """`run`, and what is told then: the ID of what was detached, the steps where they are asked for."""

    async def report(pod: Pod, container: Container) -> None:
        if options.detach:
            print(container.id)
        if timings:
            show.phases(await pod.phases())

    return await run(client, options, report)


async def _pod(client: Client, name: str, options: RunOptions) -> Pod:
    try:
        return await client.run_pod(
            name,
            network=options.network,
            ports=options.ports,
            runtime=options.runtime,
            hostname=options.hostname,
            share_pid=options.init,
            labels={KIND: "true", **options.container.labels},
            annotations={REMOVE_AT_END: "true"} if options.remove_at_end else {},
            ttl=options.ttl,
            idle=options.idle,
        )
    except errors.AlreadyExists:
        if name not in {one.name for one in await client.pods()}:  # a port is taken, which the answer names
            raise
        raise errors.AlreadyExists(
            f"name {name}: is taken by a pod; `atoll rm -f {name}` removes that, or choose another --name"
        ) from None


async def _remove(pod: Pod) -> None:
    await run_to_completion(pod.remove(), within=REMOVE_WITHIN_S)


async def _have_image(client: Client, options: RunOptions) -> None:
    """The image before the pod, so that nothing waits in between and a bad name costs nothing."""
    reference = options.container.image
    if options.pull != "always":
        try:
            await client.image(reference)
        except errors.NotFound:
            if options.pull == "never":
                raise
        else:
            return
    await pull_shown(client, reference, quiet=options.quiet)


async def _with_pipes(container: Container, signals: Signals, *, stdin: bool) -> None:
    """Output by the log, which has every byte from the first on; input by an attach."""
    await container.start()
    async with AsyncExitStack() as stack:
        stack.enter_context(signals.stopping(container))
        fd = terminal.stdin_fd()
        if stdin and fd is not None:
            process = await stack.enter_async_context(container.attach(stdin=True))
            owner = await stack.enter_async_context(TaskOwner("cli/stdin"))
            owner.spawn(feed(fd, process), name="cli/stdin")
        async with contextlib.aclosing(container.logs(follow=True)) as lines:
            async for line in lines:
                out = sys.stderr if line.stream == "stderr" else sys.stdout
                terminal.write(out.fileno(), line.content if line.partial else line.content + b"\n")


async def feed(fd: int, process: AttachedProcess | ExecProcess) -> None:
    async with contextlib.aclosing(terminal.typed(fd)) as typed:
        async for data in typed:
            await process.write(data)
    await process.close_stdin()


async def on_terminal(container: Container, *, stdin: bool, detach_keys: bytes) -> bool:
    """The user's terminal becomes the container's; whether until its end, or until the keys that detach.

    What it wrote before the attach is kept for the first client.
    """
    fd = require_terminal()
    async with container.attach(stdin=stdin) as process:
        return await converse(fd, process, stdin=stdin, detach_keys=detach_keys)


def require_terminal() -> int:
    """Standard input; raises `InvalidArgument` where it or the output is no terminal."""
    fd = terminal.stdin_fd()
    if fd is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise errors.InvalidArgument("-t: standard input and output must be a terminal; leave it out in a pipe")
    return fd


class Conversed(Protocol):
    """A process with a terminal, as `converse` speaks to it."""

    @property
    def stdout(self) -> AsyncIterable[bytes]: ...
    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def resize(self, width: int, height: int) -> None: ...


async def converse(fd: int, process: Conversed, *, stdin: bool, detach_keys: bytes) -> bool:
    """The user's terminal is the process's; whether until its end, or until the keys that detach."""
    async with TaskOwner("cli/terminal") as owner:
        with terminal.raw(fd), terminal.resizing(owner, process.resize):
            showing = owner.spawn(_show(process), name="cli/output")
            typing = owner.spawn(_type(fd if stdin else None, process, detach_keys), name="cli/stdin")
            await asyncio.wait({showing, typing}, return_when=asyncio.FIRST_COMPLETED)
            if not showing.done() and typing.done() and typing.exception() is None and typing.result():
                return False
            await showing
            return True


async def _show(process: Conversed) -> None:
    async for data in process.stdout:
        terminal.write(sys.stdout.fileno(), data)


async def show_both(process: AttachedProcess | ExecProcess) -> None:
    while any(found := await process.read_some()):
        terminal.write(sys.stdout.fileno(), found[0])
        terminal.write(sys.stderr.fileno(), found[1])


async def _type(fd: int | None, process: Conversed, detach_keys: bytes) -> bool:
    """Hand on what is typed; True once the keys that detach were."""
    if fd is None:
        return False
    keys = terminal.DetachKeys(detach_keys)
    async with contextlib.aclosing(terminal.typed(fd)) as typed:
        async for data in typed:
            rest, is_over = keys.pass_on(data)
            if rest:
                await process.write(rest)
            if is_over:
                return True
    await process.close_stdin()
    return False


async def execute(process: ExecProcess, *, stdin: bool) -> Exit:
    """Run an exec with pipes in the foreground to its end."""
    async with interruptible() as signals, process, TaskOwner("cli/stdin") as owner:
        fd = terminal.stdin_fd()
        if stdin and fd is not None:
            owner.spawn(feed(fd, process), name="cli/stdin")
        with signals.sent_to(process):
            await show_both(process)
            return await process.wait()
