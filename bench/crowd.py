"""How long each call of a pod's life takes when several callers make it at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench import timing
from bench.cri import PodRequest, container_config
from bench.timing import Contestant, Samples

ROWS = (timing.RUN, timing.CREATE, timing.START, timing.EXEC, timing.STOP_POD, timing.REMOVE_POD)
AIMS = {timing.CREATE: 1.0, timing.START: 1.0}
"""What a call may take of containerd's time where it is not half, as pods' and execs' calls."""


class _Life:
    """One pod with a container, a call after another."""

    def __init__(self, contestant: Contestant, number: int) -> None:
        self.contestant = contestant
        self.request: PodRequest = contestant.request(f"pod{number}")
        self.pod = self.container = ""

    def run(self) -> None:
        self.pod = self.contestant.cri.run_pod(self.request)

    def create(self) -> None:
        self.container = self.contestant.cri.create(self.pod, self.request, container_config())

    def start(self) -> None:
        self.contestant.cri.start(self.container)

    def execute(self) -> None:
        answer = self.contestant.cri.exec_sync(self.container, ["true"])
        if answer.exit_code:
            raise RuntimeError(f"{self.contestant.name}: exec true: exit code {answer.exit_code}: {answer.stderr!r}")

    def stop_pod(self) -> None:
        self.contestant.cri.stop_pod(self.pod)

    def remove_pod(self) -> None:
        self.contestant.cri.remove_pod(self.pod)


def measure(
    contestants: Sequence[Contestant], *, callers: Sequence[int], pods: int, blocks: int = 2
) -> dict[int, Samples]:
    """Milliseconds of each call of `pods` pods a block, by the number of callers; the contestants take turns."""
    found: dict[int, Samples] = {}
    for number in callers:
        found[number] = Samples()
        for block in range(blocks):
            for contestant in contestants if block % 2 == 0 else contestants[::-1]:
                _block(contestant, found[number], callers=number, pods=max(pods, number))
                contestant.settle()
    return found


def _block(contestant: Contestant, samples: Samples, *, callers: int, pods: int) -> None:
    lives = [_Life(contestant, number) for number in range(pods)]
    steps: dict[str, Callable[[_Life], None]] = {
        timing.RUN: _Life.run,
        timing.CREATE: _Life.create,
        timing.START: _Life.start,
        timing.EXEC: _Life.execute,
        timing.STOP_POD: _Life.stop_pod,
        timing.REMOVE_POD: _Life.remove_pod,
    }
    with ThreadPoolExecutor(callers) as pool:
        for what, work in steps.items():
            for took in pool.map(lambda life, work=work: _timed(work, life), lives):
                samples.add(contestant.name, what, took)


def _timed(work: Callable[[_Life], None], life: _Life) -> float:
    begun = time.perf_counter_ns()
    work(life)
    return (time.perf_counter_ns() - begun) / 1e6


def table(found: dict[int, Samples], base: str) -> str:
    """A row a call and number of callers: medians, 99th percentiles and ratios."""
    first = next(iter(found.values())).ms[timing.RUN]
    others = [name for name in first if name != base]
    n = len(first[base])
    cells = ["call, callers", f"{base} p50 / p99", *(f"{name} p50 / p99 | ratio" for name in others), "aim"]
    lines = [f"### Calls by several callers at once, ms (n = {n} each)", "", f"| {' | '.join(cells)} |"]
    lines.append("|---|" + "---:|" * (2 * len(others) + 2))
    for row in ROWS:
        for callers, samples in found.items():
            theirs = samples.ms[row][base]
            cells = [f"{row}, {callers}", _pair(theirs)]
            for name in others:
                own = samples.ms[row][name]
                cells += [_pair(own), f"{timing.median(own) / timing.median(theirs):.2f}"]
            lines.append(f"| {' | '.join([*cells, f'{AIMS.get(row, 0.5):.2f}'])} |")
    return "\n".join(lines)


def _pair(values: Sequence[float]) -> str:
    return f"{timing.median(values):.1f} / {timing.percentile(values, 0.99):.1f}"
