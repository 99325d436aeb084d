"""Branches of files, as the SDK sees them over gRPC: `python bench/branches.py`. As root.

Containers that have written 1 MiB, 100 MiB and 1,000 small files: snapshot while they run (and how long they stand
still), fork, rollback, diff, commit. Prints a table; n, median, p95, all in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atoll
from bench import places
from bench.daemons import Atoll
from bench.ladder import Times, show, timed
from bench.places import Places

IMAGE = "atoll/busybox"
SLEEP = ["sleep", "100000"]
WRITTEN = {
    "1 MiB": "head -c 1048576 /dev/urandom >/data",
    "100 MiB": "head -c 104857600 /dev/urandom >/data",
    "1,000 files": "mkdir /many; i=0; while [ $i -lt 1000 ]; do echo $i >/many/$i; i=$((i+1)); done",
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-n", type=int, default=15, help="rounds")
    asked = options.parse_args()
    with places.prefix() as prefix, Atoll(Places(prefix=prefix, name="branches", number=1)) as daemon:
        times = asyncio.run(measure(daemon.places.socket, asked.n))
    show(times)
    return 0


async def measure(socket: Path, n: int) -> Times:
    times: Times = {}
    async with atoll.connect(socket, start=False) as client:
        for written, script in WRITTEN.items():
            async with await client.run_pod(network="none") as pod:
                container = await pod.run(IMAGE, SLEEP, name="c")
                await container.exec(["sh", "-c", script])
                for _ in range(n):
                    container = await branch(client, pod, container, written, times)
    return times


async def branch(
    client: atoll.Client, pod: atoll.Pod, container: atoll.Container, written: str, times: Times
) -> atoll.Container:
    """One round; the container that goes on."""
    async with timed(times, f"snapshot, {written}"):
        snapshot = await container.snapshot()
    assert snapshot.cost is not None
    times.setdefault(f"  of it standing still, {written}", []).append(snapshot.cost.paused_s * 1e3)
    async with timed(times, f"plain create and start, {written}"):
        plain = await pod.run(IMAGE, SLEEP)
    async with timed(times, f"fork, {written}"):
        (fork,) = await snapshot.fork()
    async with timed(times, f"diff, {written}"):
        await fork.diff()
    async with timed(times, f"rollback of the fork, {written}"):
        fork = await fork.rollback(snapshot)
    async with timed(times, f"commit, {written}"):
        image = await container.commit(f"localhost/bench:{time.time_ns()}")
    await client.remove_image(image)
    for one in (plain, fork):
        await one.remove()
    await snapshot.remove()
    return container


if __name__ == "__main__":
    raise SystemExit(main())
