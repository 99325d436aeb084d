"""Processes that the daemon keeps: `exec -it` until its end or the keys that detach, `exec -d`, `atoll process`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Sequence

from atoll import errors
from atoll.cli import show, terminal, work
from atoll.cli.outcome import say
from atoll.cli.run import converse, interruptible, require_terminal
from atoll.client import BackgroundProcess, Client, Container, ProcessStatus
from atoll.client.container import START_TIMEOUT_S
from atoll.client.making import made_or_undone
from atoll.client.model import Exit
from atoll.concurrency import run_to_completion

FORGET_WITHIN_S = 60.0


class Kept:
    """A background process with a terminal, as `converse` speaks to it; its output from a byte on."""

    def __init__(self, process: BackgroundProcess, begin: int = 0) -> None:
        self._process = process
        self._begin = begin

    @property
    def stdout(self) -> AsyncIterable[bytes]:
        return self._output()

    async def _output(self) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(self._process.follow(stdout_from=self._begin)) as chunks:
            async for chunk in chunks:
                yield chunk.data

    async def write(self, data: bytes) -> None:
        with _ended():
            await self._process.write(data)

    async def close_stdin(self) -> None:
        with _ended():
            await self._process.close_stdin()

    async def resize(self, width: int, height: int) -> None:
        with _ended():
            await self._process.resize(width, height)


def _ended() -> contextlib.AbstractContextManager[object]:
    """What is for a process that has ended, or takes no input, goes nowhere."""
    return contextlib.suppress(errors.FailedPrecondition, errors.NotFound)


async def run(
    name: str, spawning: Coroutine[None, None, BackgroundProcess], *, stdin: bool, keys: bytes
) -> Exit | None:
    """The user's terminal is the new process's until its end, with which it is forgotten; None where it was left.

    Whatever else ends the command ends the process.
    """
    async with interruptible(), contextlib.AsyncExitStack() as undo:
        process = await made_or_undone(spawning, _forget, within=START_TIMEOUT_S)
        undo.push_async_callback(_forget, process)
        if not await converse(require_terminal(), Kept(process), stdin=stdin, detach_keys=keys):
            undo.pop_all()
            _tell_left(name, process.id)
            return None
        return await process.wait()


async def _forget(process: BackgroundProcess) -> None:
    with contextlib.suppress(errors.NotFound):  # its container has gone, and it with it
        await run_to_completion(process.forget(), within=FORGET_WITHIN_S)


def _tell_left(name: str, process_id: str) -> None:
    terminal.write(sys.stdout.fileno(), b"\n")
    say(f"{process_id} goes on in {name}; `atoll process attach {name} {process_id}` comes back to it")


async def attach(client: Client, name: str, process_id: str, *, keys: bytes) -> int:
    """Come back to a process on a terminal: its exit code, 0 where it is left again; a signal ends the attach alone."""
    process = (await work.container_of(client, name)).process(process_id)
    status = await process.status()
    if not status.tty:
        raise errors.FailedPrecondition(
            f"process {process_id}: has no terminal; `atoll process logs -f {name} {process_id}` follows it"
        )
    fd = require_terminal()
    async with interruptible():
        if not await converse(fd, Kept(process, status.stdout[1]), stdin=status.stdin, detach_keys=keys):
            _tell_left(name, process_id)
            return 0
        return (await process.wait()).code


async def ls(client: Client, name: str, *, as_json: bool, quiet: bool) -> int:
    if name:
        containers = [await work.container_of(client, name)]
    else:
        containers = [client.container_by_id(one) for one in await client.containers()]
    found: list[tuple[Container, ProcessStatus]] = []
    for container in containers:
        with contextlib.suppress(errors.NotFound):  # it has gone meanwhile
            found += [(container, one) for one in await container.processes()]
    if as_json:
        show.dump([one for _, one in found])
    elif quiet:
        for _, one in found:
            print(one.id)
    else:
        columns = ("ID", "CONTAINER", "PID", "STATUS", "TERMINAL", "COMMAND")
        show.table(columns, [_row(container, one) for container, one in found], right=("PID",))
    return 0


def _row(container: Container, one: ProcessStatus) -> tuple[str, ...]:
    pid = str(one.pid) if one.exit is None else "-"
    return one.id, container.name, pid, _condition(one), "yes" if one.tty else "no", " ".join(one.command)


def _condition(one: ProcessStatus) -> str:
    if one.exit is None:
        return f"up {show.age(one.started_at)}".rstrip()
    why = "" if one.exit.cause.value in ("exited", "signal") else f", {one.exit.cause.value}"
    return f"exited ({one.exit.code}{why}) {show.age(one.exit.exited_at)} ago"


async def logs(client: Client, name: str, process_id: str, *, follow: bool) -> int:
    process = (await work.container_of(client, name)).process(process_id)
    following = contextlib.aclosing(process.follow(wait=follow))
    async with interruptible(), terminal.while_read(), following as chunks:
        async for chunk in chunks:
            out = sys.stderr if chunk.stream == "stderr" else sys.stdout
            terminal.write(out.fileno(), chunk.data)
    return 0


async def kill(client: Client, name: str, process_ids: Sequence[str], number: int) -> int:
    container = await work.container_of(client, name)
    return await work.each(process_ids, lambda one: container.process(one).signal(number))


async def remove(client: Client, name: str, process_ids: Sequence[str], *, force: bool) -> int:
    container = await work.container_of(client, name)

    async def one(process_id: str) -> None:
        process = container.process(process_id)
        if not force and (await process.status()).running:
            raise errors.FailedPrecondition(f"process {process_id}: runs; end it first, or use -f")
        await process.forget()

    return await work.each(process_ids, one)
