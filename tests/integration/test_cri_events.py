"""GetContainerEvents: whole for who reads, a clear end for who does not, and ends by lack of memory among them."""

from __future__ import annotations

import os
import signal
from typing import Any

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, in_parallel, refused

pytestmark = pytest.mark.shared_daemon

CREATED, STARTED, STOPPED, DELETED = range(4)
MIB = 1 << 20


def open_events(cri: CRI, *, timeout: float | None = 40.0) -> Any:
    """A stream of events; whatever happens from now on is in it."""
    stream = cri.runtime.stream("GetContainerEvents", pb.GetEventsRequest(), timeout=timeout)
    stream.initial_metadata()
    return stream


def take(stream: Any, count: int) -> list[pb.ContainerEventResponse]:
    return [next(stream) for _ in range(count)]


def test_a_pod_and_its_container_are_told_from_beginning_to_end(cri: CRI) -> None:
    events = open_events(cri)
    pod = cri.run_pod(cri.pod_config(labels={"a": "1"}))
    container = cri.run(pod, "/bin/sh", "-c", "exit 3")
    cri.wait(container)
    cri.remove_pod(pod)
    found = take(events, 8)
    assert [(one.container_id == pod, one.container_event_type) for one in found] == [
        (True, CREATED),
        (True, STARTED),
        (False, CREATED),
        (False, STARTED),
        (False, STOPPED),
        (True, STOPPED),
        (False, DELETED),
        (True, DELETED),
    ]
    assert {one.container_id for one in found} == {pod, container}
    times = [one.created_at for one in found]
    assert times == sorted(times)
    for one in found:
        status = one.pod_sandbox_status
        assert (status.id, status.metadata.uid, dict(status.labels)) == (pod, status.metadata.name, {"a": "1"})
    ready = [one.pod_sandbox_status.state == pb.SANDBOX_READY for one in found]
    assert ready == [True] * 5 + [False] * 3
    states = [[status.state for status in one.containers_statuses] for one in found]
    exited = [pb.CONTAINER_EXITED]
    assert states[:2] == [[], []]
    assert states[2:4] == [[pb.CONTAINER_CREATED], [pb.CONTAINER_RUNNING]]
    assert states[4:] == [exited, exited, [], []]
    assert found[4].containers_statuses[0].exit_code == 3
    events.cancel()


def test_every_reader_has_every_event(cri: CRI) -> None:
    streams = [open_events(cri) for _ in range(12)]
    pod = cri.run_pod()
    in_parallel([lambda: cri.create(pod, cri.container_config("/bin/true"))] * 20)
    cri.remove_pod(pod)
    wanted = 2 + 20 + 1 + 20 + 1
    found = [[one.SerializeToString() for one in take(stream, wanted)] for stream in streams]
    assert found == [found[0]] * 12
    for stream in streams:
        stream.cancel()


def test_a_reader_that_is_late_is_told_and_others_are_not_disturbed(cri: CRI) -> None:
    late, prompt = open_events(cri), open_events(cri)
    pod = cri.run_pod(cri.pod_config(annotations={"large": "x" * (1 << 19)}))
    kinds = [one.container_event_type for one in take(prompt, 2)]
    for _ in range(20):
        cri.remove(cri.create(pod, cri.container_config("/bin/true")))
        kinds += [one.container_event_type for one in take(prompt, 2)]
    cri.remove_pod(pod)
    kinds += [one.container_event_type for one in take(prompt, 2)]
    assert kinds == [CREATED, STARTED, *[CREATED, DELETED] * 20, STOPPED, DELETED]
    found: list[int] = []
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "late", "subscribe again"):
        found.extend(one.container_event_type for one in late)
    assert found
    assert len(found) < len(kinds)
    assert found == kinds[: len(found)]
    again = open_events(cri)
    other = cri.run_pod()
    assert next(again).container_id == other
    for stream in (prompt, again):
        stream.cancel()


def test_an_end_by_lack_of_memory_is_told(cri: CRI) -> None:
    pod = cri.run_pod()
    events = open_events(cri)
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=16 * MIB, memory_swap_limit_in_bytes=16 * MIB)
    eats = "x=$(head -c 64000000 /dev/zero | tr '\\0' x)"
    container = cri.create(
        pod, cri.container_config("/bin/sh", "-c", eats, linux=pb.LinuxContainerConfig(resources=limits))
    )
    cri.start(container)
    found = take(events, 3)
    assert [one.container_event_type for one in found] == [CREATED, STARTED, STOPPED]
    status = found[2].containers_statuses[0]
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 137, "OOMKilled")
    assert (cri.status(container).reason, cri.status(container).exit_code) == ("OOMKilled", 137)
    events.cancel()


def test_the_end_of_a_pod_that_nobody_stopped_is_told(cri: CRI) -> None:
    pod = cri.run_pod()
    events = open_events(cri)
    info = cri.pod_info(pod)
    assert isinstance(info["pid"], int)
    os.kill(info["pid"], signal.SIGKILL)
    found = next(events)
    assert (found.container_id, found.container_event_type) == (pod, STOPPED)
    assert found.pod_sandbox_status.state == pb.SANDBOX_NOTREADY
    events.cancel()
