"""How fast the output of one chatty container gets into its log, in lines as CRI has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from atoll.api import cri_runtime_v1_pb2 as pb
from bench.cri import container_config
from bench.places import wait_until
from bench.timing import Contestant

LINE_BYTES = 128
WITHIN_S = 300.0
SETTLE_S = 0.5


def measure(contestants: Sequence[Contestant], *, mib: int, n: int) -> dict[str, list[float]]:
    """MB a second of `n` containers a contestant that each write `mib` MiB in lines, in turns; the log is whole."""
    found: dict[str, list[float]] = {one.name: [] for one in contestants}
    for number in range(-1, n):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            rate = _rate(contestant, (mib if number >= 0 else 4) << 20)
            if number >= 0:
                found[contestant.name].append(rate)
    return found


def _rate(contestant: Contestant, size: int) -> float:
    cri = contestant.cri
    request = contestant.request("chatty")
    line = "x" * (LINE_BYTES - 1)
    config = container_config(["sh", "-c", f"yes {line} | head -c {size}"])
    config.linux.ClearField("resources")
    pod = cri.run_pod(request)
    try:
        container = cri.create(pod, request, config)
        log = Path(cri.container_status(container).log_path)
        begun = time.perf_counter()
        cri.start(container)
        exited = pb.CONTAINER_EXITED
        if not wait_until(lambda: cri.container_status(container).state == exited, within=WITHIN_S, every=0.005):
            raise RuntimeError(f"{contestant.name}: the chatty container does not end")
        took = time.perf_counter() - begun
        _require_whole(contestant, log, size)
        return size / took / 1e6
    finally:
        cri.stop_pod(pod)
        cri.remove_pod(pod)
        for file in (contestant.daemon.places.logs).glob("chatty_*/*"):
            file.unlink()
        time.sleep(SETTLE_S)


def _require_whole(contestant: Contestant, log: Path, size: int) -> None:
    lines = total = 0
    with log.open("rb") as file:
        for line in file:
            lines += 1
            total += len(line.split(b" ", 3)[3])
    if total != size or lines != size // LINE_BYTES:
        raise RuntimeError(f"{contestant.name}: the log has {lines} lines and {total} bytes of {size}")
