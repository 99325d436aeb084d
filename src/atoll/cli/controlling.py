"""The work of `kill`, `restart`, `pause`, `resume`, `update`, `wait` and `top`."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from atoll import errors
from atoll.cli import show, terminal, work
from atoll.cli.run import interruptible
from atoll.client import Client


def signal_number(text: str) -> int:
    """The number of `TERM`, `SIGTERM` or `15`; raises `InvalidArgument`."""
    if text.isdecimal() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise errors.InvalidArgument(f"signal {text!r}: there is none; name one like TERM, or 15") from None


async def kill(client: Client, names: Sequence[str], number: int, *, everything: bool) -> int:
    async def one(name: str) -> None:
        await (await work.container_of(client, name)).kill(number, everything=everything)

    return await work.each(names, one)


async def restart(client: Client, names: Sequence[str], timeout_s: float) -> int:
    """Stop containers politely where they run, and begin their commands anew; the names are told as they are done."""

    async def one(name: str) -> None:
        await (await work.container_of(client, name)).restart(timeout_s)

    return await work.each(names, one)


async def pause(client: Client, names: Sequence[str]) -> int:
    async def one(name: str) -> None:
        await (await work.container_of(client, name)).pause()

    return await work.each(names, one)


async def resume(client: Client, names: Sequence[str]) -> int:
    async def one(name: str) -> None:
        await (await work.container_of(client, name)).resume()

    return await work.each(names, one)


async def update(
    client: Client, names: Sequence[str], *, cpus: float | None, memory: str | None, pids: int | None
) -> int:
    async def one(name: str) -> None:
        await (await work.container_of(client, name)).update(cpus=cpus, memory=memory, pids=pids)

    return await work.each(names, one)


async def wait(client: Client, names: Sequence[str]) -> int:
    """Print the exit code of each as it has ended; 0 whatever they are."""
    containers = [await work.container_of(client, name) for name in names]
    async with interruptible(), terminal.while_read():
        for container in containers:
            print((await container.wait()).code, flush=True)
    return 0


async def top(client: Client, name: str, *, as_json: bool) -> int:
    found = await (await work.container_of(client, name)).top()
    if as_json:
        show.dump(found)
        return 0
    rows = [
        (
            str(one.pid),
            str(one.parent),
            str(one.uid),
            one.state,
            f"{one.cpu_s:.2f}",
            show.size(one.rss_bytes),
            show.age(one.started_at),
            one.command,
        )
        for one in found
    ]
    columns = ("PID", "PARENT", "UID", "STATE", "CPU S", "MEMORY", "AGE", "COMMAND")
    show.table(columns, rows, right=("PID", "PARENT", "UID", "CPU S", "MEMORY"))
    return 0
