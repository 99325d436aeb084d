"""A connection to one shim, and the ways a shim comes to be.

`Launcher` is the one interface: `AtollLauncher` asks the zygote for a fork of our own shim,
`BinaryLauncher` runs the `start` and `delete` calls of anybody's shim binary. What they give is the
same `Shim`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll import errors
from atoll.runtime import hung
from atoll.runtime.bootstrap import MIN_VERSION, Bootstrap
from atoll.runtime.bundle import Bundle
from atoll.runtime.own import OwnClient
from atoll.runtime.sandbox import SandboxClient
from atoll.runtime.task import TaskClient
from atoll.sandbox.controller import ExitStatus, Runtime
from atoll.ttrpc.client import Client

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """Which shim, for what: `id` is a sandbox's, or a task's where the shim serves one task."""

    id: str
    namespace: str
    runtime: Runtime
    bundle: Bundle


class Shim:
    """One connected shim; closing the connection leaves the shim alive."""

    def __init__(self, *, id: str, namespace: str, bootstrap: Bootstrap, client: Client) -> None:
        self.id = id
        self.namespace = namespace
        self.bootstrap = bootstrap
        self.client = client
        self.tasks = TaskClient(client, version=bootstrap.version, namespace=namespace)
        self.sandbox = SandboxClient(client, namespace=namespace)
        self.own = OwnClient(client)

    @classmethod
    async def connect(cls, *, id: str, namespace: str, bootstrap: Bootstrap, bundle: Path | None = None) -> Shim:
        """Connect to where `bootstrap` points; raises `Unavailable` at once where nobody listens or it is gone.

        `bundle` has the record of its process, which an answer that does not come is to name. What a shim has begun may
        hold its socket after it: that takes connections and never answers.
        """
        if bootstrap.protocol != "ttrpc":
            raise errors.Unimplemented(f"shim {id}: speaks {bootstrap.protocol}, only ttrpc is supported")
        if bundle is not None and hung.is_dead(bundle):
            raise errors.Unavailable(hung.describe(bundle))
        client = await Client.connect(bootstrap.address, timeout=CONNECT_TIMEOUT_S)
        if bundle is not None:
            client.whose = functools.partial(hung.describe, bundle)
        return cls(id=id, namespace=namespace, bootstrap=bootstrap, client=client)

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the connection is over."""
        return self.client.closed

    async def check_version(self) -> int:
        """Ask the Task service who serves, lowering version 3 to 2 where that one only is known; the shim's pid."""
        try:
            return (await self.tasks.connect(self.id))[0]
        except errors.Unimplemented:
            if self.bootstrap.version <= MIN_VERSION:
                raise
        lowered = Bootstrap(version=MIN_VERSION, address=self.bootstrap.address, protocol=self.bootstrap.protocol)
        tasks = TaskClient(self.client, version=MIN_VERSION, namespace=self.namespace)
        pid, _ = await tasks.connect(self.id)
        self.bootstrap, self.tasks = lowered, tasks
        return pid

    async def wait_closed(self, within: float) -> bool:
        """Whether the shim hung up within so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.client.closed, within)
        return self.client.is_closed

    async def aclose(self) -> None:
        """Let go of the connection; the shim lives on. Idempotent."""
        await self.client.aclose()


class Launcher(Protocol):
    """Makes, finds and ends the shims of one kind."""

    async def launch(self, request: LaunchRequest) -> Shim:
        """Start a shim in its bundle, which is there; on an error nothing of it is left but the bundle."""
        ...

    async def reconnect(self, request: LaunchRequest) -> Shim:
        """Connect to the shim whose bootstrap file is in the bundle.

        Raises `NotFound` where there is no such file, `DataLoss` where it cannot be read, `Unavailable` where
        nobody answers.
        """
        ...

    async def ended(self, request: LaunchRequest) -> ExitStatus | None:
        """How the sandbox or task of a shim that is gone ended; None where the shim left no word of it."""
        ...

    async def delete(self, request: LaunchRequest, *, has_hung_up: bool = False) -> ExitStatus | None:
        """Free everything of a shim that is gone or must go, without its help, and its bundle; idempotent.

        `has_hung_up`: it has answered Shutdown and then hung up, so that there is hardly anything to do.

        How its last process ended, where the shim's own clean-up could tell. An error leaves the bundle, so
        that it can be tried again.
        """
        ...
