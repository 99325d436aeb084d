"""The start ladder as the SDK sees it over gRPC: `python bench/ladder.py`. As root.

Per round, one after the other on one private daemon: a cold start (pod and running container), an acquisition of a
pool's member. Prints a table; n, median, p95, all in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atoll
from bench import places
from bench.daemons import Atoll
from bench.places import Places

OPTIONS = atoll.ContainerOptions(image="atoll/busybox", command=["sleep", "100000"])
POOL_SIZE = 4
SETTLED_WITHIN_S = 30.0

Times = dict[str, list[float]]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-n", type=int, default=30, help="rounds")
    asked = options.parse_args()
    with places.prefix() as prefix, Atoll(Places(prefix=prefix, name="ladder", number=1)) as daemon:
        times = asyncio.run(measure(daemon.places.socket, asked.n))
    show(times)
    return 0


def show(times: Times) -> None:
    print(f"{'what':44} {'n':>3} {'median':>9} {'p95':>9} {'best':>9}")
    for name, found in times.items():
        found = sorted(found)
        tail = found[min(len(found) - 1, round(0.95 * len(found)))]
        print(f"{name:44} {len(found):3} {statistics.median(found):9.2f} {tail:9.2f} {found[0]:9.2f}")


async def measure(socket: Path, n: int) -> Times:
    times: Times = {}
    async with atoll.connect(socket, start=False) as client:
        for network in ("none", "default"):
            await starts(client, network, n, times)
    return times


async def starts(client: atoll.Client, network: str, n: int, times: Times) -> None:
    pod_options = atoll.PodOptions(network="none" if network == "none" else "default")
    pool = await client.pool(f"ladder-{network}", OPTIONS, size=POOL_SIZE, pod=pod_options)
    await settled(pool)
    for _ in range(n):
        async with timed(times, f"cold start, network {network}") as clock:
            pod = await client.run_pod(network=pod_options.network)
            await pod.run(OPTIONS.image, OPTIONS.command)
            clock.stop()
            await pod.remove()
        await settled(pool)
        async with timed(times, f"pool start, network {network}") as clock:
            taken = await pool.take()
            clock.stop()
            if taken.start.rung is not atoll.Rung.POOL:
                raise RuntimeError("the pool had no member although it was settled")
            times.setdefault(f"  of it in the daemon, network {network}", []).append(taken.start.duration_s * 1e3)
            await taken.remove()
        await settled(pool)
    await pool.delete()


async def settled(pool: atoll.Pool) -> None:
    """Until the pool is full and nothing is being made."""
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while True:
            status = await pool.status()
            if status.ready == status.size and not status.booting:
                return
            await asyncio.sleep(0.02)


class timed:  # noqa: N801 - reads as a statement
    """Measures until `stop`, or to the end of the block."""

    def __init__(self, times: Times, name: str) -> None:
        self._found = times.setdefault(name, [])
        self._clock: Callable[[], float] = time.perf_counter
        self._begun = 0.0
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        self._begun = self._clock()
        return self

    def stop(self) -> None:
        self._found.append((self._clock() - self._begun) * 1e3)
        self._is_stopped = True

    async def __aexit__(self, *error: object) -> None:
        if not self._is_stopped and error[0] is None:
            self.stop()


if __name__ == "__main__":
    raise SystemExit(main())
