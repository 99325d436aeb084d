"""What CRI clients read of pods and containers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.concurrency import Blocking
from atoll.config import RuntimeHandler
from atoll.container.config import ContainerConfig, ContainerMetadata, ImageSpec
from atoll.container.metadata import Metadata
from atoll.container.status import Status
from atoll.container.storage import store_status
from atoll.container.store import Container, ContainerRecord
from atoll.cri import views
from atoll.engine.pod import Pod
from atoll.oci import spec as oci
from atoll.sandbox.config import PodConfig, PodMetadata
from atoll.sandbox.controller import Runtime, Sandbox, State


def pod(state: State) -> Pod:
    created = datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)
    return Pod(
        sandbox=Sandbox(id="ab" * 32, sandboxer="shim", runtime=Runtime(name="x"), created_at=created),
        config=PodConfig(metadata=PodMetadata(name="web", uid="u"), labels={"a": "1"}, annotations={"b": "2"}),
        name="web__u_0",
        handler_name="atoll",
        handler=RuntimeHandler(),
        state=state,
    )


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (State.READY, pb.SANDBOX_READY),
        (State.NOTREADY, pb.SANDBOX_NOTREADY),
        (State.UNKNOWN, pb.SANDBOX_NOTREADY),
    ],
)
def test_an_unknown_pod_is_shown_as_not_ready(state: State, shown: int) -> None:
    status = views.pod_status(pod(state))
    assert status.state == views.pod_item(pod(state)).state == shown
    assert (status.metadata.name, dict(status.labels), dict(status.annotations)) == ("web", {"a": "1"}, {"b": "2"})
    assert status.created_at == 1_767_225_600_123_456_000


async def container(tmp_path: Path, status: Status, *, signal: str = "") -> Container:
    config = ContainerConfig(metadata=ContainerMetadata(name="c"), image=ImageSpec(image="busybox"))
    metadata = Metadata(id="cd" * 32, name="c_1", sandbox_id="ab" * 32, config=config, stop_signal=signal)
    record = ContainerRecord(metadata=metadata, created_at=5, spec=oci.encode(oci.Spec()))
    blocking = Blocking(1)
    (tmp_path / "containers" / metadata.id).mkdir(parents=True)
    try:
        return Container(record, await store_status(tmp_path, metadata.id, status, blocking))
    finally:
        blocking.close()


@pytest.mark.parametrize(
    ("status", "state", "reason", "times"),
    [
        (Status(created_at=5), pb.CONTAINER_CREATED, "", (5, 0, 0)),
        (Status(created_at=5, started_at=6), pb.CONTAINER_RUNNING, "", (5, 6, 0)),
        (Status(created_at=5, started_at=6, finished_at=7), pb.CONTAINER_EXITED, "Completed", (5, 6, 7)),
        (Status(created_at=5, started_at=6, finished_at=7, exit_code=1), pb.CONTAINER_EXITED, "Error", (5, 6, 7)),
        (
            Status(created_at=5, started_at=6, finished_at=7, exit_code=137, reason="OOMKilled"),
            pb.CONTAINER_EXITED,
            "OOMKilled",
            (5, 6, 7),
        ),
    ],
)
async def test_reasons_and_times_follow_the_state(
    tmp_path: Path, status: Status, state: int, reason: str, times: tuple[int, int, int]
) -> None:
    shown = views.container_status(await container(tmp_path, status), lambda _: None)
    assert (shown.state, shown.reason) == (state, reason)
    assert (shown.created_at, shown.started_at, shown.finished_at) == times


@pytest.mark.parametrize(
    ("signal", "shown"), [("", pb.SIGTERM), ("SIGINT", pb.SIGINT), ("SIGRTMIN+3", pb.SIGRTMINPLUS3)]
)
async def test_the_images_stop_signal_is_shown(tmp_path: Path, signal: str, shown: int) -> None:
    made = await container(tmp_path, Status(created_at=5), signal=signal)
    assert views.container_status(made, lambda _: None).stop_signal == shown


def test_a_selector_needs_every_label() -> None:
    assert views.has_labels({"a": "1", "b": "2"}, {"a": "1"})
    assert not views.has_labels({"a": "1"}, {"a": "1", "b": "2"})
    assert views.has_labels({}, {})
