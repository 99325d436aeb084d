"""What the daemon tells a Prometheus: counted as it happens where it leaves no trace, else looked up when asked."""

from __future__ import annotations

import os
import platform
import resource
from collections import Counter
from collections.abc import Iterator, Mapping

import atoll
from atoll.daemon.telemetry_text import Family, Histogram, Labels, render
from atoll.database import quarantined
from atoll.engine.engine import Engine
from atoll.engine.events import Event
from atoll.engine.phases import Story

NS_PER_S = 1e9
EXEC, PULL = "exec", "pull"
_BUSES = ("cri", "containerd")


class Metrics:
    """Counts from its making on; `text` is the answer to a scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._operations: dict[Labels, Histogram] = {}
        self._phases: dict[Labels, Histogram] = {}
        self._phase_errors: Counter[Labels] = Counter()
        self._execs: dict[Labels, Histogram] = {}
        self._pulls: dict[Labels, Histogram] = {}
        self._pulled_bytes = 0
        self._events: Counter[Labels] = Counter()
        engine.parts.stories.tap(self.count)
        engine.parts.events.tap(self._count_event)

    def count(self, story: Story) -> None:
        """One operation that has ended."""
        seconds = story.duration_ns / NS_PER_S
        if story.operation == EXEC:
            self._execs.setdefault((story.outcome,), Histogram()).add(seconds)
            return
        if story.operation == PULL:
            self._pulls.setdefault((story.outcome,), Histogram()).add(seconds)
            self._pulled_bytes += story.bytes
            return
        of = "pod" if story.subject == story.pod_id else "container"
        self._operations.setdefault((story.operation, of, story.outcome), Histogram()).add(seconds)
        for phase in story.phases:
            labels = (story.operation, of, phase.name)
            self._phases.setdefault(labels, Histogram()).add(max(phase.duration_ns, 0) / NS_PER_S)
            if phase.error:
                self._phase_errors[labels] += 1

    def _count_event(self, event: Event) -> None:
        self._events[event.type.name.lower(),] += 1

    async def text(self) -> bytes:
        """Every metric, as `telemetry_text` has it."""
        damaged = Counter((one.source,) for one in await self._engine.parts.db.read(quarantined))
        return render((*self._about(), *self._counted(), *self._books(damaged), *self._there_is()))

    def _about(self) -> Iterator[Family]:
        instance = self._engine.parts.paths.instance
        about = (atoll.__version__, platform.python_version(), instance)
        yield _gauge("atoll_build_info", "1, labelled by what runs.", {about: 1}, "version", "python", "instance")
        started = self._engine.started_at_ns / NS_PER_S
        yield _gauge("process_start_time_seconds", "When the daemon started, from the epoch.", {(): started})
        used = resource.getrusage(resource.RUSAGE_SELF)
        yield Family(
            name="process_cpu_seconds_total", kind="counter", help="CPU time of the daemon's process.",
            values={(): used.ru_utime + used.ru_stime},
        )  # fmt: skip
        yield _gauge("process_resident_memory_bytes", "Resident memory of the daemon's process.", {(): _resident()})
        yield _gauge("process_open_fds", "Its open descriptors.", {(): len(os.listdir("/proc/self/fd"))})

    def _counted(self) -> Iterator[Family]:
        of = ("operation", "of")
        yield _durations(
            "atoll_operation_duration_seconds", "Whole operations on pods and containers.",
            self._operations, *of, "outcome",
        )  # fmt: skip
        yield _durations("atoll_phase_duration_seconds", "Their phases, by name.", self._phases, *of, "phase")
        yield _counter("atoll_phase_errors_total", "Phases that failed.", self._phase_errors, *of, "phase")
        yield _durations("atoll_exec_duration_seconds", "Execs, by how they ended.", self._execs, "cause")
        yield _durations("atoll_image_pull_duration_seconds", "Pulls of images.", self._pulls, "outcome")
        pulled: Mapping[Labels, int] = {(): self._pulled_bytes}
        yield _counter("atoll_image_pulled_bytes_total", "Compressed bytes that registries sent.", pulled)
        yield _counter("atoll_events_total", "Events of pods and containers that were told.", self._events, "type")
        buses = dict(zip(_BUSES, (self._engine.parts.events, self._engine.parts.topics.bus), strict=True))
        yield _gauge(
            "atoll_event_readers", "Who reads events now.", {(name,): bus.readers for name, bus in buses.items()}, "bus"
        )
        yield _counter(
            "atoll_event_readers_dropped_total", "Readers of events that did not keep up.",
            {(name,): bus.overrun for name, bus in buses.items()}, "bus",
        )  # fmt: skip

    def _books(self, damaged: Mapping[Labels, int]) -> Iterator[Family]:
        ledger = self._engine.parts.ledger
        entries, debts = dict.fromkeys(((kind,) for kind in ledger.kinds), 0), Counter[Labels]()
        for entry in ledger.entries():
            entries[entry.kind,] = entries.get((entry.kind,), 0) + 1
            debts[entry.kind,] += entry.is_debt
        yield _gauge("atoll_ledger_entries", "Resources outside the daemon that are entered.", entries, "kind")
        owed = {kind: debts[kind] for kind in entries}
        yield _gauge("atoll_ledger_debts", "Those that could not be released yet, and are tried again.", owed, "kind")
        yield _gauge("atoll_quarantined_records", "Records that could not be read.", damaged or {("none",): 0}, "table")
        last = self._engine.last_fsck
        if last is not None:
            problems = Counter((one.problem.value,) for one in last.findings)
            problems[("any",)] = len(last.findings)
            help_text = "What the last fsck found and left: by problem, and `any` for all."
            yield _gauge("atoll_fsck_findings", help_text, problems, "problem")
            at = self._engine.last_fsck_at_ns / NS_PER_S
            yield _gauge("atoll_fsck_last_run_timestamp_seconds", "When that was, from the epoch.", {(): at})

    def _there_is(self) -> Iterator[Family]:
        engine = self._engine
        pods = Counter((_word(pod.state.value),) for pod in engine.pods.list())
        yield _gauge("atoll_pods", "Pods, by state.", _all(pods, "ready", "notready", "unknown"), "state")
        containers = Counter((_word(one.status.get().state.value),) for one in engine.containers.list())
        states = _all(containers, "created", "running", "exited", "unknown")
        yield _gauge("atoll_containers", "Containers, by state.", states, "state")
        pools = engine.pools.list()
        members = {(pool.record.name, "ready"): len(pool.ready) for pool in pools}
        members |= {(pool.record.name, "booting"): pool.booting for pool in pools}
        yield _gauge("atoll_pool_members", "Members of pools that nobody has been given.", members, "pool", "state")
        asked = {(pool.record.name, "hit"): pool.record.hits for pool in pools}
        asked |= {(pool.record.name, "miss"): pool.record.misses for pool in pools}
        yield _counter("atoll_pool_acquires_total", "Pods asked of pools: ready ones, others.", asked, "pool", "rung")
        usage = engine.parts.images.usage()
        taken: Mapping[Labels, int] = {("blobs",): usage.blobs.bytes, ("snapshots",): usage.snapshots.bytes}
        yield _gauge("atoll_images", "Images in the store.", {(): len(engine.parts.images.list())})
        yield _gauge("atoll_image_bytes", "What they take: as they came, and unpacked.", taken, "as")


def _gauge(name: str, help_text: str, values: Mapping[Labels, float], *keys: str) -> Family:
    return Family(name=name, kind="gauge", help=help_text, keys=keys, values=values)


def _counter(name: str, help_text: str, values: Mapping[Labels, float], *keys: str) -> Family:
    return Family(name=name, kind="counter", help=help_text, keys=keys, values=values)


def _durations(name: str, help_text: str, values: Mapping[Labels, Histogram], *keys: str) -> Family:
    return Family(name=name, kind="histogram", help=help_text, keys=keys, values=values)


def _word(state: str) -> str:
    """`SANDBOX_READY` is `ready`."""
    return state.partition("_")[2].lower()


def _all(found: Mapping[Labels, int], *names: str) -> dict[Labels, int]:
    return {(name,): 0 for name in names} | dict(found)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
