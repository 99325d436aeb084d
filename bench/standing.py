"""What many pods cost while nothing happens: lists, the CPU of a daemon at rest, the memory of everything."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import host, timing
from bench.cri import container_config
from bench.timing import Contestant

MAKERS = 4
"""Callers that make the pods, and take them down."""
SETTLE_S = 3.0
LISTS = {
    "ListPodSandbox": pb.ListPodSandboxRequest().SerializeToString(),
    "ListContainers": pb.ListContainersRequest().SerializeToString(),
}
STATS = {
    "ListContainerStats": pb.ListContainerStatsRequest().SerializeToString(),
    "ListPodSandboxStats": pb.ListPodSandboxStatsRequest().SerializeToString(),
}
APART_S = 0.12
"""Between two questions about statistics: what is asked again at once may be answered from the same sample."""


@dataclass(slots=True, kw_only=True)
class Standing:
    """`running` pods with a running container each were there while CPU, memory and statistics were measured, `listed`
    pods while lists were. CPU in per cent of one processor, memory in KiB of PSS a pod, lists in milliseconds."""

    running: int
    listed: int
    idle_s: float
    daemon_cpu: dict[str, float] = field(default_factory=dict[str, float])
    all_cpu: dict[str, float] = field(default_factory=dict[str, float])
    pss: dict[str, float] = field(default_factory=dict[str, float])
    lists: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    stats: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])


def measure(contestants: Sequence[Contestant], *, running: int, listed: int, idle_s: float, n: int) -> Standing:
    """Every daemon has its pods at the same time, on the host's network; the lists are asked for in turns."""
    found = Standing(running=running, listed=listed, idle_s=idle_s)
    on_host = [replace(one, host_network=True) for one in contestants]
    with contextlib.ExitStack() as stack:
        for one in on_host:
            before = _pss(one)
            stack.enter_context(pods(one, range(running), start=True))
            time.sleep(SETTLE_S)
            found.pss[one.name] = (_pss(one) - before) / running
        _idle(on_host, found)
        _ask(on_host, STATS, running, n, found.stats, apart_s=APART_S)
        for one in on_host:
            stack.enter_context(pods(one, range(running, listed), start=False))
        time.sleep(SETTLE_S)
        _ask(on_host, LISTS, listed, n, found.lists)
    return found


def _ask(
    contestants: Sequence[Contestant],
    requests: dict[str, bytes],
    pods: int,
    n: int,
    found: dict[str, dict[str, list[float]]],
    *,
    apart_s: float = 0.0,
) -> None:
    """Each list of each daemon, in turns; the first three times are not counted."""
    for number in range(-3, n):
        for what, request in requests.items():
            for one in contestants if number % 2 == 0 else contestants[::-1]:
                time.sleep(apart_s)
                took = _list(one, what, request, pods)
                if number >= 0:
                    found.setdefault(what, {}).setdefault(one.name, []).append(took)


@contextlib.contextmanager
def pods(contestant: Contestant, numbers: range, *, start: bool) -> Generator[None]:
    """Pods of one container each, which is started or only made; gone at the end."""
    cri, config = contestant.cri, container_config()
    made: list[str] = []

    def make(number: int) -> None:
        request = contestant.request(f"pod{number}")
        made.append(cri.run_pod(request))
        container = cri.create(made[-1], request, config)
        if start:
            cri.start(container)

    def remove(pod: str) -> None:
        cri.stop_pod(pod)
        cri.remove_pod(pod)

    with ThreadPoolExecutor(MAKERS) as pool:
        try:
            list(pool.map(make, numbers))
            yield
        finally:
            list(pool.map(remove, list(made)))


def _list(contestant: Contestant, method: str, request: bytes, pods: int) -> float:
    """Milliseconds until the whole answer is there; it is not decoded, which is the client's work."""
    ask = contestant.cri.raw(method)
    begun = time.perf_counter_ns()
    answer = ask(request)
    took = (time.perf_counter_ns() - begun) / 1e6
    if len(answer) < 64 * pods:
        raise RuntimeError(f"{contestant.name}: {method}: {len(answer)} bytes for {pods} pods")
    return took


def _pss(contestant: Contestant) -> int:
    host.drop_caches()
    return sum(host.pss_kib(pid) for pid in contestant.daemon.processes.all)


def _idle(contestants: Sequence[Contestant], found: Standing) -> None:
    """The CPU time of the daemons and of their shims while nobody asks them anything, over the same seconds."""
    time.sleep(SETTLE_S)
    groups = {one.name: one.daemon.processes for one in contestants}
    before = {name: {pid: _cpu_ns(pid) for pid in (group.daemon, *group.marked)} for name, group in groups.items()}
    begun = time.perf_counter()
    time.sleep(found.idle_s)
    for name, group in groups.items():
        took = {pid: _cpu_ns(pid) - then for pid, then in before[name].items()}
        lasted = time.perf_counter() - begun
        found.daemon_cpu[name] = took[group.daemon] / lasted / 1e7
        found.all_cpu[name] = sum(took.values()) / lasted / 1e7


def _cpu_ns(pid: int) -> int:
    """What every thread of a process has spent on a processor; Documentation/scheduler/sched-stats.rst."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(words[0]) for file in files if (words := host.read(file).split()))


def table(found: Standing, base: str) -> str:
    """A row for each figure."""
    names = list(found.pss)
    others = [name for name in names if name != base]
    head = ["what", base, *(f"{name} | ratio" for name in others), "aim"]
    lines = [
        f"### Many pods at rest (lists of {found.listed} pods of one container, the rest with {found.running} running)",
        "",
        f"| {' | '.join(head)} |",
        "|---|" + "---:|" * (2 * len(others) + 2),
    ]
    for what, by_name in (found.lists | found.stats).items():
        medians = {name: timing.median(values) for name, values in by_name.items()}
        n = len(by_name[base])
        lines.append(_row(f"{what}, ms (n = {n})", medians, base, others, "{:.2f}", "1.00"))
    cpu = f"% of a processor over {found.idle_s:g} s"
    lines.append(_row(f"CPU of the daemon at rest, {cpu}", found.daemon_cpu, base, others, "{:.3f}", "below 0.1 %"))
    lines.append(_row(f"CPU of the daemon and its shims at rest, {cpu}", found.all_cpu, base, others, "{:.3f}", ""))
    lines.append(_row("PSS of everything, KiB a pod", found.pss, base, others, "{:,.0f}", "1.00"))
    return "\n".join(lines)


def _row(label: str, values: dict[str, float], base: str, others: Sequence[str], form: str, aim: str) -> str:
    cells = [label, form.format(values[base])]
    for name in others:
        cells += [form.format(values[name]), f"{values[name] / values[base]:.2f}" if values[base] else "-"]
    return f"| {' | '.join([*cells, aim])} |"
