"""The calls that a containerd makes of its sandboxer, made by this process: what of a pod's start is Atoll's."""

from __future__ import annotations

import secrets
import time
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from atoll.api import containerd_types_pb2 as types
from bench.cri import pod_request
from bench.daemons import Daemon
from bench.timing import Samples

SERVICE = "containerd.services.sandbox.v1.Controller"
METADATA = (("containerd-namespace", "k8s.io"),)
SANDBOXER = "atoll"
CREATE_START, STATUS = "Controller.Create + Start", "Controller.Status"
TIMEOUT_S = 30.0

_Answer = TypeVar("_Answer", bound=Message)


class Controller:
    """A caller of one daemon's sandbox controllers, as a containerd's CRI is."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, method: str, request: Message, answer: type[_Answer], *, timeout: float = TIMEOUT_S) -> _Answer:
        ask = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return ask(request, timeout=timeout, metadata=METADATA)

    def create(self, sandbox_id: str, config: Message) -> None:
        options = AnyMessage(type_url=config.DESCRIPTOR.full_name, value=config.SerializeToString())
        runtime = types.Sandbox.Runtime(name="io.containerd.runc.v2")
        record = types.Sandbox(sandbox_id=sandbox_id, runtime=runtime, sandboxer=SANDBOXER)
        record.created_at.GetCurrentTime()
        record.updated_at.GetCurrentTime()
        request = pb.ControllerCreateRequest(
            sandbox_id=sandbox_id, options=options, sandbox=record, sandboxer=SANDBOXER
        )
        self.call("Create", request, pb.ControllerCreateResponse)

    def start(self, sandbox_id: str) -> pb.ControllerStartResponse:
        request = pb.ControllerStartRequest(sandbox_id=sandbox_id, sandboxer=SANDBOXER)
        return self.call("Start", request, pb.ControllerStartResponse)

    def status(self, sandbox_id: str) -> pb.ControllerStatusResponse:
        request = pb.ControllerStatusRequest(sandbox_id=sandbox_id, sandboxer=SANDBOXER)
        return self.call("Status", request, pb.ControllerStatusResponse)

    def shutdown(self, sandbox_id: str) -> None:
        request = pb.ControllerShutdownRequest(sandbox_id=sandbox_id, sandboxer=SANDBOXER)
        self.call("Shutdown", request, pb.ControllerShutdownResponse)


def direct(daemon: Daemon, *, n: int, warm_up: int) -> Samples:
    """Milliseconds of create + start of a pod on the host's network, and of ten times as many status calls."""
    samples = Samples()
    with grpc.insecure_channel(f"unix:{daemon.places.socket}") as channel:
        controller = Controller(channel)
        for number in range(-warm_up, n):
            sandbox_id = secrets.token_hex(32)
            parent = f"{daemon.places.cgroup}/direct"
            config = pod_request("pod", logs=daemon.places.logs, host_network=True, cgroup_parent=parent).config
            begun = time.perf_counter_ns()
            controller.create(sandbox_id, config)
            controller.start(sandbox_id)
            took = (time.perf_counter_ns() - begun) / 1e6
            if number >= 0:
                samples.add("atoll", CREATE_START, took)
                for _ in range(10):
                    begun = time.perf_counter_ns()
                    controller.status(sandbox_id)
                    samples.add("atoll", STATUS, (time.perf_counter_ns() - begun) / 1e6)
            controller.shutdown(sandbox_id)
    return samples
