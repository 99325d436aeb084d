"""A sandboxer that goes wrong by a plan, around any other: to try whatever sits above a controller.

    python examples/chaos_sandboxer.py unix:///run/chaos.sock unix:///run/real.sock plan.json 7

serves at the first address what answers at the second one. A plan is JSON: rules, of which every one that fits a call
happens to it, in order. The same plan and seed (7) give the same disturbances to the same calls of each method.

    {"rules": [
      {"method": "status", "chance": 0.2, "delay_s": [0.1, 2.0]},
      {"method": "start", "calls": [2, 3], "error": "Unavailable", "text": "the disk is full"},
      {"method": "start", "calls": [5], "error": "Internal", "when": "after"},
      {"method": "*", "chance": 0.01, "crash": true}
    ]}

`calls` counts each method's calls from 1; without it `chance` decides, 1 by itself. `when` is `before` the call, or
`after` it: then the work is done and its answer lost. A crash ends the process as SIGKILL does.
"""

import asyncio
import logging
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from atoll import errors
from atoll import sandbox as s
from atoll.sandboxers.remote import RemoteController

T = TypeVar("T")
METHODS = (
    *("create", "start", "platform", "stop", "wait", "status", "shutdown"),
    *("metrics", "update", "pause", "resume", "ping"),
)
KINDS = {kind.__name__: kind for kind in errors.KINDS.values()}
log = logging.getLogger("chaos")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One disturbance: which calls it fits, and what happens to them."""

    method: str
    calls: tuple[int, ...] = ()
    chance: float = 1.0
    when: Literal["before", "after"] = "before"
    delay_s: float | tuple[float, float] = 0.0
    error: str = ""
    text: str = "chaos, as planned"
    crash: bool = False

    def __post_init__(self) -> None:
        if self.method != "*" and self.method not in METHODS:
            raise ValueError(f"no method {self.method!r}")
        if self.error and self.error not in KINDS:
            raise ValueError(f"no error {self.error!r}")


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules; `seed` makes chance repeatable."""

    rules: tuple[Rule, ...] = ()
    seed: int = 0

    @classmethod
    def read(cls, text: bytes, seed: int = 0) -> "Plan":
        """Of JSON; raises `InvalidArgument` for what is no plan."""
        try:
            return msgspec.structs.replace(msgspec.json.decode(text, type=cls), seed=seed)
        except msgspec.MsgspecError as error:
            raise errors.InvalidArgument(f"plan: {error}") from None

    def of(self, method: str, number: int) -> list[tuple[Rule, float]]:
        """What happens to call `number` of a method: rules, each with its delay. Depends on nothing else."""
        found: list[tuple[Rule, float]] = []
        for place, rule in enumerate(self.rules):
            dice = random.Random(f"{self.seed}/{place}/{method}/{number}")
            is_hit = number in rule.calls if rule.calls else dice.random() < rule.chance
            if rule.method in ("*", method) and is_hit:
                delay_s = rule.delay_s if isinstance(rule.delay_s, float | int) else dice.uniform(*rule.delay_s)
                found.append((rule, delay_s))
        return found


def crash() -> None:
    """End as nobody can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


class ChaosSandboxer(s.Controller):
    """Passes calls on to `inner`, disturbed by `plan`. `done` tells what happened: method, number, rule."""

    def __init__(self, inner: s.Controller, plan: Plan, crash: Callable[[], None] = crash) -> None:
        self.inner = inner
        self.plan = plan
        self.calls: Counter[str] = Counter()
        self.done: list[tuple[str, int, Rule]] = []
        self._crash = crash

    async def _disturbed(self, method: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self.calls[method] += 1
        number = self.calls[method]
        planned = self.plan.of(method, number)
        await self._happen(method, number, planned, "before")
        result = await work()
        await self._happen(method, number, planned, "after")
        return result

    async def _happen(self, method: str, number: int, planned: list[tuple[Rule, float]], when: str) -> None:
        for rule, delay_s in planned:
            if rule.when != when:
                continue
            self.done.append((method, number, rule))
            log.warning("%s %d: %s it %.3g s, %s", method, number, when, delay_s, "crash" if rule.crash else rule.error)
            await asyncio.sleep(delay_s)
            if rule.crash:
                self._crash()
            if rule.error:
                raise KINDS[rule.error](rule.text)

    async def create(self, sandbox: s.Sandbox, options: s.CreateOptions) -> None:
        await self._disturbed("create", lambda: self.inner.create(sandbox, options))

    async def start(self, sandbox_id: str) -> s.ControllerInstance:
        return await self._disturbed("start", lambda: self.inner.start(sandbox_id))

    async def platform(self, sandbox_id: str) -> s.Platform:
        return await self._disturbed("platform", lambda: self.inner.platform(sandbox_id))

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self._disturbed("stop", lambda: self.inner.stop(sandbox_id, timeout_s))

    async def wait(self, sandbox_id: str) -> s.ExitStatus:
        return await self._disturbed("wait", lambda: self.inner.wait(sandbox_id))

    async def status(self, sandbox_id: str, verbose: bool = False) -> s.ControllerStatus:
        return await self._disturbed("status", lambda: self.inner.status(sandbox_id, verbose))

    async def shutdown(self, sandbox_id: str) -> None:
        await self._disturbed("shutdown", lambda: self.inner.shutdown(sandbox_id))

    async def metrics(self, sandbox_id: str) -> s.Metric:
        return await self._disturbed("metrics", lambda: self.inner.metrics(sandbox_id))

    async def update(self, sandbox_id: str, sandbox: s.Sandbox, fields: tuple[str, ...] = ()) -> None:
        await self._disturbed("update", lambda: self.inner.update(sandbox_id, sandbox, fields))

    async def pause(self, sandbox_id: str) -> None:
        await self._disturbed("pause", lambda: self.inner.pause(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        await self._disturbed("resume", lambda: self.inner.resume(sandbox_id))

    async def ping(self, sandbox_id: str) -> None:
        await self._disturbed("ping", lambda: self.inner.ping(sandbox_id))

    async def recover(self, sandbox: s.Sandbox) -> s.ControllerStatus:
        return await self.inner.recover(sandbox)

    async def aclose(self) -> None:
        await self.inner.aclose()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    if not 4 <= len(sys.argv) <= 5:
        sys.exit("chaos: the arguments are ADDRESS REAL-ADDRESS PLAN [SEED]")
    listen, real, plan, *seed = sys.argv[1:]
    try:
        read = Plan.read(Path(plan).read_bytes(), int(seed[0]) if seed else 0)
    except (OSError, ValueError, errors.InvalidArgument) as error:
        sys.exit(f"chaos: {error}")
    s.run(lambda: ChaosSandboxer(RemoteController(real), read), listen)
