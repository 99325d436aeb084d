"""`make bench`: Atoll beside Debian's containerd, in one run, by one client. As root.

Prints the tables and writes them to docs/benchmarks.md; judges nothing, so it gates nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import (
    chatter,
    costs,
    crowd,
    host,
    places,
    podman,
    programs,
    report,
    sandbox_api,
    standing,
    streaming,
    timing,
)
from bench import sdk as sdk_bench
from bench.daemons import Atoll, Containerd
from bench.places import Places
from bench.report import PAGE, Result
from bench.timing import Contestant

REPO = Path(__file__).resolve().parents[1]
PARTS = (
    *("latency", "programs", "pool", "host", "sandbox", "throughput"),
    *("streams", "callers", "log", "standing", "memory", "cpu", "calls", "sdk"),
)
POOL_SIZE = 4
TRACED_PODS = 5


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("bench: needs root: it runs daemons and pods (sudo make bench)", file=sys.stderr)
        return 1
    missing = [name for name in ("containerd", "ctr", "runc", "ip") if shutil.which(name, path=places.PATH) is None]
    if missing:
        print(f"bench: not installed: {', '.join(missing)} (Debian: apt-get install containerd runc)", file=sys.stderr)
        return 1
    result = Result(
        at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=host.facts() | _other(options.containerd),
        load_before=os.getloadavg(),
        commit=_commit(),
        n=options.n,
    )
    with places.prefix() as prefix:
        measure(result, prefix, options)
    result.load_after = os.getloadavg()
    pages = {report.SANDBOX: report.sandbox_markdown(result), report.SDK: report.sdk_markdown(result)}
    if set(options.only) - {"sandbox", "sdk"}:
        pages[report.TABLES] = report.markdown(result)
    print(*filter(None, pages.values()), sep="\n")
    if options.json:
        options.json.write_bytes(result.to_json())
    if options.write:
        for part, text in pages.items():
            if text:
                report.write_page(PAGE, part, text)
    return 0


def measure(result: Result, prefix: str, options: argparse.Namespace) -> None:
    """Run the parts that were asked for; every daemon is there only while it is needed."""
    wanted: set[str] = set(options.only)
    has_crun = shutil.which("crun", path=places.PATH) is not None
    runtimes = ("runc", "crun") if has_crun else ("runc",)
    if "streams" in wanted:
        _say("exec and port forward")
        _streams(result, prefix, runtimes[-1:], options)
    if "sdk" in wanted:
        _sdk(result, prefix, options)
    if wanted - {"streams", "sdk"}:
        _measure_calls(result, prefix, runtimes, wanted, options)


def _measure_calls(
    result: Result, prefix: str, runtimes: tuple[str, ...], wanted: set[str], options: argparse.Namespace
) -> None:
    theirs = Places(prefix=prefix, name="containerd", number=0)
    with ExitStack() as stack:
        base = stack.enter_context(Containerd(theirs, folder=options.containerd))
        atoll = stack.enter_context(Atoll(Places(prefix=prefix, name="atoll", number=1), runtimes=runtimes))
        containerd = Contestant(name=report.BASE, daemon=base)
        own = [Contestant(name=f"atoll/{name}", daemon=atoll, handler=name) for name in runtimes]
        all_ = [containerd, *own]
        if "latency" in wanted:
            _say("latency")
            result.latencies["main"] = timing.latencies(all_, n=options.n, warm_up=options.warm_up)
        if "programs" in wanted:
            _say("the OCI runtimes alone")
            result.latencies["programs"] = programs.measure(own[0], runtimes, n=options.n, warm_up=options.warm_up)
        if "host" in wanted:
            _say("pods on the host's network")
            on_host = [
                Contestant(name=one.name, daemon=one.daemon, handler=one.handler, host_network=True) for one in all_[:2]
            ]
            result.latencies["host"] = timing.latencies(on_host, n=options.n, warm_up=options.warm_up, containers=False)
        if "sandbox" in wanted:
            _say("sandbox API")
            base_host, own_host = (replace(one, host_network=True) for one in all_[:2])
            result.sandbox_api = sandbox_api.measure(base_host, own_host, n=options.n, warm_up=options.warm_up)
        if "pool" in wanted:
            _say("pool")
            _pool(result, containerd, prefix, options)
        if "throughput" in wanted:
            for callers in options.callers:
                _say(f"throughput, {callers} callers")
                result.throughput[callers] = timing.throughput(all_, callers=callers, pods=options.block, blocks=4)
        _measure_cri(result, wanted, containerd, own, options)
        if "memory" in wanted:
            _say("memory")
            result.memory = costs.memory(all_, pods=options.pods, times=2)
            result.memory_pods = options.pods
        if "cpu" in wanted:
            _say("CPU time")
            result.cpu = {one.name: costs.cpu(one, pods=max(3, options.n // 3), prefix=prefix) for one in all_}
        if "calls" in wanted and shutil.which("strace", path=places.PATH):
            _say("system calls")
            result.calls_pods = TRACED_PODS
            for one in all_:
                result.calls[one.name] = costs.system_calls(one, pods=TRACED_PODS, folder=one.daemon.places.base)


def _measure_cri(
    result: Result, wanted: set[str], containerd: Contestant, own: list[Contestant], options: argparse.Namespace
) -> None:
    if "callers" in wanted:
        _say("calls by several callers")
        result.crowd = crowd.measure([containerd, *own], callers=options.at_once, pods=options.block)
    if "log" in wanted:
        _say("log of a chatty container")
        result.rates["log of one chatty container"] = chatter.measure([containerd, own[-1]], mib=options.log_mib, n=3)
    if "standing" in wanted:
        _say("many pods at rest")
        running = min(100, options.listed)
        result.standing = standing.measure(
            [containerd, own[-1]], running=running, listed=options.listed, idle_s=options.idle, n=options.n
        )


def _streams(result: Result, prefix: str, runtimes: tuple[str, ...], options: argparse.Namespace) -> None:
    base = Containerd(Places(prefix=prefix, name="containerd", number=0), folder=options.containerd)
    own = Atoll(Places(prefix=prefix, name="atoll", number=1), runtimes=runtimes)
    names = {base.places.name: report.BASE, own.places.name: f"atoll/{runtimes[0]}"}
    found = streaming.measure([own, base], options.stream_mib << 20, 3)
    for row in streaming.ROWS:
        result.rates[row] = {name: [rate / 1e6 for rate, _ in found[row, one]] for one, name in names.items()}


def _sdk(result: Result, prefix: str, options: argparse.Namespace) -> None:
    lacking = [name for name in ("crun", "conmon", "podman") if podman.program(options.podman, name) is None]
    if lacking:
        _say(f"the SDK beside podman: left out, not installed: {', '.join(lacking)} (Debian: apt-get install podman)")
        return
    _say("the SDK beside podman")
    result.machine["podman"] = podman.version(options.podman)
    result.sdk = sdk_bench.measure(prefix, options)


def _pool(result: Result, containerd: Contestant, prefix: str, options: argparse.Namespace) -> None:
    daemon = Atoll(Places(prefix=prefix, name="pool", number=2), pool_size=POOL_SIZE)
    with daemon:
        pooled = Contestant(name="atoll/runc, pool", daemon=daemon, handler="runc", idle=POOL_SIZE)
        pooled.settle()
        result.latencies["pool"] = timing.latencies(
            [containerd, pooled], n=options.n, warm_up=options.warm_up, containers=False
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Atoll beside containerd, in one run.")
    parser.add_argument("-n", type=int, default=30, help="pods a latency (default %(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="unmeasured pods before them (default %(default)s)")
    parser.add_argument("--pods", type=int, default=30, help="pods of the memory figures (default %(default)s)")
    parser.add_argument("--block", type=int, default=16, help="pods a block of throughput (default %(default)s)")
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 4], help="callers of throughput")
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 4, 16], help="callers of each call")
    parser.add_argument("--listed", type=int, default=500, help="pods of the lists (default %(default)s)")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of rest (default %(default)s)")
    parser.add_argument("--log-mib", type=int, default=128, help="MiB of the chatty container (default %(default)s)")
    parser.add_argument("--stream-mib", type=int, default=256, help="MiB a stream (default %(default)s)")
    parser.add_argument("--files", type=int, default=10_000, help="small files of an upload (default %(default)s)")
    parser.add_argument("--upload-mib", type=int, default=1024, help="MiB of the large one (default %(default)s)")
    parser.add_argument("--podman", type=Path, metavar="FOLDER", help="another podman's programs, with ../lib")
    parser.add_argument("--containerd", type=Path, metavar="FOLDER", help="another containerd's programs")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="the parts to run (default all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample as JSON")
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


def _other(folder: Path | None) -> dict[str, str]:
    return {"containerd": host.version(str(folder / "containerd"), "--version")} if folder is not None else {}


def _commit() -> str:
    git = ["git", "-C", str(REPO), "describe", "--always", "--dirty"]
    told = subprocess.run(git, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
