"""`stats` and `events`: what goes on, for as long as somebody looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from atoll import errors
from atoll.cli import show, terminal
from atoll.cli.run import interruptible
from atoll.client import Client
from atoll.client.control import ContainerUsage, Event, PodUsage

COLUMNS = ("ID", "NAME", "POD", "CPU %", "MEMORY", "LIMIT", "DISK", "NET IN", "NET OUT", "PIDS")
NUMBERS = COLUMNS[3:]
FIRST_INTERVAL_S = 0.3
"""Between the two looks that the first figures are made of: CPU is a difference."""
KINDS = ("created", "started", "stopped", "deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one container uses; figures of the network and the processes are its pod's."""

    id: str
    name: str
    pod: str
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    received_bytes: int
    sent_bytes: int
    pod_processes: int

    @classmethod
    def of(cls, pod: PodUsage, inside: ContainerUsage, cpu_percent: float) -> Self:
        return cls(
            id=inside.id,
            name=inside.name,
            pod=pod.name,
            cpu_percent=round(cpu_percent, 1),
            memory_bytes=inside.memory_bytes,
            memory_limit_bytes=inside.memory_limit_bytes,
            disk_bytes=inside.disk_bytes,
            received_bytes=pod.received_bytes,
            sent_bytes=pod.sent_bytes,
            pod_processes=pod.processes,
        )

    def cells(self) -> tuple[str, ...]:
        limit = show.size(self.memory_limit_bytes) if self.memory_limit_bytes else "-"
        sizes = (self.disk_bytes, self.received_bytes, self.sent_bytes)
        return (
            show.short(self.id),
            self.name,
            self.pod,
            f"{self.cpu_percent:.1f}",
            show.size(self.memory_bytes),
            limit,
            *(show.size(one) for one in sizes),
            str(self.pod_processes),
        )


async def stats(client: Client, names: Sequence[str], *, once: bool, interval_s: float, as_json: bool) -> int:
    """Tell what containers use at each interval, until Ctrl-C; in place on a terminal."""
    chosen = [await _chosen(client, name) for name in names]
    async with interruptible(), terminal.while_read(), contextlib.aclosing(_looks(client, chosen, interval_s)) as looks:
        if as_json or once or not sys.stdout.isatty():
            async for rows in looks:
                _tell(rows, as_json=as_json)
                if once:
                    return 0
            return 0
        return await _in_place(looks)


async def _in_place(looks: AsyncGenerator[list[Row]]) -> int:
    from rich.live import Live

    with Live(auto_refresh=False, vertical_overflow="crop", console=show.console()) as screen:
        async for rows in looks:
            made = show.made_table(COLUMNS, [row.cells() for row in rows], right=NUMBERS)
            screen.update(made, refresh=True)
    return 0


def _tell(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(show.plain(row)))
    else:
        show.table(COLUMNS, [row.cells() for row in rows], right=NUMBERS)
    sys.stdout.flush()


async def _chosen(client: Client, name: str) -> str:
    """The ID of a pod or a container."""
    with contextlib.suppress(errors.NotFound):
        return (await client.pod(name)).id
    return (await client.container(name)).id


async def _looks(client: Client, chosen: Sequence[str], interval_s: float) -> AsyncGenerator[list[Row]]:
    before = await client.stats()
    pause_s = min(FIRST_INTERVAL_S, interval_s)
    while True:
        await asyncio.sleep(pause_s)
        now = await client.stats()
        yield rows(before, now, chosen)
        before, pause_s = now, interval_s


def rows(before: Sequence[PodUsage], now: Sequence[PodUsage], chosen: Sequence[str]) -> list[Row]:
    """A row a container, of two looks; `chosen` are the IDs of pods and containers, all for none."""
    earlier = {inside.id: (pod.at_ns, inside.cpu_s) for pod in before for inside in pod.containers}
    found: list[Row] = []
    for pod in now:
        for inside in pod.containers:
            if chosen and pod.id not in chosen and inside.id not in chosen:
                continue
            at_ns, cpu_s = earlier.get(inside.id, (pod.at_ns, inside.cpu_s))
            took_s = (pod.at_ns - at_ns) / 1e9
            percent = 100 * (inside.cpu_s - cpu_s) / took_s if took_s > 0 else 0.0
            found.append(Row.of(pod, inside, max(0.0, percent)))
    return sorted(found, key=lambda row: (row.pod, row.name))


# --- events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which events are told: those that fit one value of each key."""

    types: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """Raises `InvalidArgument` for what is no filter."""
        found: dict[str, list[str]] = {"type": [], "pod": [], "container": []}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in found or (key == "type" and value not in KINDS):
                kinds = ", ".join(KINDS)
                raise errors.InvalidArgument(
                    f"filter {word!r}: must be like pod=web, container=main, or type= of {kinds}"
                )
            found[key].append(value)
        return cls(types=tuple(found["type"]), pods=tuple(found["pod"]), containers=tuple(found["container"]))

    def fits(self, event: Event) -> bool:
        return (
            (not self.types or event.type in self.types)
            and (not self.pods or _is_one(self.pods, event.pod_id, event.pod_name))
            and (not self.containers or _is_one(self.containers, event.container_id, event.container_name))
        )


def _is_one(wanted: Sequence[str], id: str, name: str) -> bool:
    return bool(id) and any(one == name or id.startswith(one) for one in wanted)


async def events(client: Client, *, since_ns: int | None, until_ns: int | None, wanted: Filter, as_json: bool) -> int:
    """Tell events, one a line, until Ctrl-C or the time that is given."""
    since = datetime.fromtimestamp(since_ns / 1e9, UTC) if since_ns is not None else None
    async with interruptible(), terminal.while_read(), contextlib.AsyncExitStack() as stack:
        if until_ns is not None:
            left_s = until_ns / 1e9 - datetime.now(UTC).timestamp()
            if left_s > 0:
                await stack.enter_async_context(asyncio.timeout(left_s))
        is_over = until_ns is not None and until_ns / 1e9 <= datetime.now(UTC).timestamp()
        told = await stack.enter_async_context(contextlib.aclosing(client.events(since=since, follow=not is_over)))
        with contextlib.suppress(TimeoutError):
            await _tell_events(told, until_ns, wanted, as_json=as_json)
    return 0


async def _tell_events(told: AsyncGenerator[Event], until_ns: int | None, wanted: Filter, *, as_json: bool) -> None:
    async for event in told:
        if until_ns is not None and event.at.timestamp() * 1e9 > until_ns:
            return
        if event.type == "lost":
            print(f"atoll: what happened before {event.at:%Y-%m-%d %H:%M:%S} UTC is not remembered", file=sys.stderr)
            continue
        if not wanted.fits(event):
            continue
        if as_json:
            print(json.dumps(show.plain(event)), flush=True)
            continue
        what = f"container {event.container_name} {show.short(event.container_id)} in " if event.container_id else ""
        print(
            f"{event.at:%Y-%m-%dT%H:%M:%S.%fZ} {event.type:<7} {what}pod {event.pod_name} {show.short(event.pod_id)}",
            flush=True,
        )
