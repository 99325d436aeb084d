"""The Task client: what shims answer, in our words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from atoll import errors
from atoll.api import containerd_task_types_pb2 as types
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import Shim
from atoll.runtime.task import TaskStatus
from atoll.sandbox.wire import from_timestamp
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext, methods_of

YEAR_ONE = Timestamp(seconds=-62135596800)


class TaskService:
    """Answers one state, whatever the task; method names are the protocol's."""

    def __init__(self) -> None:
        self.answer = pb.StateResponse()
        self.namespaces: list[str | None] = []

    async def State(self, request: pb.StateRequest, context: CallContext) -> pb.StateResponse:  # noqa: N802
        self.namespaces.append(context.namespace)
        return self.answer

    async def Connect(self, request: pb.ConnectRequest, context: CallContext) -> pb.ConnectResponse:  # noqa: N802
        return pb.ConnectResponse(shim_pid=7, task_pid=0, version="old")


@pytest.fixture
def service() -> TaskService:
    return TaskService()


@pytest.fixture(params=[2, 3])
async def shim(request: pytest.FixtureRequest, service: TaskService, tmp_path: Path) -> AsyncIterator[Shim]:
    """A shim that serves one version of the Task service only, connected to as version 3."""
    async with Server() as server:
        methods = methods_of(pb.DESCRIPTOR.services_by_name["Task"], service)
        server.register(f"containerd.task.v{request.param}.Task", methods)
        await server.serve(tmp_path / "sock")
        bootstrap = Bootstrap(version=3, address=f"unix://{tmp_path}/sock")
        shim = await Shim.connect(id="one", namespace="test", bootstrap=bootstrap)
        assert await shim.check_version() == 7
        assert shim.bootstrap.version == request.param
        yield shim
        await shim.aclose()


async def test_calls_carry_the_namespace(shim: Shim, service: TaskService) -> None:
    await shim.tasks.state("one")
    assert service.namespaces == ["test"]


async def test_a_task_that_runs_has_no_exit_time(shim: Shim, service: TaskService) -> None:
    service.answer = pb.StateResponse(pid=7, status=types.RUNNING, exited_at=YEAR_ONE)
    state = await shim.tasks.state("one")
    assert (state.pid, state.status, state.exited_at) == (7, TaskStatus.RUNNING, None)


async def test_a_task_that_ended_has_its_exit(shim: Shim, service: TaskService) -> None:
    service.answer = pb.StateResponse(status=types.STOPPED, exit_status=137, exited_at=Timestamp(seconds=60))
    state = await shim.tasks.state("one")
    assert (state.status, state.exit_status) == (TaskStatus.STOPPED, 137)
    assert state.exited_at == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)


async def test_a_status_of_the_future_is_unknown(shim: Shim, service: TaskService) -> None:
    service.answer.ParseFromString(b"\x20\x63")  # field 4, the status: 99
    assert (await shim.tasks.state("one")).status is TaskStatus.UNKNOWN


async def test_a_connection_that_ends_is_unavailable(shim: Shim) -> None:
    shim.client.close()
    with pytest.raises(errors.Unavailable):
        await shim.tasks.state("one")


def test_a_time_that_is_none_is_told() -> None:
    with pytest.raises(errors.Unknown):
        from_timestamp(Timestamp(seconds=10**15))


async def test_a_shim_of_another_protocol_is_refused() -> None:
    with pytest.raises(errors.Unimplemented, match="grpc"):
        await Shim.connect(id="one", namespace="test", bootstrap=Bootstrap(version=3, address="/x", protocol="grpc"))


async def test_a_shim_that_does_not_listen_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable):
        await Shim.connect(id="one", namespace="test", bootstrap=Bootstrap(address=f"unix://{tmp_path}/none"))
