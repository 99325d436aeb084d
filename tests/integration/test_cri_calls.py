"""Every RPC of both services once on real pods and containers: what it answers, and what it did.

The RPCs are those of the descriptor: one that is new there fails here until it has a check, and a check that does not
make its call fails too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import BUSYBOX, CRI, Service, eventually, refused
from tests.integration.images import image, layer, member, write_layout
from tests.integration.registry import running_registry
from tests.integration.stream_client import Spdy, SpdyCommand

pytestmark = pytest.mark.shared_daemon

METHODS = [
    method for name in ("RuntimeService", "ImageService") for method in pb.DESCRIPTOR.services_by_name[name].methods
]
MIB = 1 << 20
COMMAND_PROTOCOL = "v4.channel.k8s.io"


class Recorded(Service):
    """A service that keeps the names of the methods called."""

    def __init__(self, service: Service, called: set[str]) -> None:
        super().__init__(service.channel, service.descriptor)
        self._called = called

    def future(self, name: str, request: Message, answer: Any, *, timeout: float = 40.0) -> Any:
        self._called.add(name)
        return super().future(name, request, answer, timeout=timeout)

    def stream(self, name: str, requests: Any, *, timeout: float | None = 40.0) -> Any:
        self._called.add(name)
        return super().stream(name, requests, timeout=timeout)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with one container that sleeps."""

    cri: CRI
    id: str
    container: str


@pytest.fixture
def called() -> set[str]:
    return set()


@pytest.fixture
def client(cri: CRI, called: set[str]) -> CRI:
    return replace(cri, runtime=Recorded(cri.runtime, called), images=Recorded(cri.images, called))


def made(cri: CRI, **config: Any) -> Pod:
    pod = cri.run_pod(cri.pod_config(labels={"app": "web"}, annotations={"note": "1"}, **config))
    return Pod(cri, pod, cri.run(pod, "sleep", "1000", labels={"tier": "front"}))


def call(service: Service, name: str, **fields: Any) -> Any:
    """The answer to a request of these fields."""
    request, answer = getattr(pb, f"{REQUESTS[name]}"), getattr(pb, ANSWERS[name])
    return service.call(name, request(**fields), answer)


def streamed(service: Service, name: str, **fields: Any) -> list[Any]:
    return [*service.stream(name, getattr(pb, REQUESTS[name])(**fields))]


REQUESTS = {method.name: method.input_type.name for method in METHODS}
ANSWERS = {method.name: method.output_type.name for method in METHODS}


# --- what the runtime is ---


def version(cri: CRI) -> None:
    answer = call(cri.runtime, "Version", version="v1")
    assert (answer.version, answer.runtime_name, answer.runtime_api_version) == ("0.1.0", "atoll", "v1")
    assert answer.runtime_version


def status(cri: CRI) -> None:
    answer = call(cri.runtime, "Status", verbose=True)
    assert {one.type: one.status for one in answer.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert {"", "atoll"} <= {handler.name for handler in answer.runtime_handlers}
    assert answer.features.supplemental_groups_policy
    assert json.loads(answer.info["config"])["default_runtime"] == "atoll"
    assert not call(cri.runtime, "Status").info


def runtime_config(cri: CRI) -> None:
    assert call(cri.runtime, "RuntimeConfig").linux.cgroup_driver == pb.CGROUPFS


def update_runtime_config(cri: CRI) -> None:
    network = pb.NetworkConfig(pod_cidr="198.19.255.0/24")
    call(cri.runtime, "UpdateRuntimeConfig", runtime_config=pb.RuntimeConfig(network_config=network))
    assert call(cri.runtime, "Status").status.conditions[1].status


# --- pods ---


def run_pod(cri: CRI) -> None:
    config = cri.pod_config(hostname="seven")
    pod = call(cri.runtime, "RunPodSandbox", config=config, runtime_handler="atoll").pod_sandbox_id
    assert cri.sh(cri.run(pod, "sleep", "1000"), "hostname") == "seven"
    assert cri.run_pod(config, "atoll") == pod, "who asks again gets the same pod"


def stop_pod(cri: CRI) -> None:
    pod = made(cri)
    for _ in range(2):
        call(cri.runtime, "StopPodSandbox", pod_sandbox_id=pod.id)
    assert cri.pod_status(pod.id).state == pb.SANDBOX_NOTREADY
    assert cri.status(pod.container).state == pb.CONTAINER_EXITED


def remove_pod(cri: CRI) -> None:
    pod = made(cri)
    for _ in range(2):
        call(cri.runtime, "RemovePodSandbox", pod_sandbox_id=pod.id)
    assert (cri.list_pods(), cri.list()) == ([], [])


def pod_status(cri: CRI) -> None:
    pod = made(cri, network=True)
    answer = call(cri.runtime, "PodSandboxStatus", pod_sandbox_id=pod.id, verbose=True)
    found = answer.status
    assert (found.id, found.state, found.runtime_handler) == (pod.id, pb.SANDBOX_READY, "atoll")
    assert (dict(found.labels), found.annotations["note"], found.metadata.namespace) == ({"app": "web"}, "1", "tests")
    assert found.network.ip in cri.sh(pod.container, "ip addr show eth0")
    assert [one.id for one in answer.containers_statuses] == [pod.container]
    assert Path(f"/proc/{json.loads(answer.info['info'])['pid']}").is_dir()
    with refused(grpc.StatusCode.NOT_FOUND, "nobody"):
        call(cri.runtime, "PodSandboxStatus", pod_sandbox_id="nobody")


def list_pods(cri: CRI) -> None:
    pod = made(cri)
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    for wanted, ids in (
        (pb.PodSandboxFilter(), [pod.id]),
        (pb.PodSandboxFilter(id=pod.id[:12], state=ready, label_selector={"app": "web"}), [pod.id]),
        (pb.PodSandboxFilter(label_selector={"app": "db"}), []),
        (pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)), []),
    ):
        assert [one.id for one in call(cri.runtime, "ListPodSandbox", filter=wanted).items] == ids
        answers = streamed(cri.runtime, "StreamPodSandboxes", filter=wanted)
        assert [one.id for answer in answers for one in answer.pod_sandboxes] == ids


def update_pod(cri: CRI) -> None:
    pod = made(cri)
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=300 * MIB)
    call(cri.runtime, "UpdatePodSandboxResources", pod_sandbox_id=pod.id, resources=limits)
    assert cri.pod_status(pod.id).state == pb.SANDBOX_READY


# --- containers ---


def create(cri: CRI) -> None:
    pod = cri.run_pod()
    config = cri.container_config("sleep", "1000", env={"A": "b"})
    answer = call(cri.runtime, "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=cri.pod_config())
    assert cri.status(answer.container_id).state == pb.CONTAINER_CREATED
    call(cri.runtime, "StartContainer", container_id=answer.container_id)
    assert cri.status(answer.container_id).state == pb.CONTAINER_RUNNING
    assert cri.sh(answer.container_id, "echo $A") == "b"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "it is running"):
        call(cri.runtime, "StartContainer", container_id=answer.container_id)


def stop(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done")
    eventually(lambda: b"up" in cri.log(container), "the trap is set")
    for _ in range(2):
        call(cri.runtime, "StopContainer", container_id=container, timeout=20)
    assert cri.status(container).exit_code == 6


def remove(cri: CRI) -> None:
    pod = made(cri)
    for _ in range(2):
        call(cri.runtime, "RemoveContainer", container_id=pod.container)
    assert cri.list() == []


def container_status(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "exit 3", labels={"a": "b"})
    cri.wait(container)
    answer = call(cri.runtime, "ContainerStatus", container_id=container, verbose=True)
    found = answer.status
    assert (found.state, found.exit_code, found.reason) == (pb.CONTAINER_EXITED, 3, "Error")
    assert 0 < found.created_at <= found.started_at <= found.finished_at <= time.time_ns()
    assert dict(found.labels) == {"a": "b"}
    assert Path(found.log_path).is_relative_to(cri.log_folder)
    assert call(cri.images, "ImageStatus", image=pb.ImageSpec(image=BUSYBOX)).image.id == found.image_id
    assert json.loads(answer.info["info"])["runtimeSpec"]["process"]["args"] == ["/bin/sh", "-c", "exit 3"]


def list_containers(cri: CRI) -> None:
    pod = made(cri)
    running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    for wanted, ids in (
        (pb.ContainerFilter(), [pod.container]),
        (pb.ContainerFilter(id=pod.container[:12], pod_sandbox_id=pod.id[:12], state=running), [pod.container]),
        (pb.ContainerFilter(label_selector={"tier": "back"}), []),
        (pb.ContainerFilter(pod_sandbox_id="nobody"), []),
    ):
        assert [one.id for one in call(cri.runtime, "ListContainers", filter=wanted).containers] == ids
        answers = streamed(cri.runtime, "StreamContainers", filter=wanted)
        assert [one.id for answer in answers for one in answer.containers] == ids


def update(cri: CRI) -> None:
    pod = made(cri)
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_shares=77)
    call(cri.runtime, "UpdateContainerResources", container_id=pod.container, linux=limits)
    told = cri.status(pod.container).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (64 * MIB, 77)


def reopen_log(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
    log = Path(cri.status(container).log_path)
    eventually(lambda: b" 2\n" in cri.log(container), "it writes")
    log.rename(log.with_suffix(".old"))
    call(cri.runtime, "ReopenContainerLog", container_id=container)
    eventually(lambda: log.is_file() and log.stat().st_size > 0, "it writes to another file")
    lines = [*log.with_suffix(".old").read_bytes().splitlines(), *log.read_bytes().splitlines()]
    numbers = [int(line.rsplit(b" ", 1)[1]) for line in lines]
    assert numbers == list(range(len(numbers))), "no line is lost, none comes twice"


def exec_sync(cri: CRI) -> None:
    pod = made(cri)
    command = ["sh", "-c", "echo out; echo err >&2; exit 5"]
    answer = call(cri.runtime, "ExecSync", container_id=pod.container, cmd=command, timeout=10)
    assert (answer.exit_code, answer.stdout, answer.stderr) == (5, b"out\n", b"err\n")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "1s"):
        call(cri.runtime, "ExecSync", container_id=pod.container, cmd=["sleep", "50"], timeout=1)
    assert cri.sh(pod.container, "pidof sleep | wc -w") == "1", "what ran out of time is gone, and nothing else"


def exec_(cri: CRI) -> None:
    pod = made(cri)
    asked = {"container_id": pod.container, "stdin": True, "stdout": True, "stderr": True}
    url = call(cri.runtime, "Exec", cmd=["sh", "-c", "cat; echo end >&2; exit 4"], **asked).url
    with SpdyCommand(url, COMMAND_PROTOCOL, stdin=True) as command:
        command.stdin(b"through", fin=True)
        command.wait()
        assert (command.text("stdout"), command.text("stderr")) == (b"through", b"end\n")
        assert b'"4"' in command.text("error")


def attach(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "while read line; do echo got $line; done", stdin=True)
    url = call(cri.runtime, "Attach", container_id=container, stdin=True, stdout=True, stderr=True).url
    with SpdyCommand(url, COMMAND_PROTOCOL, stdin=True) as command:
        command.stdin(b"one\n")
        command.until("stdout", b"got one\n")


def port_forward(cri: CRI) -> None:
    pod = made(cri)
    serving = cri.script(pod.id, "mkdir /w; echo hello >/w/index.html; exec httpd -f -p 80 -h /w")
    eventually(lambda: ":80 " in cri.sh(serving, "netstat -lnt").replace("\t", " "), "the server listens")
    url = call(cri.runtime, "PortForward", pod_sandbox_id=pod.id, port=[80]).url
    with Spdy(url, "portforward.k8s.io") as session:
        session.open(streamtype="error", port="80", requestid="0")
        data = session.open(streamtype="data", port="80", requestid="0")
        session.send(data, b"GET / HTTP/1.0\r\n\r\n")
        session.until(lambda: data in session.ended)
        assert session.data[data].endswith(b"hello\n")


def checkpoint(cri: CRI) -> None:
    """The default OCI runtime here may be one that makes none: then that is told, and the container goes on."""
    pod = made(cri)
    target = cri.roots.base / "checkpoint.tar"
    request = pb.CheckpointContainerRequest(container_id=pod.container, location=str(target), timeout=20)
    asked = cri.runtime.future("CheckpointContainer", request, pb.CheckpointContainerResponse)
    assert asked.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION)
    assert target.exists() == (asked.code() is grpc.StatusCode.OK)
    assert cri.status(pod.container).state == pb.CONTAINER_RUNNING


# --- events, statistics ---


def events(cri: CRI) -> None:
    stream = cri.runtime.stream("GetContainerEvents", pb.GetEventsRequest())
    stream.initial_metadata()
    pod = made(cri)
    found = [next(stream) for _ in range(4)]
    kinds = [(one.container_event_type, one.container_id) for one in found]
    created, started = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
    assert kinds == [(created, pod.id), (started, pod.id), (created, pod.container), (started, pod.container)]
    assert {one.pod_sandbox_status.id for one in found} == {pod.id}
    stream.cancel()


def container_stats(cri: CRI) -> None:
    pod = made(cri)
    stats = call(cri.runtime, "ContainerStats", container_id=pod.container).stats
    assert stats.attributes.id == pod.container
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.memory.working_set_bytes.value > 0
    assert stats.writable_layer.fs_id.mountpoint
    for wanted, ids in ((pb.ContainerStatsFilter(), [pod.container]), (pb.ContainerStatsFilter(id="nobody"), [])):
        answer = call(cri.runtime, "ListContainerStats", filter=wanted)
        assert [one.attributes.id for one in answer.stats] == ids
        answers = streamed(cri.runtime, "StreamContainerStats", filter=wanted)
        assert [one.attributes.id for one in answers for one in one.container_stats] == ids


def pod_stats(cri: CRI) -> None:
    pod = made(cri, network=True)
    linux = call(cri.runtime, "PodSandboxStats", pod_sandbox_id=pod.id).stats.linux
    assert linux.memory.working_set_bytes.value > 0
    assert linux.network.default_interface.name == "eth0"
    assert [one.attributes.id for one in linux.containers] == [pod.container]
    other = pb.PodSandboxStatsFilter(label_selector={"app": "db"})
    for wanted, ids in ((pb.PodSandboxStatsFilter(), [pod.id]), (other, [])):
        answer = call(cri.runtime, "ListPodSandboxStats", filter=wanted)
        assert [one.attributes.id for one in answer.stats] == ids
        answers = streamed(cri.runtime, "StreamPodSandboxStats", filter=wanted)
        assert [one.attributes.id for one in answers for one in one.pod_sandbox_stats] == ids


def metrics(cri: CRI) -> None:
    pod = made(cri)
    described = {one.name: one for one in call(cri.runtime, "ListMetricDescriptors").descriptors}
    assert all(one.help and one.label_keys for one in described.values())
    (found,) = call(cri.runtime, "ListPodSandboxMetrics").pod_metrics
    assert found.pod_sandbox_id == pod.id
    (container,) = found.container_metrics
    for metric in (*found.metrics, *container.metrics):
        assert len(metric.label_values) == len(described[metric.name].label_keys), metric.name
    answers = streamed(cri.runtime, "StreamPodSandboxMetrics")
    assert [one.pod_sandbox_id for one in answers for one in one.pod_sandbox_metrics] == [pod.id]


# --- images ---


def images(cri: CRI) -> None:
    every = call(cri.images, "ListImages").images
    assert "docker.io/atoll/busybox:latest" in [tag for one in every for tag in one.repo_tags]
    one = next(one for one in every if "docker.io/atoll/busybox:latest" in one.repo_tags)
    hex_digits = one.id.removeprefix("sha256:")
    for name in (BUSYBOX, one.id, hex_digits, hex_digits[:12], one.repo_digests[0], "docker.io/atoll/busybox"):
        wanted = pb.ImageFilter(image=pb.ImageSpec(image=name))
        assert [found.id for found in call(cri.images, "ListImages", filter=wanted).images] == [one.id], name
        answers = streamed(cri.images, "StreamImages", filter=wanted)
        assert [found.id for answer in answers for found in answer.images] == [one.id], name
        assert call(cri.images, "ImageStatus", image=pb.ImageSpec(image=name)).image == one, name
    nothing = pb.ImageFilter(image=pb.ImageSpec(image="not/here"))
    assert not call(cri.images, "ListImages", filter=nothing).images
    assert one.size > 0
    assert [found.pinned for found in every if "docker.io/atoll/pause:latest" in found.repo_tags] == [True]


def image_status(cri: CRI) -> None:
    answer = call(cri.images, "ImageStatus", image=pb.ImageSpec(image=BUSYBOX), verbose=True)
    info = json.loads(answer.info["info"])
    assert info["imageSpec"]["rootfs"]["diff_ids"]
    assert info["imageSpec"]["os"] == "linux"
    assert info["chainID"].startswith("sha256:")
    assert not call(cri.images, "ImageStatus", image=pb.ImageSpec(image="not/here")).HasField("image")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image"):
        call(cri.images, "ImageStatus")


def pull(cri: CRI) -> None:
    files = image([layer(member("a", os.urandom(1 << 20)))])
    write_layout(cri.roots.base / "layout", (files, ""))
    with running_registry(cri.roots.base / "registry", auth=True) as registry:
        name = registry.push(f"oci:{cri.roots.base}/layout", "team/app:v1")
        before = fs_used(cri)
        with configured(cri, f'[images.registries."{registry.address}"]\nplain_http = true'):
            with refused(grpc.StatusCode.UNAUTHENTICATED, "wants credentials"):
                call(cri.images, "PullImage", image=pb.ImageSpec(image=name))
            elsewhere = pb.AuthConfig(username="ada", password="a pass:word", server_address="https://example.com/v1/")
            with refused(grpc.StatusCode.UNAUTHENTICATED, "wants credentials"):
                call(cri.images, "PullImage", image=pb.ImageSpec(image=name), auth=elsewhere)
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "nobody", "atoll"):
                call(cri.images, "PullImage", image=pb.ImageSpec(image=name, runtime_handler="nobody"))
            auth = pb.AuthConfig(username="ada", password="a pass:word", server_address=registry.address)
            request = pb.PullImageRequest(image=pb.ImageSpec(image=name, runtime_handler="atoll"), auth=auth)
            pulls = [cri.images.future("PullImage", request, pb.PullImageResponse) for _ in range(5)]
            assert {one.result().image_ref for one in pulls} == {files.id}
        log = (registry.folder / "registry.log").read_text()
        assert log.count(f'"GET /v2/team/app/blobs/{image_layer(files)} HTTP/1.1" 200') == 1, "five pulls are one"
        assert fs_used(cri) > before + (1 << 20)
        call(cri.images, "RemoveImage", image=pb.ImageSpec(image=name))
        assert fs_used(cri) < before + (1 << 20)


def image_layer(files: Any) -> str:
    return json.loads(files.manifest)["layers"][0]["digest"]


def fs_used(cri: CRI) -> int:
    return call(cri.images, "ImageFsInfo").image_filesystems[0].used_bytes.value


@contextmanager
def configured(cri: CRI, text: str) -> Iterator[None]:
    """The daemon's file with more at its end, in force inside the block."""
    before = cri.roots.config.read_text()
    try:
        for now in (f"{before}\n{text}\n", before):
            cri.roots.config.write_text(now)
            cri.own.call("Reload", own.ReloadRequest(), own.ReloadResponse)
            if now != before:
                yield
    finally:
        cri.roots.config.write_text(before)


def remove_image(cri: CRI) -> None:
    files = image([layer(member("r", b"r"))])
    write_layout(cri.roots.base / "removed", (files, ""))
    imported(cri, cri.roots.base / "removed", "example.com/one:1")
    imported(cri, cri.roots.base / "removed", "example.com/two:2")
    spec = pb.ImageSpec(image="example.com/one:1")
    assert set(call(cri.images, "ImageStatus", image=spec).image.repo_tags) == {
        "example.com/one:1",
        "example.com/two:2",
    }
    for _ in range(2):
        call(cri.images, "RemoveImage", image=spec)
    assert not call(cri.images, "ImageStatus", image=pb.ImageSpec(image=files.id)).HasField("image")


def imported(cri: CRI, path: Path, name: str) -> None:
    cri.own.call("Import", own.ImportRequest(path=str(path), reference=name), own.ImportResponse)


def image_fs(cri: CRI) -> None:
    pod = made(cri)
    before = call(cri.images, "ImageFsInfo")
    cri.sh(
        pod.container, "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; sync; for i in 1 2 3; do echo >/f$i; done"
    )
    (layer_then,) = before.container_filesystems

    def counted() -> bool:
        (layer,) = call(cri.images, "ImageFsInfo").container_filesystems
        return layer.used_bytes.value >= layer_then.used_bytes.value + 3 * MIB

    eventually(counted, "the writable layer is counted again")
    after = call(cri.images, "ImageFsInfo")
    (images_then,), (images_now,) = before.image_filesystems, after.image_filesystems
    (layers_now,) = after.container_filesystems
    assert images_now.used_bytes.value == images_then.used_bytes.value > 0
    assert images_now.inodes_used.value == images_then.inodes_used.value > 0
    assert layers_now.inodes_used.value >= layer_then.inodes_used.value + 4
    assert Path(layers_now.fs_id.mountpoint).is_dir()
    assert abs(time.time_ns() - layers_now.timestamp) < 60e9


CHECKS: dict[str, Callable[[CRI], None]] = {
    "Version": version,
    "Status": status,
    "RuntimeConfig": runtime_config,
    "UpdateRuntimeConfig": update_runtime_config,
    "RunPodSandbox": run_pod,
    "StopPodSandbox": stop_pod,
    "RemovePodSandbox": remove_pod,
    "PodSandboxStatus": pod_status,
    "ListPodSandbox": list_pods,
    "StreamPodSandboxes": list_pods,
    "UpdatePodSandboxResources": update_pod,
    "CreateContainer": create,
    "StartContainer": create,
    "StopContainer": stop,
    "RemoveContainer": remove,
    "ContainerStatus": container_status,
    "ListContainers": list_containers,
    "StreamContainers": list_containers,
    "UpdateContainerResources": update,
    "ReopenContainerLog": reopen_log,
    "ExecSync": exec_sync,
    "Exec": exec_,
    "Attach": attach,
    "PortForward": port_forward,
    "CheckpointContainer": checkpoint,
    "GetContainerEvents": events,
    "ContainerStats": container_stats,
    "ListContainerStats": container_stats,
    "StreamContainerStats": container_stats,
    "PodSandboxStats": pod_stats,
    "ListPodSandboxStats": pod_stats,
    "StreamPodSandboxStats": pod_stats,
    "ListMetricDescriptors": metrics,
    "ListPodSandboxMetrics": metrics,
    "StreamPodSandboxMetrics": metrics,
    "ListImages": images,
    "StreamImages": images,
    "ImageStatus": image_status,
    "PullImage": pull,
    "RemoveImage": remove_image,
    "ImageFsInfo": image_fs,
}
"""The check of each RPC; one check may be of several."""


def by_check() -> Iterator[Any]:
    """Each check once, with the RPCs that it is of."""
    for check in dict.fromkeys(CHECKS.values()):
        names = [name for name, one in CHECKS.items() if one is check]
        yield pytest.param(check, names, id="+".join(names))


@pytest.mark.parametrize(("check", "names"), [*by_check()])
def test_call(check: Callable[[CRI], None], names: list[str], client: CRI, called: set[str]) -> None:
    check(client)
    assert set(names) <= called


def test_every_rpc_of_the_descriptor_has_a_check() -> None:
    assert {method.name for method in METHODS} == set(CHECKS)
