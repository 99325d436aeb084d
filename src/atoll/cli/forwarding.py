"""`atoll port-forward`: local ports that lead to ports of a pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from atoll import errors
from atoll.cli import work
from atoll.cli.outcome import say
from atoll.cli.run import interruptible
from atoll.client import Client


def parse(text: str) -> tuple[int, int]:
    """The local port, 0 for any free one, and the pod's, of `8080:80`, `:80` or `80`; raises `InvalidArgument`."""
    local, colon, remote = text.partition(":")
    if not colon:
        local, remote = text, text
    numbers = local or "0", remote
    if not all(one.isdecimal() and int(one) < 65536 for one in numbers) or int(remote) == 0:
        raise errors.InvalidArgument(f"port {text!r}: must be like 8080:80, :80 or 80")
    return int(numbers[0]), int(remote)


async def forward(client: Client, name: str, ports: Sequence[tuple[int, int]], address: str) -> int:
    """Listen until a signal ends it; each connection is one to the pod, whose errors are told and end nothing else."""
    pod = await work.pod_or_none(client, name)
    if pod is None:
        container = await work.container_of(client, name)
        pod = client.pod_by_id(container.pod_id)
    async with interruptible(), contextlib.AsyncExitStack() as stack:
        for local, remote in ports:
            try:
                listener = await stack.enter_async_context(
                    pod.listen(remote, host=address, local_port=local, on_error=lambda error: say(str(error)))
                )
            except errors.AlreadyExists as error:
                raise errors.Unavailable(f"{error}; choose another port, as in :{remote}") from error
            print(f"{listener.host}:{listener.port} -> {remote}", flush=True)
        await asyncio.Event().wait()
    return 0
