"""The sandbox API of `atoll serve` beside the CRI of Debian's containerd: pods on the host's network, in turn.

containerd 1.6 serves no sandbox API, so what is compared is what a client waits for until a sandbox runs:
RunPodSandbox there, Controller.Create and Controller.Start here, for the same pod config. Then what idle sandboxes
cost in memory that no other process has.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from bench import host, timing
from bench.timing import Contestant

SERVICE = pb.DESCRIPTOR.services_by_name["Controller"]
CALL_TIMEOUT_S = 60.0
STATUSES = 20
"""Asked of each sandbox, so that there are enough for a percentile."""
RUN = "RunPodSandbox"
CREATE = "Controller.Create"
START = "Controller.Start"
BOTH = "Create + Start"
STATUS = "Controller.Status"
STOP = "Controller.Stop"
SHUTDOWN = "Controller.Shutdown"
ROWS = (RUN, CREATE, START, BOTH, STATUS, STOP, SHUTDOWN)
AIM_RATIO = 1 / 5
"""Of create and start to RunPodSandbox."""
AIM_STATUS_MS = 1.0
IDLE = (1, 2, 8, 32)
"""How many idle sandboxes at once."""
AIM_KIB = 4096
"""Of private memory, an idle sandbox."""
SETTLE_S = 1.0
ZYGOTE = "atoll-zygote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """Private memory (dirty and clean) beside so many idle sandboxes, KiB in all.

    `serving`: every process that serves them, whole: shims, holders, and spare ones that wait for the next sandbox.
    `grown`: what all processes of Atoll have (daemon, zygote, shims, holders, spare ones) beyond what they had with
    none: one spare shim waits then too, and the first sandbox takes it.
    """

    serving: int
    grown: int
    processes: int


@dataclass(slots=True, kw_only=True)
class Sandboxes:
    """Milliseconds of every measured call, by its name; memory by the number of sandboxes."""

    ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    private: dict[int, Private] = field(default_factory=dict[int, "Private"])

    def add(self, what: str, value: float) -> None:
        self.ms.setdefault(what, []).append(value)


class Controller:
    """The Controller service of one daemon; a context, for it holds a connection."""

    def __init__(self, socket: Path, sandboxer: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)])
        self._sandboxer = sandboxer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, name: str, sandbox_id: str, **fields: object) -> tuple[Message, float]:
        """The answer and the milliseconds until it was there."""
        method = SERVICE.methods_by_name[name]
        request = GetMessageClass(method.input_type)(sandbox_id=sandbox_id, sandboxer=self._sandboxer, **fields)
        ask = self._channel.unary_unary(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        begun = time.perf_counter()
        answer = ask(request, timeout=CALL_TIMEOUT_S, metadata=(("containerd-namespace", "k8s.io"),))
        return answer, (time.perf_counter() - begun) * 1000


def measure(base: Contestant, own: Contestant, *, n: int, warm_up: int) -> Sandboxes:
    """`n` pods and as many sandboxes, after `warm_up` unmeasured ones; who is first takes turns."""
    found = Sandboxes()
    with Controller(own.daemon.places.socket, own.handler) as controller:
        for count in IDLE:  # before everything else: the first sandbox of this daemon costs the most
            found.private[count] = _private(own, controller, count)
        for number in range(-warm_up, n):
            into = found if number >= 0 else Sandboxes()
            works = [lambda into=into: _one_pod(base, into), lambda into=into: _one_sandbox(own, controller, into)]
            for work in works if number % 2 == 0 else works[::-1]:
                work()
                time.sleep(timing.BREATH_S)
    return found


def _one_pod(base: Contestant, into: Sandboxes) -> None:
    request = base.request()
    begun = time.perf_counter()
    pod = base.cri.run_pod(request)
    into.add(RUN, (time.perf_counter() - begun) * 1000)
    base.cri.stop_pod(pod)
    base.cri.remove_pod(pod)


def _private(own: Contestant, controller: Controller, count: int) -> Private:
    time.sleep(SETTLE_S)  # the spare process for the next sandbox is there again
    before = _everything(own)
    made: list[str] = []
    try:
        for _ in range(count):
            made.append(secrets.token_hex(32))
            controller.call("Create", made[-1], options=_options(own))
            controller.call("Start", made[-1])
        time.sleep(SETTLE_S)
        alive = own.daemon.processes
        serving = [pid for pid in (*alive.marked, *alive.below) if not _is_zygote(pid)]
        return Private(
            serving=sum(map(host.private_kib, serving)), grown=_everything(own) - before, processes=len(serving)
        )
    finally:
        for sandbox_id in made:
            controller.call("Stop", sandbox_id)
            controller.call("Shutdown", sandbox_id)


def _everything(own: Contestant) -> int:
    """Of all processes of the daemon under test."""
    alive = own.daemon.processes
    return sum(map(host.private_kib, {alive.daemon, *alive.marked, *alive.below}))


def _is_zygote(pid: int) -> bool:
    return host.read(f"/proc/{pid}/comm").decode().strip() == ZYGOTE


def _options(own: Contestant) -> AnyMessage:
    config = own.request().config
    return AnyMessage(type_url=config.DESCRIPTOR.full_name, value=config.SerializeToString())


def _one_sandbox(own: Contestant, controller: Controller, into: Sandboxes) -> None:
    sandbox_id = secrets.token_hex(32)
    _, create_ms = controller.call("Create", sandbox_id, options=_options(own))
    _, start_ms = controller.call("Start", sandbox_id)
    statuses = [controller.call("Status", sandbox_id)[1] for _ in range(STATUSES)]
    _, stop_ms = controller.call("Stop", sandbox_id)
    _, shutdown_ms = controller.call("Shutdown", sandbox_id)
    for what, value in (
        (CREATE, create_ms),
        (START, start_ms),
        (BOTH, create_ms + start_ms),
        (STOP, stop_ms),
        (SHUTDOWN, shutdown_ms),
    ):
        into.add(what, value)
    for value in statuses:
        into.add(STATUS, value)


def table(found: Sandboxes) -> str:
    """For people: the medians, and what they are of containerd's; then memory."""
    base = timing.median(found.ms[RUN])
    lines = [
        f"### The sandbox API: pods on the host's network, ms (n = {len(found.ms[RUN])}, in one run)",
        "",
        "| call | served by | p50 / p99 | of containerd's RunPodSandbox | aim |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        values = found.ms[row]
        who = "containerd" if row == RUN else "atoll"
        ratio = "" if row in (RUN, STATUS) else f"{timing.median(values) / base:.2f}"
        aim = f"≤ {AIM_RATIO:.2f}" if row == BOTH else f"< {AIM_STATUS_MS:g} ms" if row == STATUS else ""
        lines.append(f"| {row} | {who} | {_pair(values)} | {ratio} | {aim} |")
    return "\n".join([*lines, "", *_memory_table(found)])


def _memory_table(found: Sandboxes) -> list[str]:
    lines = [
        "### Private memory of idle sandboxes, KiB each",
        "",
        "| sandboxes | they are served by | each, those processes whole | each, what all of Atoll grew by | aim |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, one in found.private.items():
        whole, grown = one.serving / count, one.grown / count
        lines.append(f"| {count} | {one.processes} | {whole:,.0f} | {grown:,.0f} | ≤ {AIM_KIB:,} |")
    return lines


def _pair(values: Sequence[float]) -> str:
    return f"{timing.median(values):.2f} / {timing.percentile(values, 0.99):.2f}"
