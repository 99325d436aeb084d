"""What controllers are tried with: a subject, and a trial of one check on it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from atoll import errors
from atoll.sandbox.controller import Controller, ControllerInstance, CreateOptions, ExitStatus, Sandbox
from atoll.testing.conformance.bounded import Bounded, Late
from atoll.testing.conformance.check import Broken, refuses, told
from atoll.testing.conformance.host import Host, Trace

WITHIN_S = 30.0
SETTLE_S = 2.0
"""The kernel takes namespaces and cgroups down behind the last process; this long may it take."""
ASK_AGAIN_S = 0.02
NAME_LENGTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A controller and what is needed to try it.

    `sandbox` gives a record for an ID, `options` what to create it with. All else is optional; the checks that need it
    do not apply without it:
    `refused` gives options that create or start must refuse, `stuck` those whose start fails and cannot be undone;
    `end` ends a running sandbox's process from outside and gives the exit status that must be told;
    `left` names what is still there of an ID, and `host` sees what a running one has;
    `namespaces` are the kinds that each sandbox must have for itself;
    `tasks` asks the Task API at a running sandbox's address for the pid of who serves it; `owns_tasks`: that is the
    controller's own shim, which can refuse what a paused sandbox cannot have;
    `populate` runs one more process in a running sandbox, which goes with it;
    `restart` closes the controller and gives a new one over the same state, which has taken up the sandboxes given;
    `another` is a connection of its own to the same controller, which is cut when its context is left.
    A call may take `within_s` seconds, and what is freed may still be seen for `settle_s`.
    """

    controller: Controller
    sandbox: Callable[[str], Sandbox]
    options: Callable[[str], CreateOptions]
    name: str = "controller"
    refused: Callable[[str], CreateOptions] | None = None
    stuck: Callable[[str], CreateOptions] | None = None
    end: Callable[[ControllerInstance], Awaitable[int]] | None = None
    left: Callable[[str], Awaitable[tuple[str, ...]]] | None = None
    host: Host | None = None
    namespaces: frozenset[str] = frozenset()
    tasks: Callable[[ControllerInstance], Awaitable[int]] | None = None
    owns_tasks: bool = True
    populate: Callable[[ControllerInstance], Awaitable[None]] | None = None
    restart: Callable[[tuple[Sandbox, ...]], Awaitable[Controller]] | None = None
    another: Callable[[], AbstractAsyncContextManager[Controller]] | None = None
    prefix: str = "check"
    within_s: float = WITHIN_S
    settle_s: float = SETTLE_S


class Trial:
    """One check under way: makes sandboxes and remembers them.

    `controller` bounds every call; `raw` is the subject's own, for calls that are to be cancelled.
    """

    def __init__(self, subject: Subject, name: str, lives: list[Controller] | None = None) -> None:
        """`lives` are the controllers that the checks of one run have used, the present one last."""
        self.subject = subject
        self._lives = [subject.controller] if lives is None else lives
        self.made: list[str] = []
        self._name = name.replace("_", "-")[:NAME_LENGTH].strip("-")
        self._numbers = itertools.count(1)
        self._traces: dict[str, Trace] = {}
        self.use(self._lives[-1])

    def use(self, controller: Controller) -> None:
        """Go on with another controller over the same state, and all checks after this one."""
        if controller is not self._lives[-1]:
            self._lives.append(controller)
        self.raw = controller
        self.controller = Bounded(controller, self.subject.within_s)

    @property
    def doing(self) -> str:
        return self.controller.doing

    def new_id(self) -> str:
        """An ID that no other check uses; what is made under it is shut down at the end."""
        made = f"{self.subject.prefix}-{self._name}-{next(self._numbers)}"
        self.made.append(made)
        return made

    async def create(self, made: str) -> None:
        """Create it as the subject wants."""
        await self.controller.create(self.subject.sandbox(made), self.subject.options(made))

    async def created(self) -> str:
        """A sandbox that is created and not started."""
        made = self.new_id()
        await self.create(made)
        return made

    async def start(self, made: str) -> ControllerInstance:
        """Start it, and note what it has on its host."""
        instance = await self.controller.start(made)
        await self.note(instance)
        return instance

    async def started(self) -> tuple[str, ControllerInstance]:
        """A sandbox that runs."""
        made = await self.created()
        return made, await self.start(made)

    async def note(self, instance: ControllerInstance) -> Trace | None:
        """What a running sandbox can be told by, remembered until the end; None where nobody sees the host."""
        host, made = self.subject.host, instance.sandbox_id
        if host is None:
            return None
        socket = instance.address.partition("+")[2].removeprefix("unix://")
        # A network namespace that it was given stays when it goes.
        given = {"net"} if self.subject.options(made).netns_path else set[str]()
        self._traces[made] = await host.trace(made, instance.pid, socket, self.subject.namespaces - given)
        return self._traces[made]

    async def shutdown(self, made: str) -> None:
        """Shut it down, having noted what is to go with it."""
        if self.subject.host is not None and made in self._traces:
            self._traces[made] = await self.subject.host.again(self._traces[made])
        await self.controller.shutdown(made)

    async def left(self, made: str) -> tuple[str, ...]:
        """What is there of a sandbox that was shut down, once the kernel had its time."""
        deadline = time.monotonic() + self.subject.settle_s
        while True:
            found = await self._left(made)
            if not found or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(ASK_AGAIN_S)

    async def _left(self, made: str) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        if self.subject.left is not None:
            found += await self.subject.left(made)
        if self.subject.host is not None:
            found += await self.subject.host.left(self._traces.get(made, Trace(sandbox_id=made)))
        return tuple(dict.fromkeys(found))

    async def clean_up(self) -> tuple[str, ...]:
        """Shut down what was made; what would not go and what is left, in words."""
        found: list[str] = []
        for made in self.made:
            try:
                await self._shutdown(made)
            except Exception as error:  # noqa: BLE001  whatever it raises, the rest is to be cleared away too
                found.append(f"shutdown of {made}: {told(error)}")
            try:
                found += [f"{one} of {made}" for one in await self.left(made)]
            except Exception as error:  # noqa: BLE001  so it is of what the subject brings to look with
                found.append(f"what is left of {made} cannot be seen: {told(error)}")
        self.made.clear()
        return tuple(found)

    async def _shutdown(self, made: str) -> None:
        try:
            await self.shutdown(made)
        except Late:
            raise
        except Exception:  # noqa: BLE001  a second call goes on where the first one gave up
            await self.controller.stop(made)
            await self.controller.shutdown(made)


async def ends(trial: Trial, sandbox_id: str) -> ExitStatus:
    """What `wait` answers, which it must within the subject's time."""
    return await trial.controller.wait(sandbox_id)


async def is_forgotten(trial: Trial, made: str) -> None:
    """`Broken` unless an ID is unknown to status and wait, and nothing of it is left."""
    await refuses("status after shutdown", trial.controller.status(made), errors.NotFound)
    await refuses("wait after shutdown", trial.controller.wait(made), errors.NotFound)
    if left := await trial.left(made):
        raise Broken("left after shutdown", "nothing", ", ".join(left))
