"""Latencies and throughput of several contestants in one run.

The contestants do the same call one after the other, and every other round in the reverse order (A B B A), so
that what else happens on the machine strikes all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.cri import Cri, PodRequest, container_config, pod_request
from bench.daemons import Daemon
from bench.places import wait_until

BREATH_S = 0.01
"""Between two measured calls: what the last one does behind its answer is not to meet the next one's."""
GONE_WITHIN_S = 10.0

RUN = "RunPodSandbox"
CREATE = "CreateContainer"
START = "StartContainer"
EXEC = "ExecSync(true)"
STOP = "StopContainer(0)"
REMOVE = "RemoveContainer"
STOP_POD = "StopPodSandbox"
REMOVE_POD = "RemovePodSandbox"
GONE = "StopPodSandbox until the network is gone"
CREATE_START = "create + start"
TAKE_DOWN = "stop + remove, pod and container"
SUMS = {CREATE_START: (CREATE, START), TAKE_DOWN: (STOP, REMOVE, STOP_POD, REMOVE_POD)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A daemon with one of its runtime handlers; `idle` is how many networks it holds without a pod (its pool)."""

    name: str
    daemon: Daemon
    handler: str = ""
    host_network: bool = False
    idle: int = 0

    @property
    def cri(self) -> Cri:
        return self.daemon.cri

    def request(self, name: str = "pod") -> PodRequest:
        places = self.daemon.places
        return pod_request(
            name,
            logs=places.logs,
            handler=self.handler,
            host_network=self.host_network,
            cgroup_parent=places.cgroup,
        )

    def settle(self, pods: int = 0) -> bool:
        """Wait until exactly the networks of so many pods, and the pool's, are held."""
        return wait_until(lambda: self.daemon.places.attached() == self.idle + pods, within=GONE_WITHIN_S)


@dataclass(slots=True, kw_only=True)
class Samples:
    """Milliseconds of every measured call, by contestant and call."""

    ms: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])

    def add(self, contestant: str, what: str, value: float) -> None:
        self.ms.setdefault(what, {}).setdefault(contestant, []).append(value)

    def add_sums(self) -> None:
        """The totals of a round, as samples of their own."""
        for name, parts in SUMS.items():
            found = [self.ms[part] for part in parts if part in self.ms]
            if len(found) == len(parts):
                self.ms[name] = {
                    who: [sum(values) for values in zip(*(one[who] for one in found), strict=True)] for who in found[0]
                }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the samples do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered) + 0.5) - 1))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


@dataclass(slots=True, kw_only=True)
class _Round:
    contestant: Contestant
    request: PodRequest
    pod: str = ""
    container: str = ""


def latencies(contestants: Sequence[Contestant], *, n: int, warm_up: int, containers: bool = True) -> Samples:
    """The milliseconds of every call in the life of `n` pods a contestant, after `warm_up` unmeasured ones."""
    samples = Samples()
    for number in range(-warm_up, n):
        ordered = contestants if number % 2 == 0 else contestants[::-1]
        rounds = [_Round(contestant=one, request=one.request()) for one in ordered]
        for what, work in _steps(containers=containers):
            for each in rounds:
                took = _timed(work, each)
                if number >= 0:
                    samples.add(each.contestant.name, what, took)
                if what == STOP_POD and not each.contestant.host_network:
                    took += _timed(_await_gone, each)
                    if number >= 0:
                        samples.add(each.contestant.name, GONE, took)
                time.sleep(BREATH_S)
        for each in rounds:
            each.contestant.settle()
    samples.add_sums()
    return samples


def _timed(work: Callable[[_Round], None], each: _Round) -> float:
    begun = time.perf_counter_ns()
    work(each)
    return (time.perf_counter_ns() - begun) / 1e6


def _steps(*, containers: bool) -> list[tuple[str, Callable[[_Round], None]]]:
    config = container_config()

    def run(each: _Round) -> None:
        each.pod = each.contestant.cri.run_pod(each.request)
        each.contestant.daemon.networked += not each.contestant.host_network

    def stop_pod(each: _Round) -> None:
        each.contestant.cri.stop_pod(each.pod)
        each.contestant.daemon.networked -= not each.contestant.host_network

    def create(each: _Round) -> None:
        each.container = each.contestant.cri.create(each.pod, each.request, config)

    def execute(each: _Round) -> None:
        answer = each.contestant.cri.exec_sync(each.container, ["true"])
        if answer.exit_code:
            raise RuntimeError(f"{each.contestant.name}: exec true: exit code {answer.exit_code}: {answer.stderr!r}")

    middle: list[tuple[str, Callable[[_Round], None]]] = [
        (CREATE, create),
        (START, lambda each: each.contestant.cri.start(each.container)),
        (EXEC, execute),
        (STOP, lambda each: each.contestant.cri.stop(each.container)),
        (REMOVE, lambda each: each.contestant.cri.remove(each.container)),
    ]
    return [
        (RUN, run),
        *(middle if containers else ()),
        (STOP_POD, stop_pod),
        (REMOVE_POD, lambda each: each.contestant.cri.remove_pod(each.pod)),
    ]


def _await_gone(each: _Round) -> None:
    daemon = each.contestant.daemon
    # The pool may refill meanwhile: then more than its size is never held, and fewer is on the way up.
    expected = each.contestant.idle + daemon.networked
    if not wait_until(lambda: daemon.places.attached() <= expected, within=GONE_WITHIN_S):
        raise RuntimeError(
            f"{each.contestant.name}: {daemon.places.attached()} networks are held instead of {expected} "
            f"{GONE_WITHIN_S:g} s after a pod was stopped ({daemon.places.held()})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Pods a second: up (run, create, start), down (stop and remove, until no network is held), and both."""

    up: float
    down: float
    both: float


def throughput(
    contestants: Sequence[Contestant], *, callers: int, pods: int, blocks: int
) -> dict[str, list[Throughput]]:
    """`blocks` blocks of `pods` pods a contestant, in turns, each by `callers` threads."""
    found: dict[str, list[Throughput]] = {one.name: [] for one in contestants}
    for number in range(blocks):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            found[contestant.name].append(_block(contestant, callers=callers, pods=pods))
            contestant.settle()
    return found


def _block(contestant: Contestant, *, callers: int, pods: int) -> Throughput:
    cri, config = contestant.cri, container_config()

    def up(number: int) -> str:
        request = contestant.request(f"pod{number}")
        pod = cri.run_pod(request)
        cri.start(cri.create(pod, request, config))
        return pod

    def down(pod: str) -> None:
        cri.stop_pod(pod)
        cri.remove_pod(pod)

    with ThreadPoolExecutor(callers) as pool:
        begun = time.perf_counter()
        made = list(pool.map(up, range(pods)))
        between = time.perf_counter()
        list(pool.map(down, made))
        if not wait_until(lambda: contestant.daemon.places.attached() <= contestant.idle, within=60, every=0.002):
            raise RuntimeError(f"{contestant.name}: networks are still held after their pods")
        ended = time.perf_counter()
    return Throughput(up=pods / (between - begun), down=pods / (ended - between), both=pods / (ended - begun))
