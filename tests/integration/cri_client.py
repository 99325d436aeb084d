"""A client of the daemon's socket for tests: CRI and atoll.v1, blocking, with short ways to say the usual things."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.leaks import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Roots

M = TypeVar("M", bound=Message)
T = TypeVar("T")

BUSYBOX = "atoll/busybox"
CALL_TIMEOUT_S = 40.0
NO_NETWORK = "io.atoll.network/none"


class Service:
    """Every method of one gRPC service, called by its name with a message."""

    def __init__(self, channel: grpc.Channel, service: ServiceDescriptor) -> None:
        self.channel = channel
        self.descriptor = service

    def call(self, name: str, request: Message, answer: type[M], *, timeout: float = CALL_TIMEOUT_S) -> M:
        return self.future(name, request, answer, timeout=timeout).result()

    def future(self, name: str, request: Message, answer: type[M], *, timeout: float = CALL_TIMEOUT_S):
        method = self.channel.unary_unary(
            f"/{self.descriptor.full_name}/{name}",
            request_serializer=_encode,
            response_deserializer=answer.FromString,
        )
        return method.future(request, timeout=timeout)

    def stream(
        self, name: str, requests: Iterator[Message] | Message, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> Any:
        """The answers of a streaming method, as an iterator that has `cancel`."""
        method = self.descriptor.methods_by_name[name]
        path = f"/{self.descriptor.full_name}/{name}"
        answer = GetMessageClass(method.output_type).FromString
        if isinstance(requests, Message):
            return self.channel.unary_stream(path, _encode, answer)(requests, timeout=timeout)
        return self.channel.stream_stream(path, _encode, answer)(requests, timeout=timeout)


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOutcome:
    code: int
    stdout: bytes
    stderr: bytes
    cause: int = 0


@dataclass(slots=True, kw_only=True)
class CRI:
    """The calls of CRI against one daemon; every name it makes up starts with the test's prefix."""

    roots: Roots
    runtime: Service
    images: Service
    own: Service
    log_folder: Path
    names: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000_000)))

    # --- pods ---

    def pod_config(
        self,
        name: str = "",
        *,
        network: bool = False,
        namespaces: pb.NamespaceOption | None = None,
        annotations: dict[str, str] | None = None,
        **fields: object,
    ) -> pb.PodSandboxConfig:
        """A pod with logs; without `network` it has a namespace with nothing but `lo`, which is quickest."""
        name = name or f"{self.roots.prefix}-{next(self.names)}"
        config = pb.PodSandboxConfig(log_directory=str(self.log_folder / name), **fields)  # pyright: ignore[reportArgumentType]
        config.metadata.name = name
        config.metadata.namespace = "tests"
        config.metadata.uid = name
        config.annotations.update(annotations or {})
        if not network:
            config.annotations[NO_NETWORK] = "true"
        if namespaces is not None:
            config.linux.security_context.namespace_options.CopyFrom(namespaces)
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        return config

    def run_pod(self, config: pb.PodSandboxConfig | None = None, handler: str = "") -> str:
        request = pb.RunPodSandboxRequest(config=config or self.pod_config(), runtime_handler=handler)
        return self.runtime.call("RunPodSandbox", request, pb.RunPodSandboxResponse).pod_sandbox_id

    def pod_status(self, pod: str) -> pb.PodSandboxStatus:
        return self.pod_status_answer(pod).status

    def pod_status_answer(self, pod: str, *, verbose: bool = False) -> pb.PodSandboxStatusResponse:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose)
        return self.runtime.call("PodSandboxStatus", request, pb.PodSandboxStatusResponse)

    def pod_info(self, pod: str) -> dict[str, object]:
        return json.loads(self.pod_status_answer(pod, verbose=True).info["info"])

    def list_pods(self, **wanted: object) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))  # pyright: ignore[reportArgumentType]
        return list(self.runtime.call("ListPodSandbox", request, pb.ListPodSandboxResponse).items)

    def stop_pod(self, pod: str) -> None:
        self.runtime.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), pb.StopPodSandboxResponse)

    def remove_pod(self, pod: str) -> None:
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.call("RemovePodSandbox", request, pb.RemovePodSandboxResponse)

    # --- containers ---

    def container_config(
        self, *command: str, name: str = "", image: str = BUSYBOX, env: dict[str, str] | None = None, **fields: object
    ) -> pb.ContainerConfig:
        name = name or f"c{next(self.names)}"
        config = pb.ContainerConfig(command=command, log_path=f"{name}.log", **fields)  # pyright: ignore[reportArgumentType]
        config.metadata.name = name
        config.image.image = image
        for key, value in (env or {}).items():
            config.envs.add(key=key, value=value.encode())
        return config

    def create(self, pod: str, config: pb.ContainerConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        return self.runtime.call("CreateContainer", request, pb.CreateContainerResponse).container_id

    def start(self, container: str) -> None:
        request = pb.StartContainerRequest(container_id=container)
        self.runtime.call("StartContainer", request, pb.StartContainerResponse)

    def run(self, pod: str, *command: str, **fields: object) -> str:
        """Create and start a container."""
        container = self.create(pod, self.container_config(*command, **fields))  # pyright: ignore[reportArgumentType]
        self.start(container)
        return container

    def script(self, pod: str, script: str, **fields: object) -> str:
        """A started container that runs a shell script."""
        return self.run(pod, "/bin/sh", "-c", script, **fields)

    def stop(self, container: str, timeout: int = 0) -> None:
        request = pb.StopContainerRequest(container_id=container, timeout=timeout)
        self.runtime.call("StopContainer", request, pb.StopContainerResponse)

    def remove(self, container: str) -> None:
        request = pb.RemoveContainerRequest(container_id=container)
        self.runtime.call("RemoveContainer", request, pb.RemoveContainerResponse)

    def status(self, container: str) -> pb.ContainerStatus:
        return self.runtime.call(
            "ContainerStatus", pb.ContainerStatusRequest(container_id=container), pb.ContainerStatusResponse
        ).status

    def list(self, **wanted: object) -> list[pb.Container]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))  # pyright: ignore[reportArgumentType]
        return [*self.runtime.call("ListContainers", request, pb.ListContainersResponse).containers]

    def wait(self, container: str, *, timeout: float = CALL_TIMEOUT_S) -> own.Exit:
        return self.own.call("Wait", own.WaitRequest(container_id=container), own.WaitResponse, timeout=timeout).exit

    def exec(self, container: str, *command: str, timeout: int = 0) -> ExecOutcome:
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        answer = self.runtime.call("ExecSync", request, pb.ExecSyncResponse)
        return ExecOutcome(code=answer.exit_code, stdout=answer.stdout, stderr=answer.stderr)

    def sh(self, container: str, script: str) -> str:
        """The stdout of a script that must succeed, without its last line break."""
        outcome = self.exec(container, "/bin/sh", "-c", script)
        assert outcome.code == 0, f"{script!r}: {outcome}"
        return outcome.stdout.decode().removesuffix("\n")

    def stats(self, container: str) -> pb.ContainerStats:
        request = pb.ContainerStatsRequest(container_id=container)
        return self.runtime.call("ContainerStats", request, pb.ContainerStatsResponse).stats

    def log(self, container: str) -> bytes:
        """The container's log file as it is on disk."""
        return Path(self.status(container).log_path).read_bytes()

    def output(self, container: str, stream: str = "stdout") -> bytes:
        """What the log says that a container wrote to one stream."""
        return content(self.log(container), stream)

    # --- atoll.v1 ---

    def fsck(self, *, repair: bool = False) -> list[own.Finding]:
        return [*self.own.call("Fsck", own.FsckRequest(repair=repair), own.FsckResponse).findings]

    def list_images(self) -> list[pb.Image]:
        return [*self.images.call("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse).images]

    def require_clean_books(self) -> None:
        """Fail unless an fsck finds nothing, or soon nothing any more."""
        found: list[own.Finding] = []

        def clean() -> bool:
            found[:] = self.fsck()
            return not found

        assert wait_until(clean), f"atoll fsck found:\n{''.join(map(str, found))}"

    def phases(self, pod: str) -> list[own.Phase]:
        return [*self.own.call("Phases", own.PhasesRequest(pod_id=pod), own.PhasesResponse).phases]

    def run_exec(
        self, container: str, *command: str, inputs: Iterator[own.ExecRequest] | None = None, **start: object
    ) -> ExecOutcome:
        """One exec through atoll.v1; `inputs` are sent after the start."""

        def requests() -> Iterator[Message]:
            yield own.ExecRequest(
                start=own.ExecStart(container_id=container, command=command, **start)  # pyright: ignore[reportArgumentType]
            )
            yield from inputs or ()

        stdout, stderr = bytearray(), bytearray()
        for message in self.own.stream("Exec", requests()):
            stdout += message.stdout
            stderr += message.stderr
            if message.WhichOneof("message") == "exit":
                return ExecOutcome(
                    code=message.exit.code, stdout=bytes(stdout), stderr=bytes(stderr), cause=message.exit.cause
                )
        raise AssertionError("the stream ended without an exit")


@contextmanager
def connected(roots: Roots, log_folder: Path | None = None) -> Iterator[CRI]:
    """A client of the daemon in `roots`; container logs go below `log_folder`, by default the test's own."""
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", 16 << 20),  # as a kubelet's
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
    with grpc.insecure_channel(f"unix:{roots.socket}", options=options) as channel:
        cri = pb.DESCRIPTOR.services_by_name
        yield CRI(
            roots=roots,
            runtime=Service(channel, cri["RuntimeService"]),
            images=Service(channel, cri["ImageService"]),
            own=Service(channel, own.DESCRIPTOR.services_by_name["Runtime"]),
            log_folder=log_folder or roots.base / "logs",
        )


def content(log: bytes, stream: str = "stdout") -> bytes:
    """The bytes of one stream of a CRI log, its partial lines joined; every line must be well formed."""
    found = bytearray()
    for line in log.split(b"\n")[:-1]:
        time_, of, tag, text = line.split(b" ", 3)
        assert time_.endswith(b"Z") or time_[-6:-5] in b"+-", line
        assert of in (b"stdout", b"stderr"), line
        assert tag in (b"F", b"P"), line
        if of.decode() == stream:
            found += text + (b"\n" if tag == b"F" else b"")
    return bytes(found)


@contextmanager
def refused(code: grpc.StatusCode | tuple[grpc.StatusCode, ...], *words: str) -> Iterator[None]:
    """The call inside must fail with this status, or one of these, and a one-line text that has all of these words."""
    try:
        yield
    except grpc.RpcError as error:
        said = error.details() or ""
        codes = code if isinstance(code, tuple) else (code,)
        assert error.code() in codes, f"{error.code()}: {said}"  # noqa: PT017  more is asserted than one type
        assert "\n" not in said.strip(), said
        for word in words:
            assert word in said, f"{word!r} is missing in {said!r}"
    else:
        raise AssertionError(f"nothing was refused; {code} was expected")


def in_parallel(works: list[Callable[[], T]]) -> list[T | Exception]:
    """Run all at the same time; the result of each, or its error."""

    def one(work: Callable[[], T]) -> T | Exception:
        try:
            return work()
        except Exception as error:  # noqa: BLE001  the error is the result
            return error

    with ThreadPoolExecutor(max(len(works), 1)) as pool:
        return list(pool.map(one, works))


def eventually(done: Callable[[], bool], what: str, *, within: float = 10.0) -> None:
    """Wait until `done`; fail naming `what` where it never is."""
    assert wait_until(done, within=within), f"not within {within:g} s: {what}"


def token() -> str:
    return secrets.token_hex(6)


def now_ns() -> int:
    return time.time_ns()
