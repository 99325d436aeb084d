"""`atoll attach`: the user's streams or terminal joined to a container that runs."""

from __future__ import annotations

import json
import sys

from atoll import errors
from atoll.cli import terminal
from atoll.cli.outcome import say
from atoll.cli.run import feed, interruptible, on_terminal, require_terminal, show_both
from atoll.client import Client, Container, ContainerState
from atoll.concurrency import TaskOwner


async def attach(client: Client, name: str, *, stdin: bool, detach_keys: bytes) -> int:
    """Join a container: its exit code, or 0 where the user detached. A signal ends the attach alone."""
    container = await client.container(name)
    status = await container.status(verbose=True)
    if status.state is not ContainerState.RUNNING:
        raise errors.FailedPrecondition(
            f"container {container.name}: is {status.state.value}; `atoll logs {name}` shows what it wrote"
        )
    asked = json.loads(status.info.get("info", "{}")).get("config", {})
    takes_stdin = stdin and bool(asked.get("stdin"))
    if asked.get("tty"):
        require_terminal()
        return await _on_terminal(container, name, stdin=takes_stdin, detach_keys=detach_keys)
    return await _with_pipes(container, stdin=takes_stdin)


async def _on_terminal(container: Container, name: str, *, stdin: bool, detach_keys: bytes) -> int:
    async with interruptible():
        if await on_terminal(container, stdin=stdin, detach_keys=detach_keys):
            return (await container.wait()).code
    terminal.write(sys.stdout.fileno(), b"\n")
    say(f"{name} goes on; `atoll attach {name}` comes back to it")
    return 0


async def _with_pipes(container: Container, *, stdin: bool) -> int:
    async with interruptible(), container.attach(stdin=stdin) as process, TaskOwner("cli/stdin") as owner:
        fd = terminal.stdin_fd()
        if stdin and fd is not None:
            owner.spawn(feed(fd, process), name="cli/stdin")
        await show_both(process)
        return (await process.wait()).code
