"""The Task service of our shim, on real containers of runc and crun."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.api import containerd_events_pb2 as event_types
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_task_types_pb2 as types_pb2
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.concurrency import TaskOwner, wait_all
from atoll.shim import records
from atoll.shim.records import ExitRecord
from atoll.ttrpc.client import Client
from tests.integration.conftest import Roots
from tests.integration.shim_pods import ShimUnderTest, ShimYard, open_yard

SLEEP = ("/bin/sleep", "600")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  a file tells nobody that it grew
            await asyncio.sleep(0.01)


@pytest.fixture(params=["runc", "crun"])
async def yard(request: pytest.FixtureRequest, roots: Roots) -> AsyncIterator[ShimYard]:
    yard, server = await open_yard(roots.base, roots.state, roots.prefix, request.param)
    async with server:
        try:
            yield yard
        finally:
            await yard.close()


@pytest.fixture
async def shim(yard: ShimYard) -> ShimUnderTest:
    return await yard.shim()


async def test_a_container_lives_its_life(shim: ShimUnderTest) -> None:
    name = shim.make_bundle("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    pid = await shim.create(name)
    assert (await shim.state(name)).status == types_pb2.CREATED
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(shim.wait(name)) for _ in range(20)]
        assert await shim.start(name) == pid
    answers = [waiter.result() for waiter in waiters]
    assert {answer.exit_status for answer in answers} == {3}
    state = await shim.state(name)
    assert (state.status, state.exit_status, state.pid) == (types_pb2.STOPPED, 3, pid)
    record = records.read(shim.bundle_of(name) / records.EXIT, ExitRecord)
    assert record is not None
    assert (record.exit_status, record.pid) == (3, pid)
    assert record.exited_at_ns == answers[0].exited_at.ToNanoseconds()
    deleted = await shim.delete(name)
    assert (deleted.exit_status, deleted.pid, deleted.exited_at) == (3, pid, answers[0].exited_at)
    assert shim.output(name) == "out\nerr\n"
    with pytest.raises(errors.NotFound):
        await shim.state(name)


async def test_version_2_of_the_service_is_the_same(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    answer = await shim.client.call(
        "containerd.task.v2.Task", "Connect", pb.ConnectRequest(id=name), pb.ConnectResponse
    )
    assert answer.shim_pid == shim.forked.pid
    assert answer.task_pid == (await shim.state(name)).pid
    unknown = await shim.call("Connect", pb.ConnectRequest(id="unknown"), pb.ConnectResponse)
    assert unknown.task_pid == 0


async def test_an_exec_lives_its_life(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.exec(name, "e1", "/bin/sh", "-c", "echo inside; exit 4")
    with pytest.raises(errors.AlreadyExists):
        await shim.exec(name, "e1", "/bin/true")
    with pytest.raises(errors.FailedPrecondition):
        await shim.kill(name, 9, "e1")
    assert (await shim.state(name, "e1")).status == types_pb2.CREATED
    pid = await shim.start(name, "e1")
    assert (await shim.wait(name, "e1")).exit_status == 4
    state = await shim.state(name, "e1")
    assert (state.status, state.pid, state.exit_status) == (types_pb2.STOPPED, pid, 4)
    assert (shim.bundle_of(name) / "execs/e1.json").exists()
    assert (await shim.delete(name, "e1")).exit_status == 4
    assert not (shim.bundle_of(name) / "execs/e1.json").exists()
    assert (shim.base / f"{name}.e1.out").read_text() == "inside\n"
    with pytest.raises(errors.NotFound):
        await shim.wait(name, "e1")
    await shim.exec(name, "e1", "/bin/true")
    assert (await shim.delete(name, "e1")).pid == 0


async def test_an_exec_may_be_called_init(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.exec(name, "init", "/bin/sh", "-c", "exit 2")
    await shim.start(name, "init")
    assert (await shim.wait(name, "init")).exit_status == 2
    await shim.delete(name, "init")
    assert (shim.bundle_of(name) / "init.pid").read_text() == str((await shim.state(name)).pid)


async def test_two_deletes_at_once(shim: ShimUnderTest) -> None:
    name = await shim.run("/bin/true")
    await shim.wait(name)
    request = pb.DeleteRequest(id=name)
    async with TaskOwner("test") as tasks:
        calls = [tasks.spawn(shim.call("Delete", request, pb.DeleteResponse), name=f"{n}") for n in range(2)]
        await asyncio.wait(calls)
        faults = [call.exception() for call in calls]
    shim.containers.remove(name)
    assert [type(fault) for fault in faults if fault is not None] == [errors.NotFound]


async def test_many_execs_at_once_each_keep_their_exit_code(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)

    async def one(number: int) -> int:
        exec_id = f"e{number}"
        await shim.exec(name, exec_id, "/bin/sh", "-c", f"exit {number}")
        await shim.start(name, exec_id)
        status = (await shim.wait(name, exec_id)).exit_status
        await shim.delete(name, exec_id)
        return status

    assert await wait_all([one(number) for number in range(12)]) == list(range(12))


async def test_a_command_that_does_not_exist(shim: ShimUnderTest) -> None:
    name = shim.make_bundle("/bin/none")
    with pytest.raises(errors.AtollError, match="none") as caught:
        await shim.create(name)
    assert "\n" not in str(caught.value)
    assert not (shim.bundle_of(name) / records.TASK).exists()
    spec = shim.bundle_of(name) / "config.json"
    spec.write_text(spec.read_text().replace("/bin/none", "/bin/true"))
    await shim.create(name)
    await shim.start(name)
    assert (await shim.wait(name)).exit_status == 0


async def test_an_exec_that_does_not_exist_can_be_deleted(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.exec(name, "bad", "/bin/none")
    with pytest.raises(errors.AtollError, match="none"):
        await shim.start(name, "bad")
    await shim.delete(name, "bad")
    assert (await shim.state(name)).status == types_pb2.RUNNING


async def test_wrong_states_are_refused(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    with pytest.raises(errors.AlreadyExists):
        await shim.create(name)
    with pytest.raises(errors.FailedPrecondition, match="running"):
        await shim.start(name)
    with pytest.raises(errors.FailedPrecondition, match="running"):
        await shim.delete(name)
    with pytest.raises(errors.FailedPrecondition, match="running"):
        await shim.call("Resume", pb.ResumeRequest(id=name), Empty)
    await shim.exec(name, "late", "/bin/true")
    await shim.kill(name)
    assert (await shim.wait(name)).exit_status == 137
    with pytest.raises(errors.NotFound, match="finished"):
        await shim.kill(name)
    with pytest.raises(errors.FailedPrecondition, match="stopped"):
        await shim.start(name, "late")
    with pytest.raises(errors.FailedPrecondition, match="stopped"):
        await shim.exec(name, "later", "/bin/true")


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "-x", "a..b"])
async def test_ids_that_could_name_other_files_are_refused(shim: ShimUnderTest, bad: str) -> None:
    name = await shim.run(*SLEEP)
    with pytest.raises(errors.InvalidArgument):
        await shim.exec(name, bad, "/bin/true")
    with pytest.raises(errors.InvalidArgument):
        await shim.call("Create", pb.CreateTaskRequest(id=bad, bundle="/tmp"), pb.CreateTaskResponse)
    with pytest.raises(errors.InvalidArgument):
        await shim.call("Create", pb.CreateTaskRequest(id="x", bundle="/tmp/../etc"), pb.CreateTaskResponse)


async def test_a_created_container_can_be_deleted(shim: ShimUnderTest) -> None:
    name = shim.make_bundle(*SLEEP)
    pid = await shim.create(name)
    assert (await shim.delete(name)).exit_status == 137
    assert not Path(f"/proc/{pid}").exists()


async def test_pause_holds_and_resume_lets_go(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.call("Pause", pb.PauseRequest(id=name), Empty)
    assert (await shim.state(name)).status == types_pb2.PAUSED
    with pytest.raises(errors.FailedPrecondition, match="paused"):
        await shim.exec(name, "e", "/bin/true")
    await shim.call("Resume", pb.ResumeRequest(id=name), Empty)
    assert (await shim.state(name)).status == types_pb2.RUNNING
    await shim.call("Pause", pb.PauseRequest(id=name), Empty)
    await shim.kill(name)
    assert (await shim.wait(name)).exit_status == 137


async def test_pids_name_the_execs(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.exec(name, "second", *SLEEP)
    pid = await shim.start(name, "second")
    answer = await shim.call("Pids", pb.PidsRequest(id=name), pb.PidsResponse)
    details = {process.pid: process.info for process in answer.processes}
    assert set(details) == {(await shim.state(name)).pid, pid}
    found = runc_pb2.ProcessDetails()
    assert details[pid].Unpack(found) or found.FromString(details[pid].value).exec_id == "second"


async def test_stats_and_update(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP, resources={"memory": {"limit": 64 << 20}})

    async def limit() -> int:
        stats = (await shim.call("Stats", pb.StatsRequest(id=name), pb.StatsResponse)).stats
        if stats.type_url == "io.containerd.cgroups.v1.Metrics":
            metrics = v1_pb2.Metrics.FromString(stats.value)
            assert metrics.pids.current == 1
            assert metrics.cpu.usage.total > 0
            assert metrics.memory.usage.usage > 0
            return metrics.memory.usage.limit
        assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
        return v2_pb2.Metrics.FromString(stats.value).memory.usage_limit

    assert await limit() == 64 << 20
    resources = AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps({"memory": {"limit": 96 << 20}}).encode(),
    )
    await shim.call("Update", pb.UpdateTaskRequest(id=name, resources=resources), Empty)
    assert await limit() == 96 << 20


async def test_a_terminal_has_the_size_it_was_given(shim: ShimUnderTest) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
    name = shim.make_bundle("/bin/sh", "-c", script, terminal=True)
    await shim.create(name, terminal=True)
    await shim.start(name)
    await until(lambda: "ready" in shim.output(name))
    await shim.call("ResizePty", pb.ResizePtyRequest(id=name, width=91, height=37), Empty)
    assert (await shim.wait(name)).exit_status == 0
    await shim.delete(name)
    assert shim.output(name) == "ready\r\n37 91\r\n"


async def test_stdin_reaches_the_process_until_close_io(shim: ShimUnderTest) -> None:
    name = shim.make_bundle("/bin/cat")
    fifo = shim.base / f"{name}.in"
    os.mkfifo(fifo)
    await shim.create(name, stdin=str(fifo))
    await shim.start(name)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"hello\n")
    os.close(writer)
    await until(lambda: shim.output(name) == "hello\n")
    assert (await shim.state(name)).status == types_pb2.RUNNING
    await shim.call("CloseIO", pb.CloseIORequest(id=name, stdin=True), Empty)
    assert (await shim.wait(name)).exit_status == 0


async def test_a_log_is_reopened_without_loss(shim: ShimUnderTest) -> None:
    name = shim.make_bundle(
        "/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; exec sleep 600"
    )
    log = shim.base / f"{name}.log"
    await shim.create(name, stdout=f"cri://{log}", stderr=f"cri://{log}")
    await shim.start(name)
    await until(lambda: log.exists() and log.stat().st_size > 100)
    log.rename(shim.base / f"{name}.1")
    request = own_pb2.ReopenLogRequest(container_id=name)
    await shim.client.call("atoll.shim.v1.Shim", "ReopenLog", request, own_pb2.ReopenLogResponse)
    await until(lambda: "line 199\n" in (shim.base / f"{name}.1").read_text() + log.read_text())
    await shim.kill(name)
    await shim.wait(name)
    await shim.delete(name)
    lines = ((shim.base / f"{name}.1").read_text() + log.read_text()).splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == [f"line {number}" for number in range(200)]


async def test_the_death_of_the_zygote_and_of_connections_is_not_noticed(yard: ShimYard, shim: ShimUnderTest) -> None:
    name = await shim.run("/bin/sh", "-c", "sleep 0.3; echo late; exit 9")
    await shim.client.aclose()
    await yard.zygote.aclose()
    os.kill(shim.forked.pid, signal.SIGTERM)
    await asyncio.sleep(0.5)
    shim.client = await Client.connect(str(shim.socket))
    assert (await shim.wait(name)).exit_status == 9
    assert shim.output(name) == "late\n"


async def test_a_create_whose_caller_goes_away_is_finished(shim: ShimUnderTest) -> None:
    name = shim.make_bundle(*SLEEP)
    caller = await Client.connect(str(shim.socket))
    request = pb.CreateTaskRequest(id=name, bundle=str(shim.bundle_of(name)))
    async with TaskOwner("test") as tasks:
        create = caller.call("containerd.task.v3.Task", "Create", request, pb.CreateTaskResponse)
        call = tasks.spawn(create, name="create")
        await asyncio.sleep(0.005)
        await caller.aclose()
        with pytest.raises(errors.Unavailable):
            await call
    shim.containers.append(name)
    async with asyncio.timeout(10):
        while True:
            try:
                state = await shim.state(name)
            except errors.NotFound:
                await asyncio.sleep(0.02)
            else:
                break
    assert state.status == types_pb2.CREATED


async def test_events_come_in_their_order(yard: ShimYard) -> None:
    shim = await yard.shim(events=True)
    name = await shim.run("/bin/sh", "-c", "sleep 600")
    await shim.exec(name, "e", "/bin/true")
    await shim.start(name, "e")
    await shim.wait(name, "e")
    await shim.kill(name)
    await shim.wait(name)
    await shim.delete(name)
    await yard.sink.until("/tasks/delete")
    assert yard.sink.topics == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ]
    exits = [event_types.TaskExit.FromString(each.event.value) for each in yard.sink.envelopes[4:6]]
    assert [(exit_.container_id, exit_.id, exit_.exit_status) for exit_ in exits] == [(name, "e", 0), (name, name, 137)]
    assert {envelope.namespace for envelope in yard.sink.envelopes} == {"test"}


async def test_a_process_that_ends_at_once_is_told_after_its_start(yard: ShimYard) -> None:
    shim = await yard.shim(events=True)
    for _ in range(3):
        name = await shim.run("/bin/true")
        await shim.wait(name)
        await shim.delete(name)
    await yard.sink.until("/tasks/delete", 3)
    assert yard.sink.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] * 3


async def test_what_ran_out_of_memory_says_so(yard: ShimYard) -> None:
    shim = await yard.shim(events=True)
    name = await shim.run(
        "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", resources={"memory": {"limit": 8 << 20}}
    )
    status = (await shim.wait(name)).exit_status
    record = records.read(shim.bundle_of(name) / records.EXIT, ExitRecord)
    assert status == 137
    assert record is not None
    assert record.oom_killed
    await yard.sink.until("/tasks/exit")
    assert yard.sink.topics[-2:] == ["/tasks/oom", "/tasks/exit"]


async def test_a_checkpoint_that_fails_leaves_the_container_running(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    request = pb.CheckpointTaskRequest(id=name, path="/proc/none/image")
    with pytest.raises(errors.AtollError):
        await shim.call("Checkpoint", request, Empty)
    assert (await shim.state(name)).status == types_pb2.RUNNING


async def test_shutdown_waits_for_the_last_container(shim: ShimUnderTest) -> None:
    name = await shim.run(*SLEEP)
    await shim.call("Shutdown", pb.ShutdownRequest(id=name), Empty)
    assert (await shim.state(name)).status == types_pb2.RUNNING
    await shim.kill(name)
    await shim.wait(name)
    await shim.delete(name)
    await shim.call("Shutdown", pb.ShutdownRequest(id=name), Empty)
    await shim.shim_ended()
    assert not shim.socket.exists()
