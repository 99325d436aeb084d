"""`make soak MINUTES=n`: lives of every kind by several callers, with kills and faults at random. As root.

python -m tests.chaos.soak --minutes 10            a seed of its own, which it prints
python -m tests.chaos.soak --minutes 10 --seed 7   the same choices again; what they meet depends on the clock as well

Ends with the checks of a cell of the kill matrix, and a summary; with status 0 where nothing is lost and nothing left.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from atoll.faults import DONE, Action, Rule
from tests.chaos.arena import CLEAN_WITHIN_S, KILLED_EXIT_CODES, Arena, alone, arena_in
from tests.chaos.cells import UNDOING, Blow
from tests.chaos.images import ImageLife
from tests.chaos.kinds import possible
from tests.chaos.life import Life
from tests.chaos.outside import outside
from tests.chaos.points import sites
from tests.chaos.restarts import RestartLife
from tests.integration.cri_client import connected

STRIKES = {
    Blow.ERROR: 10,
    Blow.UNDO: 3,
    Blow.STALL: 5,
    Blow.DAEMON: 4,
    Blow.SHIM: 3,
    Blow.ZYGOTE: 2,
    Blow.REBOOT: 0.3,
}
"""How often each is chosen, one beside another."""
PAUSES_S = (0.2, 3.0)
"""Between two strikes."""
ATTEMPTS = 50
"""What is lost to a strike is made again this often."""
ENDED_WITHIN_S = 240.0
"""From the last strike to the end of every life that was under way."""


@dataclass(slots=True)
class Count:
    """What was done; callers add to it under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    lives: Counter[str] = field(default_factory=Counter[str])
    steps: int = 0
    refused: int = 0
    again: int = 0
    strikes: Counter[Blow] = field(default_factory=Counter[Blow])
    lost: list[str] = field(default_factory=list[str])

    def add(self, name: str, life: Life) -> None:
        unknown = [code for code in life.exit_codes if code not in KILLED_EXIT_CODES]
        with self.lock:
            self.lives[name] += 1
            self.steps += life.steps
            self.refused += len(life.failures)
            self.again += life.attempt
            if unknown:
                self.lost.append(f"{name}: exit codes {unknown}")


class Soak:
    """One arena, its callers, and who strikes."""

    def __init__(self, arena: Arena, seed: int, callers: int) -> None:
        self._arena = arena
        arena.keeps_far = True
        self._seed = seed
        self._callers = callers
        self._kinds = {name: kind for name, kind in possible().items() if not issubclass(kind, RestartLife)}
        self._stop = threading.Event()
        self._images = threading.Lock()
        """Held by who leads the life of the two images: another would remove them under it."""
        self.count = Count()

    def run(self, seconds: float) -> str:
        """All of it; what is left at the end, in words."""
        threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(self._callers)]
        for thread in threads:
            thread.start()
        self._strike_until(time.monotonic() + seconds)
        self._stop.set()
        self._arena.disarm()
        deadline = time.monotonic() + ENDED_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hung = sum(thread.is_alive() for thread in threads)
        with connected(self._arena.roots) as cri:
            dirt = self._arena.dirt(cri)
        return "; ".join(filter(None, (f"{hung} callers hang" if hung else "", dirt)))

    # callers

    def _call(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        with connected(self._arena.roots) as cri:
            while not self._stop.is_set():
                name = chance.choice(sorted(self._kinds))
                if issubclass(self._kinds[name], ImageLife):
                    with self._images:
                        self._lead(name, self._arena.life(cri, name))
                else:
                    self._lead(name, self._arena.life(cri, name))

    def _lead(self, name: str, life: Life) -> None:
        life.attempts = ATTEMPTS
        try:
            life.lead()
        except (AssertionError, grpc.RpcError, OSError) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{name} ({life.name}), {place.name}:{place.lineno}: {error or type(error).__name__}"
            print(f"LOST {told}; calls failed with {life.failures[-3:]}", flush=True)
            with self.count.lock:
                self.count.lost.append(told)
        self.count.add(name, life)

    # strikes

    def _strike_until(self, deadline: float) -> None:
        chance = random.Random(self._seed)
        while (left := deadline - time.monotonic()) > 0:
            if self._stop.wait(min(left, chance.uniform(*PAUSES_S))):
                return
            (blow,) = chance.choices(list(STRIKES), list(STRIKES.values()))
            self._strike(blow, chance)
            self.count.strikes[blow] += 1

    def _strike(self, blow: Blow, chance: random.Random) -> None:
        arena = self._arena
        match blow:
            case Blow.ERROR:
                arena.arm([Rule(point=_pattern(chance), action=Action.ERROR)])
            case Blow.UNDO:
                undo = [Rule(point=point, action=Action.ERROR) for point in UNDOING]
                arena.arm([Rule(point=_pattern(chance), action=Action.ERROR), *undo])
            case Blow.STALL:
                arena.arm([Rule(point=_pattern(chance), action=Action.STALL, seconds=chance.uniform(0.05, 1.0))])
            case _:
                arena.disarm()
                arena.strike(blow, only=chance)


def _pattern(chance: random.Random) -> str:
    """A point of the code, as a pattern: whatever operation names it, whatever stands in its place."""
    name = chance.choice(sites()).name
    if "{" in name:
        name = name[2:].partition("{")[0]
        return f"{name}*"
    return f"*{name}{chance.choice(('', DONE))}"


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("soak: needs root: it runs daemons and pods (sudo make soak)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 31)
    seconds = options.seconds or options.minutes * 60
    print(f"seed {seed}, {options.callers} callers, {seconds:g} s", flush=True)
    alone()
    folder = Path("/var/tmp", f"soak-outside-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    leaks: list[str] = []
    try:
        with outside(folder) as out, arena_in(out, leaks.append, keep=options.keep) as arena, arena.open(looks=False):
            soak = Soak(arena, seed, options.callers)
            left = soak.run(seconds)
    finally:
        shutil.rmtree(folder)
    print(summary(soak.count, left, leaks))
    return 1 if left or soak.count.lost or leaks else 0


def summary(count: Count, left: str, leaks: list[str]) -> str:
    """What was done and what became of it, a line each."""
    lives = ", ".join(f"{number} {name}" for name, number in sorted(count.lives.items()))
    strikes = ", ".join(f"{number} {blow}" for blow, number in count.strikes.most_common())
    lines = [
        f"lives: {count.lives.total()} ({lives})",
        f"operations: {count.steps} done, {count.refused} failed and tried again, {count.again} lives begun anew",
        f"strikes: {count.strikes.total()} ({strikes})",
        f"lost: {len(count.lost)}",
        *count.lost,
        f"left within {CLEAN_WITHIN_S:g} s of the end: {left or 'nothing'}",
        *leaks,
    ]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random lives, kills and faults for a given time.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.0, help="instead of minutes")
    parser.add_argument("--seed", type=int, help="of all choices (default a new one)")
    parser.add_argument("--callers", type=int, default=4, help="side by side (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the folders and the daemon's log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
