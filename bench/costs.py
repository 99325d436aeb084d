"""What a pod costs beside time: memory, fsyncs, programs executed, processes started."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.api.cri_runtime_v1_pb2 import ContainerConfig
from bench import host
from bench.cri import container_config
from bench.places import wait_until
from bench.timing import Contestant

SETTLE_S = 1.0
ATTACHED_WITHIN_S = 10.0
PAUSE_S = 0.3
TRACED = "fsync,fdatasync,sync_file_range,syncfs,execve,execveat,clone,clone3,fork,vfork"
STAGES = ("RunPodSandbox", "create + start", "exec", "stop + remove")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """KiB a pod with one container: of MemAvailable, and PSS by kind; the daemon's RSS before and with the pods."""

    available: float
    pss: float
    pss_shims: float
    pss_rest: float
    daemon_rss_before: int
    daemon_rss_with: int


def memory(contestants: Sequence[Contestant], *, pods: int, times: int) -> dict[str, list[Memory]]:
    """`times` measurements of `pods` pods a contestant, in turns."""
    found: dict[str, list[Memory]] = {one.name: [] for one in contestants}
    for number in range(times):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            found[contestant.name].append(_memory(contestant, pods))
    return found


def _memory(contestant: Contestant, pods: int) -> Memory:
    cri, daemon, config = contestant.cri, contestant.daemon, container_config()
    contestant.settle()
    time.sleep(SETTLE_S)
    host.drop_caches()
    before, rss = host.available_kib(), host.rss_kib(daemon.pid)
    pss_before = sum(host.pss_kib(pid) for pid in daemon.processes.all)
    made: list[str] = []
    try:
        for number in range(pods):
            request = contestant.request(f"pod{number}")
            made.append(cri.run_pod(request))
            cri.start(cri.create(made[-1], request, config))
        time.sleep(SETTLE_S)
        host.drop_caches()
        after = host.available_kib()
        alive = daemon.processes
        pss = sum(host.pss_kib(pid) for pid in alive.all)
        shims = [pid for pid in alive.marked if "zygote" not in host.read(f"/proc/{pid}/comm").decode()]
        return Memory(
            available=(before - after) / pods,
            pss=(pss - pss_before) / pods,
            pss_shims=sum(host.pss_kib(pid) for pid in shims) / pods,
            pss_rest=sum(host.pss_kib(pid) for pid in alive.below) / pods,
            daemon_rss_before=rss,
            daemon_rss_with=host.rss_kib(daemon.pid),
        )
    finally:
        for pod in made:
            cri.stop_pod(pod)
            cri.remove_pod(pod)
        contestant.settle()


def cpu(contestant: Contestant, *, pods: int, prefix: str) -> dict[str, list[float]]:
    """CPU milliseconds of the daemon and of all that it executes, by stage, a value a pod; the containers' are theirs.

    What happens behind an answer, within a third of a second, counts for its stage.
    """
    config, daemon = container_config(), contestant.daemon
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with _metered(daemon.processes, f"{prefix}/cpu-{contestant.name.replace('/', '-')}") as used:
        for number in range(pods + 1):
            times = [used()]
            for after in _life(contestant, f"cpu{number}", config):
                after()
                time.sleep(PAUSE_S)
                times.append(used())
            if number:  # the first one warms up
                for stage, (begin, end) in zip(STAGES, itertools.pairwise(times), strict=True):
                    found[stage].append(end - begin)
    return found


def _life(contestant: Contestant, name: str, config: ContainerConfig) -> Iterator[Callable[[], None]]:
    """The stages of one pod, each to be called before the next is taken."""
    cri, request = contestant.cri, contestant.request(name)
    pod = container = ""

    def run() -> None:
        nonlocal pod
        pod = cri.run_pod(request)

    def start() -> None:
        nonlocal container
        container = cri.create(pod, request, config)
        cri.start(container)

    def take_down() -> None:
        cri.stop(container)
        cri.remove(container)
        cri.stop_pod(pod)
        cri.remove_pod(pod)
        contestant.settle()

    yield from (run, start, lambda: _exec(contestant, container), take_down)


def _exec(contestant: Contestant, container: str) -> None:
    contestant.cri.exec_sync(container, ["true"])


@contextlib.contextmanager
def _metered(processes: host.Processes, group: str) -> Iterator[Callable[[], float]]:
    """Count the CPU time of these processes and of what they start, in a cgroup; gives the milliseconds so far."""
    root = next((one for one in host.hierarchies() if (one / "cpuacct.usage").exists()), None)
    root = root or next(host.hierarchies())
    folder = root / group
    folder.mkdir(parents=True)

    def move(to: Path) -> None:
        for pid in host.read(folder / "cgroup.procs").split() if to == root else (processes.daemon, *processes.marked):
            with contextlib.suppress(ProcessLookupError):
                (to / "cgroup.procs").write_text(str(int(pid)))

    def used() -> float:
        if version_1 := host.read(folder / "cpuacct.usage"):
            return int(version_1) / 1e6
        told = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        return int(told["usage_usec"]) / 1e3

    try:
        move(folder)
        yield used
    finally:
        move(root)
        wait_until(lambda: not host.read(folder / "cgroup.procs").strip(), every=0.01)
        folder.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What one stage of one pod's life called: fsync and its kin, successful execs, new processes (no threads)."""

    fsyncs: float
    programs: float
    processes: float


def system_calls(contestant: Contestant, *, pods: int, folder: Path) -> dict[str, Calls]:
    """Medians of `pods` pods under strace, by stage; what happens behind an answer counts for its stage."""
    config = container_config()
    output = folder / f"{contestant.name.replace('/', '-')}.strace"
    marks: list[list[float]] = []
    with _traced(contestant, output):
        for number in range(pods):
            times = [time.time()]
            for stage in _life(contestant, f"traced{number}", config):
                stage()
                time.sleep(PAUSE_S)
                times.append(time.time())
            marks.append(times)
    counted = [Counter[str]() for _ in range(pods * len(STAGES))]
    spans = [(begin, end) for times in marks for begin, end in itertools.pairwise(times)]
    for at, kind in events(output):
        for index, (begin, end) in enumerate(spans):
            if begin <= at < end:
                counted[index][kind] += 1
    return {
        stage: Calls(
            **{
                kind: statistics.median(counted[pod * len(STAGES) + index][kind] for pod in range(pods))
                for kind in ("fsyncs", "programs", "processes")
            }
        )
        for index, stage in enumerate(STAGES)
    }


@contextlib.contextmanager
def _traced(contestant: Contestant, output: Path) -> Iterator[None]:
    """Attach strace to the daemon and all that it has started, its threads and later children included."""
    alive = contestant.daemon.processes
    attach = [word for pid in (alive.daemon, *alive.marked) for word in ("-p", str(pid))]
    tracer = subprocess.Popen(
        ["strace", "-f", "-ttt", "-q", "-e", f"trace={TRACED}", "-o", str(output), *attach],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        pids = (alive.daemon, *alive.marked)
        if not wait_until(lambda: all(_tracer(pid) for pid in pids), within=ATTACHED_WITHIN_S, every=0.01):
            raise RuntimeError(f"strace does not attach to {contestant.name}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def _tracer(pid: int) -> bool:
    """Whether every thread of the process is traced; proc(5), TracerPid."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return all(b"TracerPid:\t0\n" not in host.read(f"/proc/{pid}/task/{one}/status") for one in tasks)


_LINE = re.compile(r"^\d+ +(?P<at>\d+\.\d+) (?P<rest>.*)$")


def events(path: Path) -> Iterator[tuple[float, str]]:
    """The calls of a trace: each with its time and whether it is of `fsyncs`, `programs` or `processes`."""
    for line in path.read_text(errors="replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        at, rest = float(found["at"]), found["rest"]
        if re.match(r"(fsync|fdatasync|syncfs|sync_file_range)\(", rest):
            yield at, "fsyncs"
        elif re.match(r"(execve|execveat)\(.*= 0$|<\.\.\. execve(at)? resumed>.*= 0$", rest):
            yield at, "programs"
        elif re.match(r"(clone3?|v?fork)\(", rest) and "CLONE_THREAD" not in rest:
            yield at, "processes"
