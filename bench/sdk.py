"""The SDK beside podman's Docker API by its socket: start, exec, upload, follow of a log. In one run, in turns."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import atoll
from bench import ladder, timing
from bench.daemons import Atoll
from bench.places import Places
from bench.podman import Podman

PEER, OWN = "podman API", "atoll SDK"
COLD, POOL, EXEC = "start: container running", "start: of a pool", "exec, with its output and exit code"
SMALL, LARGE, LOG = "upload of {files:,} files", "upload of one file, {mib} MiB", "follow of a log, {mib} MiB in lines"
SLEEP = ["sleep", "100000"]
LINE_BYTES = 128
POOL_SIZE = 4
AIM = 0.5
POOL_AIM_MS = 3.0

Times = dict[str, dict[str, list[float]]]
"""Milliseconds, by row and contestant."""


def measure(prefix: str, options: argparse.Namespace) -> Times:
    """Both daemons are there together; rounds go in turns."""
    own = Atoll(Places(prefix=prefix, name="sdk", number=3), runtimes=("crun",))
    peer = Podman(Places(prefix=prefix, name="podman", number=4), folder=options.podman)
    with own, peer, tempfile.TemporaryDirectory(prefix=f"{prefix}-", dir="/var/tmp") as folder:
        return asyncio.run(_measure(own, peer, Path(folder), options))


async def _measure(own: Atoll, peer: Podman, folder: Path, options: argparse.Namespace) -> Times:
    small, large = await asyncio.to_thread(_files, folder, options.files, options.upload_mib)
    times: Times = {}
    async with atoll.connect(own.places.socket, start=False) as client:
        for number in range(-options.warm_up, options.n):
            await _round(client, peer, times if number >= 0 else {}, is_even=number % 2 == 0)
        await _pool(client, times, options.n)
        for _ in range(3):
            await _upload(client, peer, times, SMALL.format(files=options.files), small)
            await _upload(client, peer, times, LARGE.format(mib=options.upload_mib), large)
            await _follow(client, peer, times, options.log_mib)
    return times


def _files(folder: Path, files: int, mib: int) -> tuple[Path, Path]:
    """A folder of small files, a hundred in each folder below it, and one with a large file that is not all zeroes."""
    small, large = folder / "small", folder / "large"
    for number in range(files):
        path = small / f"{number // 100:04}" / f"{number % 100:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n" * 20)
    large.mkdir()
    block = os.urandom(1 << 20)
    with (large / "data").open("wb") as file:
        for _ in range(mib):
            file.write(block)
    return small, large


async def _timed(times: Times, row: str, name: str, work: Awaitable[object]) -> None:
    begun = time.perf_counter()
    await work
    times.setdefault(row, {}).setdefault(name, []).append((time.perf_counter() - begun) * 1e3)


@asynccontextmanager
async def _box(client: atoll.Client, command: Sequence[str]) -> AsyncIterator[atoll.Container]:
    async with await client.run_pod(network="none") as pod:
        yield await pod.run("atoll/busybox", command)


async def _round(client: atoll.Client, peer: Podman, times: Times, *, is_even: bool) -> None:
    """A container's start and an exec in it, of each; every other round in the other order."""
    made: list[tuple[atoll.Pod, atoll.Container]] = []
    theirs: list[str] = []

    async def start() -> None:
        pod = await client.run(
            atoll.ContainerOptions(image="atoll/busybox", command=SLEEP), pod=atoll.PodOptions(network="none")
        )
        made.append((pod, pod.container))

    async def start_theirs() -> None:
        theirs.append(await asyncio.to_thread(peer.run, SLEEP))

    async def execute() -> None:
        result = await made[0][1].exec(["echo", "hello"])
        if (result.exit_code, result.text) != (0, "hello\n"):
            raise RuntimeError(f"atoll: an exec answered {result}")

    async def execute_theirs() -> None:
        result = await asyncio.to_thread(peer.exec, theirs[0], ["echo", "hello"])
        if result != (0, b"hello\n"):
            raise RuntimeError(f"podman: an exec answered {result}")

    starts = [(PEER, start_theirs), (OWN, start)]
    execs = [(OWN, execute), (PEER, execute_theirs)]
    try:
        for row, turns in ((COLD, starts), (EXEC, execs)):
            for name, work in turns if is_even else turns[::-1]:
                await asyncio.sleep(timing.BREATH_S)
                await _timed(times, row, name, work())
    finally:
        for pod, _ in made:
            await pod.remove()
        for one in theirs:
            await asyncio.to_thread(peer.remove, one)


async def _pool(client: atoll.Client, times: Times, n: int) -> None:
    """Podman has no such thing: its figure is the cold start's."""
    pool = await client.pool("bench", ladder.OPTIONS, size=POOL_SIZE, pod=atoll.PodOptions(network="none"))
    for _ in range(n):
        await ladder.settled(pool)
        begun = time.perf_counter()
        taken = await pool.take()
        times.setdefault(POOL, {}).setdefault(OWN, []).append((time.perf_counter() - begun) * 1e3)
        if taken.start.rung is not atoll.Rung.POOL:
            raise RuntimeError("the pool had no member although it was settled")
        await taken.remove()
    await pool.delete()
    times[POOL][PEER] = list(times[COLD][PEER])


async def _upload(client: atoll.Client, peer: Podman, times: Times, row: str, folder: Path) -> None:
    count = ["sh", "-c", "find /data -type f | wc -l"]
    wanted = await asyncio.to_thread(_count, folder)
    async with _box(client, SLEEP) as box:
        await _timed(times, row, OWN, box.files.upload(folder, "/data"))
        _require(OWN, int((await box.exec(count)).text), wanted)
    theirs = await asyncio.to_thread(peer.run, SLEEP)
    try:
        await asyncio.to_thread(peer.exec, theirs, ["mkdir", "/data"])
        await _timed(times, row, PEER, asyncio.to_thread(peer.upload, theirs, folder, "/data"))
        _, told = await asyncio.to_thread(peer.exec, theirs, count)
        _require(PEER, int(told), wanted)
    finally:
        await asyncio.to_thread(peer.remove, theirs)


def _count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


async def _follow(client: atoll.Client, peer: Podman, times: Times, mib: int) -> None:
    """From the start of a container that writes as fast as it can until its reader has the last line."""
    size = mib << 20
    command = ["sh", "-c", f"yes {'x' * (LINE_BYTES - 1)} | head -c {size}"]

    async def own() -> None:
        async with await client.run_pod(network="none") as pod:
            box = await pod.run("atoll/busybox", command)
            got = 0
            async for line in box.logs(follow=True):
                got += len(line.text) + (0 if line.partial else 1)
                if got >= size:
                    break
            _require(OWN, got, size)

    def theirs() -> None:
        container = peer.run(command)
        try:
            got = 0
            for data in peer.follow(container):
                got += len(data)
                if got >= size:
                    break
            _require(PEER, got, size)
        finally:
            peer.remove(container)

    await _timed(times, LOG.format(mib=mib), OWN, own())
    await _timed(times, LOG.format(mib=mib), PEER, asyncio.to_thread(theirs))


def _require(who: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{who}: {found} of {wanted} arrived")


def table(times: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Medians, and ours over podman's."""
    lines = [
        "### The SDK beside podman's API, ms (medians; no network; n a row)",
        "",
        f"| what | n | {PEER} | {OWN} | ratio | aim |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, found in times.items():
        own, peer = statistics.median(found[OWN]), statistics.median(found[PEER])
        aim = f"{POOL_AIM_MS:g} ms" if row == POOL else f"{AIM:.2f}"
        lines.append(f"| {row} | {len(found[OWN])} | {peer:.1f} | {own:.1f} | {own / peer:.3f} | {aim} |")
    return "\n".join(lines)
