"""A client of containerd's sandbox API for tests, blocking, in one containerd namespace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll.api import atoll_sandbox_v1_pb2 as own
from atoll.api import containerd_events_pb2 as events_pb2
from atoll.api import containerd_services_events_v1_pb2 as events
from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from atoll.api import containerd_types_pb2 as types
from atoll.api import cri_runtime_v1_pb2 as cri

M = TypeVar("M", bound=Message)
CALL_TIMEOUT_S = 40.0
READY, NOTREADY = "SANDBOX_READY", "SANDBOX_NOTREADY"
CONTROLLER = pb.DESCRIPTOR.services_by_name["Controller"]
STORE = pb.DESCRIPTOR.services_by_name["Store"]
OWN = own.DESCRIPTOR.services_by_name["Controller"]
EVENTS = events.DESCRIPTOR.services_by_name["Events"]


def new_id() -> str:
    return secrets.token_hex(32)


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def pod_options(*, network: cri.NamespaceMode = cri.NODE, **fields: object) -> AnyMessage:
    """Options of Create: a pod's config, on the host's network unless said."""
    config = cri.PodSandboxConfig(**fields)  # pyright: ignore[reportArgumentType]
    config.linux.security_context.namespace_options.network = network
    return packed(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAPI:
    """The calls; `future` of any gives its future. An empty namespace sends no header."""

    channel: grpc.Channel
    namespace: str = "k8s.io"
    sandboxer: str = "atoll"

    def inside(self, namespace: str) -> SandboxAPI:
        return SandboxAPI(channel=self.channel, namespace=namespace, sandboxer=self.sandboxer)

    def by(self, sandboxer: str) -> SandboxAPI:
        return SandboxAPI(channel=self.channel, namespace=self.namespace, sandboxer=sandboxer)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("containerd-namespace", self.namespace),) if self.namespace else ()

    def future(self, method: MethodDescriptor, request: Message, *, timeout: float | None = CALL_TIMEOUT_S) -> Any:
        service, _, name = str(method.full_name).rpartition(".")
        call = self.channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call.future(request, timeout=timeout, metadata=self.metadata)

    def _controller(self, name: str, *, timeout: float | None = CALL_TIMEOUT_S, **fields: object) -> Any:
        return self.later(name, timeout=timeout, **fields).result()

    def later(self, name: str, *, timeout: float | None = CALL_TIMEOUT_S, **fields: object) -> Any:
        """A call of the Controller service, under way."""
        method = CONTROLLER.methods_by_name[name]
        return self.future(
            method, GetMessageClass(method.input_type)(sandboxer=self.sandboxer, **fields), timeout=timeout
        )

    # --- controller ---

    def create(
        self,
        sandbox_id: str = "",
        *,
        options: AnyMessage | None = None,
        sandbox: types.Sandbox | None = None,
        timeout: float = CALL_TIMEOUT_S,
        **fields: object,
    ) -> str:
        """Create one on the host's network unless `options` say otherwise; its ID."""
        sandbox_id = sandbox_id or new_id()
        record = sandbox or self.record(sandbox_id)
        self._controller(
            "Create",
            sandbox_id=sandbox_id,
            sandbox=record,
            options=options or pod_options(),
            timeout=timeout,
            **fields,
        )
        return sandbox_id

    def record(self, sandbox_id: str, **fields: object) -> types.Sandbox:
        record = types.Sandbox(sandbox_id=sandbox_id, sandboxer=self.sandboxer, **fields)  # pyright: ignore[reportArgumentType]
        record.runtime.name = "io.containerd.runc.v2"
        return record

    def start(self, sandbox_id: str, *, timeout: float = CALL_TIMEOUT_S) -> pb.ControllerStartResponse:
        return self._controller("Start", sandbox_id=sandbox_id, timeout=timeout)

    def run(self, sandbox_id: str = "") -> str:
        made = self.create(sandbox_id)
        self.start(made)
        return made

    def status(self, sandbox_id: str, *, verbose: bool = False) -> pb.ControllerStatusResponse:
        return self._controller("Status", sandbox_id=sandbox_id, verbose=verbose)

    def platform(self, sandbox_id: str) -> types.Platform:
        return self._controller("Platform", sandbox_id=sandbox_id).platform

    def wait(self, sandbox_id: str) -> pb.ControllerWaitResponse:
        return self._controller("Wait", sandbox_id=sandbox_id)

    def stop(self, sandbox_id: str) -> None:
        self._controller("Stop", sandbox_id=sandbox_id)

    def shutdown(self, sandbox_id: str) -> None:
        self._controller("Shutdown", sandbox_id=sandbox_id)

    def metrics(self, sandbox_id: str) -> types.Metric:
        return self._controller("Metrics", sandbox_id=sandbox_id).metrics

    def update(self, sandbox: types.Sandbox, *fields: str) -> None:
        request = pb.ControllerUpdateRequest(sandbox_id=sandbox.sandbox_id, sandbox=sandbox, fields=fields)
        self.future(CONTROLLER.methods_by_name["Update"], request).result()

    def own_call(self, name: str, sandbox_id: str) -> None:
        """Pause, Resume or Ping."""
        method = OWN.methods_by_name[name]
        request = GetMessageClass(method.input_type)(sandbox_id=sandbox_id, sandboxer=self.sandboxer)
        self.future(method, request).result()

    # --- store ---

    def store(self, name: str, **fields: object) -> Any:
        method = STORE.methods_by_name[name]
        return self.future(method, GetMessageClass(method.input_type)(**fields)).result()

    # --- events ---

    def publish(self, topic: str, event: AnyMessage | None = None) -> None:
        self.future(EVENTS.methods_by_name["Publish"], events.PublishRequest(topic=topic, event=event)).result()

    @contextmanager
    def subscribed(self, *filters: str) -> Iterator[Any]:
        """The stream of envelopes; what happens inside is in it."""
        call = self.channel.unary_stream(
            f"/{EVENTS.full_name}/Subscribe", events.SubscribeRequest.SerializeToString, types.Envelope.FromString
        )(events.SubscribeRequest(filters=filters), timeout=CALL_TIMEOUT_S)
        call.initial_metadata()  # sent once the subscription is there
        try:
            yield call
        finally:
            call.cancel()


def sandbox_event(envelope: types.Envelope) -> tuple[str, str, str]:
    """Namespace, topic and sandbox ID of a sandbox's event."""
    name = envelope.event.type_url.rpartition(".")[2]
    event = getattr(events_pb2, name).FromString(envelope.event.value)
    return envelope.namespace, envelope.topic, event.sandbox_id


@contextmanager
def sandbox_api(socket: Path) -> Iterator[SandboxAPI]:
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.max_send_message_length", 32 << 20),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield SandboxAPI(channel=channel)
