"""Checkpoints of a real containerd are read here, and those written here are read by it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.status import State, Status, decode_status, encode_status
from bench import places
from bench.cri import IMAGE
from bench.daemons import Containerd
from tests.integration.cri_client import eventually

MESSAGE = "of another's: \udcff<x>"
"""With a byte that is no UTF-8, and what Go's encoder escapes."""
MEMORY_BYTES = 64 << 20


def pod_of(containerd: Containerd) -> tuple[str, pb.PodSandboxConfig]:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="pod", uid="uid", namespace="tests"))
    config.linux.security_context.namespace_options.network = pb.NODE
    request = pb.RunPodSandboxRequest(config=config)
    return containerd.cri.call("RunPodSandbox", request, pb.RunPodSandboxResponse).pod_sandbox_id, config


def started(containerd: Containerd, pod: str, pod_config: pb.PodSandboxConfig, name: str, script: str) -> str:
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name=name), command=("/bin/sh", "-c", script))
    config.image.image = IMAGE
    config.linux.resources.memory_limit_in_bytes = MEMORY_BYTES
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=pod_config)
    container = containerd.cri.call("CreateContainer", request, pb.CreateContainerResponse).container_id
    containerd.cri.start(container)
    return container


def read(path: Path) -> Status:
    """What containerd wrote, after a look that the same is written here, in the same order."""
    text = path.read_bytes()
    status = decode_status(text)
    theirs, ours = json.loads(text), json.loads(encode_status(status))
    assert {name: ours[name] for name in theirs} == theirs
    assert [name for name in ours if name in theirs] == list(theirs)
    assert path.stat().st_mode & 0o777 == 0o600
    return status


@pytest.mark.slow
def test_a_checkpoint_goes_to_containerd_and_back() -> None:
    with places.prefix() as prefix, Containerd(places.Places(prefix=prefix, name="containerd", number=1)) as containerd:
        cri = containerd.cri
        pod, config = pod_of(containerd)
        ended = started(containerd, pod, config, "ended", "exit 3")
        running = started(containerd, pod, config, "running", "sleep 1000")
        eventually(lambda: cri.container_status(ended).state == pb.CONTAINER_EXITED, "it has ended", within=60)
        folder = containerd.places.root / "io.containerd.grpc.v1.cri" / "containers"
        now = read(folder / running / "status")
        assert (now.state, now.pid > 1, now.finished_at) == (State.RUNNING, True, 0)
        assert now.resources is not None
        assert now.resources.linux is not None
        assert now.resources.linux.memory_limit_in_bytes == MEMORY_BYTES
        end = read(folder / ended / "status")
        assert (end.state, end.exit_code, end.pid) == (State.EXITED, 3, 0)

        containerd.crash()
        changed = dataclasses.replace(
            end, exit_code=42, reason="Told", message=MESSAGE, finished_at=end.finished_at + 5
        )
        (folder / ended / "status").write_bytes(encode_status(changed))
        (folder / running / "status").write_bytes(encode_status(now))
        containerd.start()
        told = cri.container_status(ended)
        assert (told.state, told.exit_code, told.reason) == (pb.CONTAINER_EXITED, 42, "Told")
        assert told.message.startswith("of another's: \ufffd")
        assert told.message.endswith("<x>")
        assert told.finished_at == end.finished_at + 5
        assert cri.container_status(running).state == pb.CONTAINER_RUNNING
        assert cri.container_status(running).started_at == now.started_at
