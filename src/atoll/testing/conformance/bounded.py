"""A controller whose every call ends in time, whatever is behind it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from atoll import errors
from atoll.concurrency import settle
from atoll.sandbox.controller import (
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Sandbox,
)
from atoll.testing.conformance.check import Broken

T = TypeVar("T")


class Late(Broken):
    """No answer in time."""


async def in_time(work: Coroutine[Any, Any, T], *, within: float, what: str) -> T:
    """What `work` gives or raises; `Late` when it takes longer, even where it does not let itself be cancelled."""
    outcome = await settle(_outcome(work), within=within, name=what)
    if isinstance(outcome, errors.Cancelled):
        raise Broken(what, "an answer", "it was cancelled from within")
    if isinstance(outcome, BaseException):
        raise Late(what, f"an answer within {within:g} s", "none")
    result, error = outcome
    if error is not None:
        raise error
    return result[0]


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[list[T], Exception | None]:
    try:
        return [await work], None
    except Exception as error:  # noqa: BLE001  it is raised again where the result is taken
        return [], error


class Bounded(Controller):
    """Passes every call on and raises `Late` where no answer comes within `within_s` seconds; `wait` too.

    `doing` names the call under way, for the report of a check that takes too long as a whole.
    """

    def __init__(self, controller: Controller, within_s: float) -> None:
        self.behind = controller
        self.doing = ""
        self._within_s = within_s

    async def _call(self, method: str, sandbox_id: str, work: Coroutine[Any, Any, T], extra_s: float = 0.0) -> T:
        what = self.doing = f"{method} of {sandbox_id[:80]!r}"
        return await in_time(work, within=self._within_s + extra_s, what=what)

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await self._call("create", sandbox.id, self.behind.create(sandbox, options))

    async def start(self, sandbox_id: str) -> ControllerInstance:
        return await self._call("start", sandbox_id, self.behind.start(sandbox_id))

    async def platform(self, sandbox_id: str) -> Platform:
        return await self._call("platform", sandbox_id, self.behind.platform(sandbox_id))

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self._call("stop", sandbox_id, self.behind.stop(sandbox_id, timeout_s), timeout_s or 0.0)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        return await self._call("wait", sandbox_id, self.behind.wait(sandbox_id))

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        return await self._call("status", sandbox_id, self.behind.status(sandbox_id, verbose))

    async def shutdown(self, sandbox_id: str) -> None:
        await self._call("shutdown", sandbox_id, self.behind.shutdown(sandbox_id))

    async def metrics(self, sandbox_id: str) -> Metric:
        return await self._call("metrics", sandbox_id, self.behind.metrics(sandbox_id))

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        await self._call("update", sandbox_id, self.behind.update(sandbox_id, sandbox, fields))

    async def pause(self, sandbox_id: str) -> None:
        await self._call("pause", sandbox_id, self.behind.pause(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        await self._call("resume", sandbox_id, self.behind.resume(sandbox_id))

    async def ping(self, sandbox_id: str) -> None:
        await self._call("ping", sandbox_id, self.behind.ping(sandbox_id))
