"""What checks of a controller are made with: the subject, a trial of it, expectations."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

from atoll import errors
from atoll.sandbox.controller import Controller, ControllerInstance, CreateOptions, ExitStatus, Sandbox

WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A controller and what is needed to try it.

    `sandbox` gives a record for an ID, `options` what to create it with. Optional: `refused` gives options that
    create or start must refuse; `end` ends a running sandbox's process from outside and gives the exit status that
    must be told; `left` names what is still there of an ID; `restart` closes the controller and gives a new one
    over the same state, which has taken up the sandboxes given.
    """

    controller: Controller
    sandbox: Callable[[str], Sandbox]
    options: Callable[[str], CreateOptions]
    refused: Callable[[str], CreateOptions] | None = None
    end: Callable[[ControllerInstance], Awaitable[int]] | None = None
    left: Callable[[str], Awaitable[tuple[str, ...]]] | None = None
    restart: Callable[[tuple[Sandbox, ...]], Awaitable[Controller]] | None = None
    prefix: str = "check"
    within_s: float = WITHIN_S


class Broken(AssertionError):
    """A rule does not hold."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what = what
        self.expected = expected
        self.got = got


class NotApplicable(Exception):
    """The subject lacks what a check needs, or the contract leaves it free."""


class Trial:
    """One check under way: makes sandboxes and remembers them."""

    def __init__(self, subject: Subject, name: str) -> None:
        self.subject = subject
        self.controller = subject.controller
        self.made: list[str] = []
        self._name = name.replace("_", "-")[:40]
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        """An ID that no other check uses; what is made under it is shut down at the end."""
        made = f"{self.subject.prefix}-{self._name}-{next(self._numbers)}"
        self.made.append(made)
        return made

    async def created(self) -> str:
        """A sandbox that is created and not started."""
        made = self.new_id()
        await self.controller.create(self.subject.sandbox(made), self.subject.options(made))
        return made

    async def started(self) -> tuple[str, ControllerInstance]:
        """A sandbox that runs."""
        made = await self.created()
        return made, await self.controller.start(made)

    async def clean_up(self) -> None:
        """Shut down what was made; `Broken` where something of it stays."""
        for made in self.made:
            await self.controller.shutdown(made)
            if self.subject.left is not None:
                equal(f"left of {made} after shutdown", (), await self.subject.left(made))


def equal(what: str, expected: object, got: object) -> None:
    """`Broken` unless both are equal."""
    if expected != got:
        raise Broken(what, repr(expected), repr(got))


def true(what: str, expected: str, holds: bool, got: object) -> None:
    """`Broken` unless it holds."""
    if not holds:
        raise Broken(what, expected, repr(got))


async def refuses(what: str, work: Awaitable[object], *kinds: type[errors.AtollError]) -> errors.AtollError:
    """The error that `work` raises, which must be of one of `kinds`."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    try:
        got = await work
    except kinds as error:
        return error
    except errors.AtollError as error:
        raise Broken(what, expected, f"{type(error).__name__}: {error}") from error
    raise Broken(what, expected, f"success: {got!r}")


async def ends(trial: Trial, sandbox_id: str) -> ExitStatus:
    """What `wait` answers, which it must within the subject's time."""
    try:
        return await asyncio.wait_for(trial.controller.wait(sandbox_id), trial.subject.within_s)
    except TimeoutError:
        raise Broken("wait", f"an answer within {trial.subject.within_s:g} s", "none") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule: its name, where it is written, and how it is tried."""

    name: str
    source: str
    run: Callable[[Trial], Coroutine[None, None, None]] = field(repr=False)

    def __str__(self) -> str:
        return self.name


async def run_check(check: Check, subject: Subject) -> None:
    """Run one check and clean up behind it; raises `Broken`, `NotApplicable`, or what the controller raised."""
    trial = Trial(subject, check.name)
    try:
        await check.run(trial)
    except BaseException:
        for made in trial.made:
            with contextlib.suppress(errors.AtollError):
                await trial.controller.shutdown(made)
        raise
    await trial.clean_up()
