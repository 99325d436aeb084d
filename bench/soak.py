"""Atoll under a load that lasts: many pods alive at once, many pods one after another, and what is left of them.

    python bench/soak.py --alive 200 --pods 1000        as root; exit code 1 where the verdict is bad

`alive_at_once` and `one_after_another` need a daemon of `bench.daemons` and say in `problems` what is wrong.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from bench import host, places, report
from bench.cri import container_config, pod_request
from bench.daemons import Atoll
from bench.places import Places, wait_until

CALLERS = 4
SETTLE_S = 30.0
GROWTH_LIMIT_KIB = 1.0
"""Memory that a pod which is gone may have cost the daemon for good, by the slope over the later samples."""
WARM_SHARE = 0.3
"""Samples before this share of the pods count as warm-up: caches and allocators fill."""
FD_SLACK = 3
EXEC_SAMPLES = 5
SOAK_CONTAINER = ("sleep", "3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a daemon has on the machine; the daemon itself and its zygote are not counted as processes."""

    processes: int
    mounts: int
    namespaces: int
    links: int
    addresses: int
    cgroups: int
    files: int
    ledger: int
    records: int

    @classmethod
    def of(cls, daemon: Atoll) -> Footprint:
        where = daemon.places
        alive = daemon.processes
        zygotes = [pid for pid in alive.marked if b"zygote" in host.read(f"/proc/{pid}/comm")]
        rows = _rows(where.root / "state.db")
        return cls(
            processes=len(alive.marked) - len(zygotes) + len(alive.below),
            mounts=len(host.mounts_with(where.prefix)),
            namespaces=len(list((where.state / "netns").glob("*"))),
            links=host.bridge_ports(where.bridge),
            addresses=host.leases(where.ipam),
            cgroups=len(host.cgroups_with(where.cgroup)),
            files=sum(len(names) for folder in (where.root, where.state) for _, _, names in os.walk(folder)),
            ledger=rows["ledger"],
            records=sum(rows.values()) - rows["ledger"],
        )

    def beyond(self, before: Footprint) -> list[str]:
        """What is there more than before, in words."""
        was, now = asdict(before), asdict(self)
        return [f"{now[name] - was[name]} {name} left" for name in now if now[name] > was[name]]


def _rows(path: Path) -> dict[str, int]:
    """The rows of each table that belong to pods."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counted = {name: db.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    db.close()
    return counted


def settled(daemon: Atoll, before: Footprint, *, within: float = SETTLE_S) -> list[str]:
    """What is left beyond `before` once what goes behind the answers has had its time."""
    left: list[str] = []

    def none_left() -> bool:
        left[:] = Footprint.of(daemon).beyond(before)
        return not left

    wait_until(none_left, within=within, every=0.05)
    return left


def fsck(daemon: Atoll) -> list[str]:
    """What `atoll fsck` finds."""
    answer = daemon.cri.call("Fsck", own.FsckRequest(), own.FsckResponse, service="atoll.v1.Runtime")
    return [f"fsck: {one.kind} {one.key}: {one.problem}" for one in answer.findings]


def settled_fsck(daemon: Atoll) -> list[str]:
    found: list[str] = []

    def clean() -> bool:
        found[:] = fsck(daemon)
        return not found

    wait_until(clean, within=SETTLE_S, every=0.5)
    return found


@dataclass(slots=True, kw_only=True)
class Alive:
    """Many pods at once. Seconds to bring all up and to take all down; KiB of MemAvailable and PSS a pod."""

    pods: int
    up_s: float = 0.0
    down_s: float = 0.0
    settle_s: float = 0.0
    available_kib: float = 0.0
    pss_kib: float = 0.0
    daemon_rss_kib: int = 0
    with_pods: Footprint | None = None
    problems: list[str] = field(default_factory=list[str])


def alive_at_once(daemon: Atoll, pods: int, *, callers: int = CALLERS) -> Alive:
    """Run `pods` pods of one container, look at all and exec in some, take all down, and see what is left."""
    result = Alive(pods=pods)
    cri = daemon.cri
    _run_pod(daemon, "warm-up", killed=True)
    problems = result.problems
    time.sleep(0.5)
    before, available = Footprint.of(daemon), host.available_kib()
    pss = sum(host.pss_kib(pid) for pid in daemon.processes.all)
    with ThreadPoolExecutor(callers) as pool:
        begun = time.perf_counter()
        made = list(pool.map(lambda number: _up(daemon, f"alive{number}"), range(pods)))
        result.up_s = time.perf_counter() - begun
        result.available_kib = (available - host.available_kib()) / pods
        alive = daemon.processes
        result.pss_kib = (sum(host.pss_kib(pid) for pid in alive.all) - pss) / pods
        result.daemon_rss_kib = host.rss_kib(daemon.pid)
        result.with_pods = Footprint.of(daemon)
        ready = {one.id for one in cri.pods() if one.state == pb.SANDBOX_READY}
        if missing := [pod for pod, _ in made if pod not in ready]:
            problems.append(f"{len(missing)} pods are not ready")
        running = [container for _, container in made]
        states = list(pool.map(lambda one: cri.container_status(one).state, running))
        if others := [state for state in states if state != pb.CONTAINER_RUNNING]:
            problems.append(f"{len(others)} containers do not run")
        for container in running[:: max(1, len(running) // EXEC_SAMPLES)]:
            answer = cri.exec_sync(container, ["hostname"])
            if answer.exit_code or not answer.stdout.startswith(b"alive"):
                problems.append(f"exec in {container[:13]}: {answer.exit_code} {answer.stdout!r} {answer.stderr!r}")
        begun = time.perf_counter()
        list(pool.map(lambda each: _down(daemon, each[0]), made))
        result.down_s = time.perf_counter() - begun
    begun = time.perf_counter()
    problems += settled(daemon, before)
    result.settle_s = time.perf_counter() - begun
    problems += settled_fsck(daemon)
    return result


def _up(daemon: Atoll, name: str, command: Sequence[str] = SOAK_CONTAINER) -> tuple[str, str]:
    request = pod_request(name, logs=daemon.places.logs)
    pod = daemon.cri.run_pod(request)
    container = daemon.cri.create(pod, request, container_config(command))
    daemon.cri.start(container)
    return pod, container


def _down(daemon: Atoll, pod: str) -> None:
    daemon.cri.stop_pod(pod)
    daemon.cri.remove_pod(pod)


def _run_pod(daemon: Atoll, name: str, *, killed: bool) -> None:
    """One pod's whole life; its container is killed by the pod's stop, or runs to its end first."""
    pod, container = _up(daemon, name, SOAK_CONTAINER if killed else ("true",))
    if not killed:
        request = own.WaitRequest(container_id=container)
        ended = daemon.cri.call("Wait", request, own.WaitResponse, service="atoll.v1.Runtime").exit
        if ended.code != 0:
            raise RuntimeError(f"container {container[:13]}: exit code {ended.code} instead of 0")
    _down(daemon, pod)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The daemon after so many pods."""

    pods: int
    rss_kib: int
    private_kib: int
    zygote_kib: int
    fds: int
    threads: int
    files: int
    ledger: int


def sample(daemon: Atoll, pods: int) -> Sample:
    found = Footprint.of(daemon)
    zygotes = [pid for pid in daemon.processes.marked if b"zygote" in host.read(f"/proc/{pid}/comm")]
    return Sample(
        pods=pods,
        rss_kib=host.rss_kib(daemon.pid),
        private_kib=host.private_kib(daemon.pid),
        zygote_kib=sum(host.private_kib(pid) for pid in zygotes),
        fds=host.open_fds(daemon.pid),
        threads=host.threads(daemon.pid),
        files=found.files,
        ledger=found.ledger,
    )


@dataclass(slots=True, kw_only=True)
class Turns:
    """Pods one after another: seconds, the samples, KiB that the daemon's own memory grew a pod, what is wrong."""

    pods: int
    took_s: float = 0.0
    samples: list[Sample] = field(default_factory=list[Sample])
    growth_kib: float = 0.0
    problems: list[str] = field(default_factory=list[str])


def one_after_another(daemon: Atoll, pods: int, *, every: int = 50, limit_kib: float = GROWTH_LIMIT_KIB) -> Turns:
    """Run and remove `pods` pods in turn, every other container killed; a sample `every` so many pods."""
    result = Turns(pods=pods)
    _run_pod(daemon, "warm-up", killed=True)
    _run_pod(daemon, "warm-up", killed=False)
    daemon.places.attached()
    time.sleep(0.5)
    before = Footprint.of(daemon)
    result.samples.append(sample(daemon, 0))
    begun = time.perf_counter()
    for number in range(1, pods + 1):
        _run_pod(daemon, f"turn{number}", killed=bool(number % 2))
        if number % every == 0 or number == pods:
            settled(daemon, before, within=5.0)
            result.samples.append(sample(daemon, number))
    result.took_s = time.perf_counter() - begun
    result.problems += settled(daemon, before)
    result.problems += settled_fsck(daemon)
    _judge(result, limit_kib)
    return result


def _judge(result: Turns, limit_kib: float) -> None:
    later = [one for one in result.samples if one.pods >= WARM_SHARE * result.pods]
    result.growth_kib = slope([one.pods for one in later], [one.private_kib for one in later])
    if result.growth_kib > limit_kib:
        result.problems.append(f"the daemon grows by {result.growth_kib:.2f} KiB a pod (limit {limit_kib:g})")
    first, last = later[0], result.samples[-1]
    for name, slack in (("fds", FD_SLACK), ("threads", FD_SLACK), ("files", 0), ("ledger", 0)):
        was, now = getattr(first, name), getattr(last, name)
        if now > was + slack:
            result.problems.append(f"{name}: {now} after {last.pods} pods, {was} after {first.pods}")


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least-squares line; 0 for fewer than two points."""
    return statistics.linear_regression(xs, ys).slope if len(xs) > 1 else 0.0


def story(alive: Alive | None, turns: Turns | None) -> str:
    """The results for people."""
    lines: list[str] = []
    if alive is not None:
        seen = alive.with_pods
        parts = [
            f"up in {alive.up_s:.1f} s",
            f"down in {alive.down_s:.1f} s",
            f"{alive.available_kib:,.0f} KiB of MemAvailable and {alive.pss_kib:,.0f} KiB PSS a pod",
            f"daemon RSS {alive.daemon_rss_kib:,} KiB with them",
        ]
        if seen is not None:
            parts.append(f"{seen.processes} processes, {seen.mounts} mounts and {seen.links} links while they lived")
        lines.append(f"{alive.pods} pods of one container at once: {'; '.join(parts)}. {_verdict(alive.problems)}")
    if turns is not None:
        grown = f"the daemon's own memory grew by {turns.growth_kib:.2f} KiB a pod after the first {WARM_SHARE:.0%}"
        lines += [
            *([""] if lines else []),
            f"{turns.pods} pods one after another: {turns.took_s:.1f} s; {grown}. {_verdict(turns.problems)}",
            "",
            "| after pods | daemon RSS, KiB | private | zygote, private | fds | threads | files | ledger rows |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        step = max(1, len(turns.samples) // 10)
        shown = [one for at, one in enumerate(turns.samples) if at % step == 0 or one is turns.samples[-1]]
        lines += [
            f"| {one.pods} | {one.rss_kib:,} | {one.private_kib:,} | {one.zygote_kib:,} | {one.fds} | {one.threads} "
            f"| {one.files} | {one.ledger} |"
            for one in shown
        ]
    return "\n".join(lines)


def _verdict(problems: Sequence[str]) -> str:
    return f"Wrong: {'; '.join(problems)}." if problems else "Verdict: nothing left, nothing grown."


def _heading(options: argparse.Namespace) -> str:
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{at}, {options.runtime}, {CALLERS} callers for the pods at once; load average at the end {load}."


def main() -> int:
    parser = argparse.ArgumentParser(description="Many pods at once, and many one after another.")
    parser.add_argument("--alive", type=int, default=200, help="pods at once, 0 for none (default %(default)s)")
    parser.add_argument("--pods", type=int, default=1000, help="pods in turn, 0 for none (default %(default)s)")
    parser.add_argument("--runtime", default="crun", help="OCI runtime (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples as JSON")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("soak: needs root", file=sys.stderr)
        return 1
    alive: Alive | None = None
    turns: Turns | None = None
    with (
        places.prefix() as prefix,
        Atoll(Places(prefix=prefix, name="soak", number=3), runtimes=(options.runtime,)) as daemon,
    ):
        if options.alive:
            alive = alive_at_once(daemon, options.alive)
            print(story(alive, None), flush=True)
        if options.pods:
            turns = one_after_another(daemon, options.pods)
            print(story(None, turns), flush=True)
    if options.json:
        parts = {"alive": asdict(alive) if alive else None, "turns": asdict(turns) if turns else None}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(parts), indent=2))
    if options.write:
        report.write_page(report.PAGE, report.SOAK, f"{_heading(options)}\n\n{story(alive, turns)}")
    wrong = [*(alive.problems if alive else []), *(turns.problems if turns else [])]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
