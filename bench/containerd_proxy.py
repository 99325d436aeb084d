"""Pod start through a stock containerd 2.x: its own sandboxer beside Atoll's, in one run. As root.

    python bench/containerd_proxy.py FOLDER      with containerd, ctr and containerd-shim-runc-v2 (2.x) in FOLDER

The same containerd runs both, chosen by the pod's runtime handler, in turns (A B B A). The last table asks
Atoll's daemon itself, as that containerd does. Prints; judges nothing, so it gates nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec

from bench import host, places, timing
from bench.containerd_direct import direct
from bench.containerd_peer import HANDLER, OUR_SHIM, PODSANDBOX, AtollPeer, Binaries, ContainerdPeer, add_options
from bench.places import Places
from bench.timing import Contestant, Samples, median, percentile

BASE, OURS, SHIM = "podsandbox", "atoll", "podsandbox, our shim"
ROWS = (timing.RUN, timing.CREATE, timing.START, timing.EXEC, timing.STOP_POD, timing.REMOVE_POD)


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("containerd_proxy: needs root: it runs daemons and pods", file=sys.stderr)
        return 1
    binaries = Binaries.of(options)
    found: dict[str, Samples] = {}
    load = os.getloadavg()
    with places.prefix() as prefix:
        measure(found, prefix, binaries, options)
    version = host.version(str(binaries.containerd), "--version")
    print(f"containerd {version}; {host.facts()}")
    print(f"load before {load[0]:.2f}, after {os.getloadavg()[0]:.2f}; n = {options.n}, medians (90 %) in ms\n")
    for title, samples in found.items():
        print(table(title, samples))
    if options.json:
        options.json.write_bytes(msgspec.json.encode({title: samples.ms for title, samples in found.items()}))
    return 0


def measure(found: dict[str, Samples], prefix: str, binaries: Binaries, options: argparse.Namespace) -> None:
    """Run every table with one pair of daemons."""
    theirs = Places(prefix=prefix, name="containerd", number=0)
    with ExitStack() as stack:
        atoll = stack.enter_context(AtollPeer(Places(prefix=prefix, name="atoll", number=1), theirs))
        daemon = stack.enter_context(ContainerdPeer(theirs, binaries, atoll.places.socket))
        handlers = {BASE: PODSANDBOX, OURS: HANDLER, SHIM: OUR_SHIM}
        wanted = (BASE, OURS, SHIM) if options.shim else (BASE, OURS)
        for network in ("host", "bridge"):
            contestants = [
                Contestant(name=name, daemon=daemon, handler=handlers[name], host_network=network == "host")
                for name in wanted
            ]
            _say(f"pods on the {network} network")
            found[f"{network} network"] = timing.latencies(contestants, n=options.n, warm_up=options.warm_up)
        _say("Atoll's daemon itself")
        found["the daemon itself, host network"] = direct(atoll, n=options.n, warm_up=options.warm_up)


def table(title: str, samples: Samples) -> str:
    """One table of medians, the first contestant the one that ratios refer to."""
    names = list(next(iter(samples.ms.values())))
    lines = [f"{title:36}" + "".join(f"{name:>28}" for name in names) + ("     ratio" if len(names) > 1 else "")]
    for row in [row for row in ROWS if row in samples.ms] or list(samples.ms):
        cells = samples.ms[row]
        words = [f"{median(cells[name]):.2f} ({percentile(cells[name], 0.9):.2f})" for name in names]
        ratio = f"{median(cells[names[0]]) / median(cells[names[1]]):>9.2f}x" if len(names) > 1 else ""
        lines.append(f"  {row:34}" + "".join(f"{word:>28}" for word in words) + ratio)
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("-n", type=int, default=40, help="pods a figure (default %(default)s)")
    parser.add_argument("--warm-up", type=int, default=5, help="unmeasured pods before them (default %(default)s)")
    parser.add_argument("--shim", action="store_true", help="measure our shim under podsandbox too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample as JSON")
    return parser.parse_args()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
