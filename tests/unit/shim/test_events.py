"""Task events on their way to a daemon, over a socket in a test's folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_events_pb2 as types
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.shim import events
from atoll.shim.events import Forwarder
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext


class Daemon:
    """Takes events; refuses the first ones as told."""

    def __init__(self, *refusals: errors.AtollError) -> None:
        self.refusals = list(refusals)
        self.taken: list[int] = []

    async def Forward(self, request: pb.ForwardRequest, context: CallContext) -> Empty:  # noqa: N802
        if self.refusals:
            raise self.refusals.pop(0)
        assert request.envelope.topic == "/tasks/start"
        assert request.envelope.namespace == "n"
        assert request.envelope.timestamp.seconds > 0
        assert request.envelope.event.type_url == "containerd.events.TaskStart"
        self.taken.append(types.TaskStart.FromString(request.envelope.event.value).pid)
        return Empty()


def served(daemon: Daemon) -> Server:
    server = Server()
    server.add_service(pb.DESCRIPTOR.services_by_name["Events"], daemon)
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_STEP_S", 0.01)


async def test_events_keep_their_order(tmp_path: Path, impatient: None) -> None:
    daemon = Daemon(errors.Internal("not now"), errors.Unknown("nor now"))
    async with TaskOwner("t") as tasks, served(daemon) as server:
        await server.serve(tmp_path / "s")
        forwarder = Forwarder(tasks)
        forwarder.open(f"unix://{tmp_path}/s", "n")
        for pid in range(50):
            forwarder.publish("/tasks/start", types.TaskStart(container_id="c", pid=pid))
        await forwarder.flush(within=10)
        await forwarder.aclose()
    assert daemon.taken == list(range(50))
    assert forwarder.dropped == 0


async def test_a_daemon_that_restarts_gets_the_next_event(tmp_path: Path, impatient: None) -> None:
    async with TaskOwner("t") as tasks:
        forwarder = Forwarder(tasks)
        forwarder.open(f"unix://{tmp_path}/s", "n")
        for pid in (1, 2):
            daemon = Daemon()
            async with served(daemon) as server:
                await server.serve(tmp_path / "s")
                forwarder.publish("/tasks/start", types.TaskStart(pid=pid))
                await forwarder.flush(within=10)
            assert daemon.taken == [pid]
        await forwarder.aclose()


async def test_a_daemon_that_is_gone_costs_the_event_and_nothing_else(tmp_path: Path, impatient: None) -> None:
    async with TaskOwner("t") as tasks:
        forwarder = Forwarder(tasks)
        forwarder.open(f"unix://{tmp_path}/none", "n")
        forwarder.publish("/tasks/start", types.TaskStart(pid=1))
        await forwarder.flush(within=10)
    assert forwarder.dropped == 1


async def test_a_refused_event_is_not_repeated(tmp_path: Path, impatient: None) -> None:
    daemon = Daemon(errors.InvalidArgument("bad topic"))
    async with TaskOwner("t") as tasks, served(daemon) as server:
        await server.serve(tmp_path / "s")
        forwarder = Forwarder(tasks)
        forwarder.open(f"unix://{tmp_path}/s", "n")
        forwarder.publish("/tasks/start", types.TaskStart(pid=1))
        forwarder.publish("/tasks/start", types.TaskStart(pid=2))
        await forwarder.flush(within=10)
        await forwarder.aclose()
    assert daemon.taken == [2]


async def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_LIMIT", 3)
    async with TaskOwner("t") as tasks:
        forwarder = Forwarder(tasks)
        forwarder.open(f"unix://{tmp_path}/none", "n")
        for pid in range(5):
            forwarder.publish("/tasks/start", types.TaskStart(pid=pid))
        assert forwarder.dropped == 2


async def test_without_an_address_nothing_is_queued() -> None:
    async with TaskOwner("t") as tasks:
        forwarder = Forwarder(tasks)
        forwarder.publish("/tasks/start", types.TaskStart())
        await asyncio.sleep(0)
        assert len(tasks) == 0
