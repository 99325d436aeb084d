"""How long a daemon needs after SIGKILL until it serves, and until it knows how every pod of the earlier one is.

python -m bench.recovery --pods 200        as root; writes nothing, judges nothing
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import places, standing
from bench.daemons import Atoll
from bench.places import Places
from bench.timing import Contestant

EVERY_S = 0.005
WITHIN_S = 60.0


@dataclass(slots=True, kw_only=True)
class Recovered:
    """Seconds from the start of the daemon's process, one for each time it was killed.

    `serves`: Version is answered. `knows`: ListPodSandbox is, which waits until every pod was asked about. `runs`: the
    next pod is READY.
    """

    pods: int
    serves: list[float] = field(default_factory=list[float])
    knows: list[float] = field(default_factory=list[float])
    runs: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    """Of the daemon itself until it knows: the figure that is the same on a busy machine."""


def measure(daemon: Atoll, *, pods: int, times: int) -> Recovered:
    """Kill it again and again under `pods` pods with a running container each; raises where one is not found."""
    found = Recovered(pods=pods)
    contestant = Contestant(name="atoll", daemon=daemon)
    with standing.pods(contestant, range(pods), start=True):
        for number in range(times):
            daemon.crash()
            begun = time.perf_counter()
            daemon.launch()
            if not places.wait_until(lambda: _answers(contestant), within=WITHIN_S, every=EVERY_S):
                raise RuntimeError("does not serve again")
            found.serves.append(time.perf_counter() - begun)
            _require_all(contestant, pods)
            found.knows.append(time.perf_counter() - begun)
            found.cpu.append(_cpu_s(daemon.pid))
            request = contestant.request(f"next{number}")
            made = contestant.cri.run_pod(request)
            found.runs.append(time.perf_counter() - begun)
            contestant.cri.stop_pod(made)
            contestant.cri.remove_pod(made)
    return found


def _cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc_pid_stat(5))."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _answers(contestant: Contestant) -> bool:
    try:
        contestant.cri.version()
    except grpc.RpcError:
        return False
    return True


def _require_all(contestant: Contestant, pods: int) -> None:
    found = contestant.cri.call("ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse).items
    ready = sum(one.state == pb.SANDBOX_READY for one in found)
    listed = contestant.cri.call("ListContainers", pb.ListContainersRequest(), pb.ListContainersResponse).containers
    running = sum(one.state == pb.CONTAINER_RUNNING for one in listed)
    if (ready, running) != (pods, pods):
        raise RuntimeError(f"of {pods} pods {ready} are READY, of as many containers {running} are RUNNING")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How long a killed daemon needs to serve and to know every pod.")
    parser.add_argument("--pods", type=int, default=200, help="with a running container each (default %(default)s)")
    parser.add_argument("--times", type=int, default=10, help="kills (default %(default)s)")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("bench: needs root: it runs a daemon and pods", file=sys.stderr)
        return 1
    with places.prefix() as prefix, Atoll(Places(prefix=prefix, name="atoll", number=1)) as daemon:
        found = measure(daemon, pods=options.pods, times=options.times)
    print(f"{found.pods} pods, killed {len(found.serves)} times; seconds from the start of the process: median (worst)")
    rows = {
        "serves": found.serves,
        "knows every pod": found.knows,
        "CPU by then": found.cpu,
        "next pod runs": found.runs,
    }
    for what, took in rows.items():
        print(f"  {what:18} {statistics.median(took):.3f} ({max(took):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
