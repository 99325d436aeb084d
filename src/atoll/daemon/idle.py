"""When a private daemon may end: nobody asks, and nothing runs."""

from __future__ import annotations

import asyncio

from atoll.engine.engine import Engine
from atoll.sandbox.controller import State


class Idle:
    """Counts calls; sets `stop` after `after_s` seconds without one and without a ready pod. 0 never does."""

    def __init__(self, stop: asyncio.Event, after_s: float, engine: Engine) -> None:
        self._stop = stop
        self._after_s = after_s
        self._engine = engine
        self._calls = 1
        self._timer: asyncio.TimerHandle | None = None
        self.ran_out = False

    def begin(self) -> None:
        self._calls += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        self._calls -= 1
        if self._calls == 0 and self._after_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._check)

    def _check(self) -> None:
        self._timer = None
        engine = self._engine
        runs = any(pod.state is State.READY for pod in engine.pods.list()) or engine.sandboxes.is_live()
        if not runs and not engine.parts.ledger.debts():
            self.ran_out = True
            self._stop.set()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._check)
