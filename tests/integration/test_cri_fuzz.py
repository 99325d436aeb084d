"""Every RPC of both services with requests that nobody would send: a proper code each time, and nothing is left.

ATOLL_FUZZ_EXAMPLES=20000 python -m pytest tests/integration/test_cri_fuzz.py --timeout 3600
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import BUSYBOX, CRI
from tests.integration.daemons import Daemon
from tests.integration.fuzzing import Draw, fill, mutated, random_message

pytestmark = pytest.mark.shared_daemon

EXAMPLES = int(os.environ.get("ATOLL_FUZZ_EXAMPLES", "300"))
IS_LONG = "ATOLL_FUZZ_EXAMPLES" in os.environ
ANSWER_WITHIN_S = 10.0
STREAM_FOR_S = 0.1
GROWTH_KIB = 24 * 1024
"""Of the daemon's memory while it answers: its caches are bounded, and every pod of the fuzz is gone."""
MAX_THINGS = 12
"""Pods and containers that the fuzz may have at one time."""

METHODS = [
    method for name in ("RuntimeService", "ImageService") for method in pb.DESCRIPTOR.services_by_name[name].methods
]
MAKE = [method for method in METHODS if method.name in ("RunPodSandbox", "CreateContainer")]
"""Asked for more often: they have the most to say."""
PROPER = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.PERMISSION_DENIED,
}
RUNS_A_RUNTIME = {"StartContainer", "ExecSync", "UpdateContainerResources"}
"""Where the words of an OCI runtime that failed are all there is to tell."""
TAKE_THEIR_TIME = {"ExecSync", "StopContainer"}
"""They may be asked to last longer than the test waits."""
NEVER = {"RemoveImage": "the image that the other requests are about"}


@dataclass(slots=True)
class World:
    """What the requests are about, made again where one has removed it."""

    cri: CRI
    ids: dict[str, str] = field(default_factory=dict[str, str])
    made: str = ""
    """The container that the fuzz made last, and the pod."""
    ran: str = ""
    fresh: str = ""
    """What the last call made."""

    def next_steps(self, method: MethodDescriptor) -> Iterator[tuple[MethodDescriptor, Message]]:
        """What a client does with what it has just made: run something in the pod, and in the container."""
        methods = method.containing_service.methods_by_name
        if self.fresh and method.name == "RunPodSandbox":
            pod, self.fresh = self.fresh, ""
            config = self.cri.container_config("sleep", "100")
            yield methods["CreateContainer"], pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        if container := self.fresh:
            yield methods["StartContainer"], pb.StartContainerRequest(container_id=container)
            yield methods["ExecSync"], pb.ExecSyncRequest(container_id=container, cmd=["true"], timeout=5)

    def learn(self, answer: bytes, method: MethodDescriptor) -> None:
        self.fresh = ""
        if not answer:
            return
        if method.name == "CreateContainer":
            self.fresh = self.made = pb.CreateContainerResponse.FromString(answer).container_id
        elif method.name == "RunPodSandbox":
            self.fresh = self.ran = pb.RunPodSandboxResponse.FromString(answer).pod_sandbox_id

    def words(self) -> dict[str, str]:
        if not self._is_whole():
            self.clear()
            self._make()
        roots = self.cri.roots
        return {
            **{f"<{name}>": value for name, value in self.ids.items()},
            "<half>": self.ids["running"][:32],
            "<made>": self.made or self.ids["created"],
            "<ran>": self.ran or self.ids["pod"],
            "<base>": str(roots.base),
            "<prefix>": roots.prefix,
        }

    def _is_whole(self) -> bool:
        states = {one.id: one.state for one in self.cri.list()}
        pods = {one.id: one.state for one in self.cri.list_pods()}
        wanted = {"running": pb.CONTAINER_RUNNING, "created": pb.CONTAINER_CREATED, "exited": pb.CONTAINER_EXITED}
        return (
            len(states) + len(pods) <= MAX_THINGS
            and all(states.get(self.ids.get(name, "")) == state for name, state in wanted.items())
            and pods.get(self.ids.get("pod", "")) == pb.SANDBOX_READY
            and self.ids.get("stopped", "") in pods
        )

    def _make(self) -> None:
        cri = self.cri
        pod, stopped = cri.run_pod(), cri.run_pod()
        cri.stop_pod(stopped)
        exited = cri.run(pod, "true")
        self.ids = {
            "pod": pod,
            "stopped": stopped,
            "running": cri.run(pod, "sleep", "100000"),
            "created": cri.create(pod, cri.container_config("sleep", "100000")),
            "exited": exited,
        }
        cri.wait(exited)

    def clear(self) -> None:
        for pod in self.cri.list_pods():
            self.cri.remove_pod(pod.id)


def valid(method: MethodDescriptor) -> Message:
    """A request of the method that would do, in words of `fill`; empty where anything does."""
    request = GetMessageClass(method.input_type)()
    fields = method.input_type.fields_by_name
    for name, word in (("container_id", "<running>"), ("pod_sandbox_id", "<pod>")):
        if name in fields:
            setattr(request, name, word)
    if isinstance(request, pb.RunPodSandboxRequest):
        request.config.metadata.MergeFrom(pb.PodSandboxMetadata(name="fuzz", namespace="fuzz", uid="<new>"))
        request.config.log_directory = "<base>/logs/fuzz"
        request.config.annotations["io.atoll.network/none"] = "true"
        request.config.linux.security_context.namespace_options.pid = pb.CONTAINER
    elif isinstance(request, pb.CreateContainerRequest):
        request.config.metadata.name = "fuzz<new>"
        request.config.image.image = BUSYBOX
        request.config.command.extend(["sleep", "100"])
        request.config.log_path = "fuzz.log"
        request.config.linux.security_context.namespace_options.pid = pb.CONTAINER
        request.config.linux.resources.memory_limit_in_bytes = 32 << 20
        request.config.mounts.add(container_path="/mnt", host_path="<base>")
    elif isinstance(request, pb.ExecSyncRequest):
        request.cmd.append("true")
        request.timeout = 5
    elif isinstance(request, pb.ExecRequest | pb.AttachRequest):
        request.stdout = True
        if isinstance(request, pb.ExecRequest):
            request.cmd.append("true")
    elif isinstance(request, pb.StartContainerRequest):
        request.container_id = "<made>"
    elif isinstance(request, pb.CheckpointContainerRequest):
        request.location = "<base>/checkpoint.tar"
    elif isinstance(request, pb.UpdateContainerResourcesRequest):
        request.linux.memory_limit_in_bytes = 64 << 20
    elif "image" in fields:
        request.image.image = BUSYBOX  # pyright: ignore[reportAttributeAccessIssue]  it has the field
    return request


def answer_of(cri: CRI, method: MethodDescriptor, request: bytes) -> tuple[grpc.StatusCode, str, bytes]:
    """The code and the words that a request in bytes is answered with, and a single answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        call: Any = cri.runtime.channel.unary_stream(path)(request, timeout=STREAM_FOR_S)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        code = call.code()
        return (grpc.StatusCode.OK if code is grpc.StatusCode.DEADLINE_EXCEEDED else code), call.details() or "", b""
    within = 1.0 if method.name in TAKE_THEIR_TIME else ANSWER_WITHIN_S
    unary = cri.runtime.channel.unary_unary(path).future(request, timeout=within)
    code = unary.code()
    return code, unary.details() or "", unary.result() if code is grpc.StatusCode.OK else b""


def fault_of(method: MethodDescriptor, code: grpc.StatusCode, said: str) -> str | None:
    """What is wrong with an answer."""
    is_runtimes = method.name in RUNS_A_RUNTIME and ("crun" in said or "runc" in said)
    is_late = method.name in TAKE_THEIR_TIME
    is_proper = (
        code in PROPER
        or (code is grpc.StatusCode.UNKNOWN and is_runtimes)
        or (code is grpc.StatusCode.DEADLINE_EXCEEDED and is_late)
    )
    if is_proper and "\n" not in said.strip() and "internal error" not in said:
        return None
    return f"{code}: {said!r}"


def private_kib(daemon: Daemon) -> int:
    with open(f"/proc/{daemon.pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


@pytest.fixture
def world(cri: CRI) -> Iterator[World]:
    found = World(cri)
    try:
        yield found
    finally:
        found.clear()


@pytest.mark.timeout(3600 if IS_LONG else 120)
def test_every_request_has_a_proper_answer_and_leaves_nothing(cri: CRI, daemon: Daemon, world: World) -> None:
    asked: list[MethodDescriptor] = []
    wrong: list[str] = []
    before = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        phases=(Phase.generate,),
    )
    @given(calls(), st.sampled_from([b""] * 15 + [b"\x0a", b"\xff"]))
    def ask(call: tuple[MethodDescriptor, Message], tail: bytes) -> None:
        nonlocal before
        method, request = call
        fill(request, {**world.words(), "<new>": str(len(asked))})
        if method.name in NEVER and BUSYBOX.partition("/")[2] in str(request):
            return
        asked.append(method)
        if len(asked) == EXAMPLES // 3:
            before = private_kib(daemon)
        for step, sent in chain([(method, request)], world.next_steps(method)):
            code, said, answer = answer_of(cri, step, sent.SerializeToString() + tail * (step is method))
            world.learn(answer, step)
            if (fault := fault_of(step, code, said)) is not None:
                wrong.append(f"{step.name}: {fault}\n{request}")

    ask()
    assert not wrong, f"{len(wrong)} of {len(asked)}:\n" + "\n".join(wrong)[:20_000]
    world.clear()
    assert daemon.is_running(), daemon.log_tail()
    cri.require_clean_books()
    assert private_kib(daemon) - before < GROWTH_KIB


@st.composite
def calls(draw: Draw) -> tuple[MethodDescriptor, Message]:
    """A method with a request of its kind: a valid one changed, or anything."""
    method = draw(st.sampled_from(METHODS) | st.sampled_from(MAKE))
    base = valid(method)
    anything = random_message(method.input_type)
    return method, draw(mutated(base) | anything if base.ListFields() else anything)


def test_every_request_that_would_do_is_served(cri: CRI, world: World) -> None:
    """None is unimplemented, but for a checkpoint where the OCI runtime knows none."""
    answers: dict[str, str] = {}
    ends = [method for method in METHODS if method.name.startswith(("Stop", "Remove"))]
    for method in (*(method for method in METHODS if method not in ends), *ends):
        request = valid(method)
        fill(request, {**world.words(), "<new>": "0"})
        if method.name == "RemoveImage":
            request.ClearField("image")
        code, said, _ = answer_of(cri, method, request.SerializeToString())
        if code is not grpc.StatusCode.OK:
            answers[method.name] = f"{code}: {said}"
    assert answers.keys() <= {"CheckpointContainer", "RemoveImage"}, answers


def test_bytes_that_are_no_request_are_told_so(cri: CRI) -> None:
    for method in METHODS:
        code, said, _ = answer_of(cri, method, b"\xff\xff\xff")
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED), (
            f"{method.name}: {code} {said}"
        )
