"""A controller behind every wire: each method, each error, each way that a side can go away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from atoll import errors
from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from atoll.sandbox import listening
from atoll.sandbox.controller import (
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Mount,
    Platform,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandbox.service import ControllerService
from atoll.sandboxers import remote
from atoll.sandboxers.remote import RemoteController
from atoll.testing.fake import STUCK, FakeController
from atoll.ttrpc.client import Client
from atoll.ttrpc.service import NAMESPACE_KEY

T = TypeVar("T")
AT = datetime(2026, 3, 1, 12, 30, 15, 250, tzinfo=UTC)
ANY = TypedAny(type_url="runtime.v1.PodSandboxConfig", value=b"\x00\xff")
RECORD = Sandbox(
    id="one",
    sandboxer="scripted",
    runtime=Runtime(name="io.containerd.x.v1", options=ANY),
    spec=ANY,
    labels={"a": "b"},
    extensions={"metadata": ANY},
    created_at=AT,
    updated_at=AT,
)
OPTIONS = CreateOptions(
    rootfs=(Mount(type="bind", source="/a", target="b", options=("ro", "rbind")),),
    options=ANY,
    netns_path="/run/netns/x",
    annotations={"c": "d"},
)
INSTANCE = ControllerInstance(
    sandbox_id="one", pid=7, created_at=AT, labels={"e": "f"}, address="ttrpc+unix:///x", version=3, spec=ANY
)
STATUS = ControllerStatus(
    sandbox_id="one",
    state=State.UNKNOWN,
    pid=7,
    info={"info": "{}"},
    created_at=AT,
    exited_at=AT,
    extra=ANY,
    address="ttrpc+unix:///x",
    version=3,
    reason='it said "no"',
)
WIRES = ("unix://", "ttrpc+unix://")


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


async def eventually(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.005)


class Scripted(Controller):
    """Notes its calls, and answers what it was told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answer: object = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.ended = asyncio.Event()
        self.wait_gate = asyncio.Event()
        self.wait_gate.set()
        self.cancelled = 0

    async def _do(self, *call: object) -> Any:
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await self._do("create", sandbox, options)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        return await self._do("start", sandbox_id)

    async def platform(self, sandbox_id: str) -> Platform:
        return await self._do("platform", sandbox_id)

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self._do("stop", sandbox_id, timeout_s)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        answer = await self._do("wait", sandbox_id)
        await self.wait_gate.wait()
        return answer

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        return await self._do("status", sandbox_id, verbose)

    async def shutdown(self, sandbox_id: str) -> None:
        await self._do("shutdown", sandbox_id)

    async def metrics(self, sandbox_id: str) -> Metric:
        return await self._do("metrics", sandbox_id)

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        await self._do("update", sandbox_id, sandbox, fields)

    async def pause(self, sandbox_id: str) -> None:
        await self._do("pause", sandbox_id)

    async def resume(self, sandbox_id: str) -> None:
        await self._do("resume", sandbox_id)

    async def ping(self, sandbox_id: str) -> None:
        await self._do("ping", sandbox_id)


class Pair:
    """A scripted controller and its caller on the other side of a wire."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.here = Scripted()
        self.service = ControllerService(lambda namespace, sandboxer: self.here)
        self.there = RemoteController(address, sandboxer="scripted", namespace="test")


@pytest.fixture(params=WIRES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/s"


@pytest.fixture
async def pair(address: str) -> AsyncIterator[Pair]:
    made = Pair(address)
    async with listening(made.here, address) as made.service:
        yield made
        await made.there.aclose()


def ask(controller: Controller, method: str) -> Coroutine[Any, Any, object]:
    """One call of each method, with every argument it has."""
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "create": lambda: controller.create(RECORD, OPTIONS),
        "start": lambda: controller.start("one"),
        "platform": lambda: controller.platform("one"),
        "stop": lambda: controller.stop("one", 5),
        "wait": lambda: controller.wait("one"),
        "status": lambda: controller.status("one", True),
        "shutdown": lambda: controller.shutdown("one"),
        "metrics": lambda: controller.metrics("one"),
        "update": lambda: controller.update("one", RECORD, ("labels", "extensions.x")),
        "pause": lambda: controller.pause("one"),
        "resume": lambda: controller.resume("one"),
        "ping": lambda: controller.ping("one"),
    }
    return calls[method]()


CALLS: dict[str, tuple[tuple[object, ...], object]] = {
    "create": ((RECORD, OPTIONS), None),
    "start": (("one",), INSTANCE),
    "platform": (("one",), Platform(os="linux", architecture="arm64", variant="v8")),
    "stop": (("one", 5.0), None),
    "wait": (("one",), ExitStatus(exit_status=137, exited_at=AT)),
    "status": (("one", True), STATUS),
    "shutdown": (("one",), None),
    "metrics": (("one",), Metric(timestamp=AT, id="one", data=ANY)),
    "update": (("one", RECORD, ("labels", "extensions.x")), None),
    "pause": (("one",), None),
    "resume": (("one",), None),
    "ping": (("one",), None),
}


@pytest.mark.parametrize("method", CALLS)
async def test_every_method_carries_everything_both_ways(pair: Pair, method: str) -> None:
    arguments, answer = CALLS[method]
    pair.here.answer = answer
    assert await ask(pair.there, method) == answer
    assert pair.here.calls == [(method, *arguments)]


@pytest.mark.parametrize("kind", errors.KINDS.values())
@pytest.mark.parametrize("method", CALLS)
async def test_every_error_of_every_method_keeps_its_kind_and_text(
    pair: Pair, method: str, kind: type[errors.AtollError]
) -> None:
    pair.here.answer = kind("sandbox one: is not as it should be: é")
    if kind is errors.NotFound and method in ("stop", "shutdown"):
        await ask(pair.there, method)
        return
    if kind in (errors.Unavailable, errors.Cancelled) and method == "wait":
        return  # is asked again: the tests of restarts have it
    if kind is errors.Unimplemented and method == "ping":
        pair.here.answer = replace(STATUS, state=State.READY)
        await pair.there.ping("one")
        return
    with pytest.raises(errors.AtollError) as raised:
        await ask(pair.there, method)
    assert type(raised.value) is kind
    if kind is errors.Unavailable:
        assert str(pair.there.address) in str(raised.value)
    assert str(raised.value).endswith("sandbox one: is not as it should be: é")


@pytest.mark.parametrize("method", ["create", "start"])
async def test_both_halves_of_a_failed_start_cross_the_wire(pair: Pair, method: str) -> None:
    pair.here.answer = CleanupFailed(
        errors.DataLoss("no spec"), ("its mount: busy", "cgroup /x"), ("its process", "its files")
    )
    with pytest.raises(CleanupFailed) as raised:
        await ask(pair.there, method)
    assert raised.value.left == ("its mount: busy", "cgroup /x")
    assert raised.value.undone == ("its process", "its files")
    assert str(raised.value) == str(pair.here.answer)
    assert isinstance(raised.value.cause, errors.DataLoss)


async def test_a_fault_of_the_controller_is_internal_and_tells_no_secret(pair: Pair) -> None:
    pair.here.answer = ValueError("secret path")
    for method in ("create", "status", "wait"):
        with pytest.raises(errors.Internal) as raised:
            await ask(pair.there, method)
        assert "secret" not in str(raised.value)


async def test_a_long_text_arrives_cut_and_with_its_code(pair: Pair) -> None:
    for text in ("x" * 100_000, "é" * 100_000):
        pair.here.answer = CleanupFailed(errors.NotFound(text), (text,), (text,))
        with pytest.raises(errors.AtollError) as raised:
            await pair.there.start("one")
        assert raised.value.code == errors.NotFound.code


async def test_a_stop_goes_in_whole_seconds_rounded_up(pair: Pair) -> None:
    for timeout_s in (None, 0.0, 0.2, 3, 3.5):
        await pair.there.stop("one", timeout_s)
    assert [call[2] for call in pair.here.calls] == [None, None, 1.0, 3.0, 4.0]


async def test_the_name_of_the_sandboxer_stands_in_for_the_record(pair: Pair) -> None:
    await pair.there.create(replace(RECORD, sandboxer=""), OPTIONS)
    assert pair.here.calls == [("create", RECORD, OPTIONS)]


async def test_a_megabyte_of_extensions_and_ten_thousand_labels_pass(pair: Pair) -> None:
    big = replace(
        RECORD,
        extensions={"big": TypedAny(type_url="x", value=bytes(1 << 20))},
        labels={f"label-{number}": "x" * 20 for number in range(10_000)},
    )
    await pair.there.create(big, OPTIONS)
    assert pair.here.calls == [("create", big, OPTIONS)]


@pytest.mark.parametrize("hostile", ["", "..", "a/b", "-x", "x" * 77, "a\0b", "a\n"])
async def test_an_id_that_none_can_have_reaches_no_controller(pair: Pair, hostile: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        await pair.there.create(replace(RECORD, id=hostile), OPTIONS)
    with pytest.raises(errors.NotFound):
        await pair.there.status(hostile)
    await pair.there.stop(hostile)
    await pair.there.shutdown(hostile)
    assert pair.here.calls == []


# Callers that are not ours


def grpc_channel(pair: Pair) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(pair.there.address.target)


async def raw(pair: Pair, method: str, request: Any, answer: Any, namespace: str | None = "k8s.io") -> Any:
    """One call without our client."""
    if pair.there.address.protocol == "ttrpc":
        metadata = {NAMESPACE_KEY: namespace} if namespace is not None else None
        async with await Client.connect(f"unix://{pair.there.address.path}") as client:
            return await client.call(remote.SERVICE, method, request, answer, timeout=5, metadata=metadata)
    headers = (("containerd-namespace", namespace),) if namespace is not None else None
    async with grpc_channel(pair) as channel:
        call = channel.unary_unary(
            f"/{remote.SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return await call(request, timeout=5, metadata=headers)
        except grpc.aio.AioRpcError as error:
            raise errors.from_status(error.code().value[0], error.details() or "") from None


@pytest.mark.parametrize(
    ("namespace", "kind"), [(None, errors.FailedPrecondition), ("", errors.FailedPrecondition),
                            ("a/b", errors.InvalidArgument), ("x" * 77, errors.InvalidArgument)]
)  # fmt: skip
async def test_a_namespace_is_needed_and_checked(
    pair: Pair, namespace: str | None, kind: type[errors.AtollError]
) -> None:
    with pytest.raises(kind):
        await raw(pair, "Status", pb.ControllerStatusRequest(sandbox_id="one"), pb.ControllerStatusResponse, namespace)


async def test_an_update_without_a_record_is_refused_and_one_without_a_sandboxer_is_not(pair: Pair) -> None:
    with pytest.raises(errors.InvalidArgument):
        await raw(pair, "Update", pb.ControllerUpdateRequest(sandbox_id="one"), pb.ControllerUpdateResponse)
    request = pb.ControllerUpdateRequest(sandbox_id="one", fields=["extensions"])
    request.sandbox.sandboxer = "atoll"
    await raw(pair, "Update", request, pb.ControllerUpdateResponse)
    assert pair.here.calls[0][0:2] == ("update", "one")
    request.sandbox.sandbox_id = "two"
    with pytest.raises(errors.InvalidArgument):
        await raw(pair, "Update", request, pb.ControllerUpdateResponse)


async def test_the_answer_of_create_repeats_the_id(pair: Pair) -> None:
    answer = await raw(pair, "Create", pb.ControllerCreateRequest(sandbox_id="one"), pb.ControllerCreateResponse)
    assert answer.sandbox_id == "one"


async def test_the_controller_is_found_by_namespace_and_name() -> None:
    asked: list[tuple[str, str]] = []

    def find(namespace: str, sandboxer: str) -> Controller:
        asked.append((namespace, sandboxer))
        if not sandboxer:
            raise errors.InvalidArgument("sandboxer: must be named")
        raise errors.NotFound(f"sandboxer {sandboxer}: there is none")

    class Context:
        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("containerd-namespace", "k8s.io"),)

    service = ControllerService(find)
    with pytest.raises(errors.InvalidArgument):
        await service.Status(pb.ControllerStatusRequest(sandbox_id="one"), Context())
    with pytest.raises(errors.NotFound):
        await service.Stop(pb.ControllerStopRequest(sandbox_id="one", sandboxer="x"), Context())
    request = pb.ControllerUpdateRequest(sandbox_id="one")
    request.sandbox.sandboxer = "of-the-record"
    with pytest.raises(errors.NotFound):
        await service.Update(request, Context())
    assert asked == [("k8s.io", ""), ("k8s.io", "x"), ("k8s.io", "of-the-record")]
    await service.aclose()


# Sides that go away


async def test_a_caller_that_leaves_ends_its_wait(pair: Pair) -> None:
    pair.here.gate.clear()
    waiting = later(pair.there.wait("one"))
    await eventually(lambda: len(pair.here.calls) == 1)
    waiting.cancel()
    if pair.there.address.protocol == "ttrpc":  # which has no way to tell, but for hanging up
        await pair.there.aclose()
    await eventually(lambda: pair.here.cancelled == 1)


@pytest.mark.parametrize("method", ["create", "start"])
async def test_what_a_caller_left_half_made_is_finished_and_undone(pair: Pair, method: str) -> None:
    pair.here.answer = INSTANCE
    pair.here.gate.clear()
    call = later(ask(pair.there, method))
    await eventually(lambda: len(pair.here.calls) == 1)
    call.cancel()
    await pair.there.aclose()
    await asyncio.sleep(0.05)
    assert (pair.here.cancelled, [call[0] for call in pair.here.calls]) == (0, [method])
    pair.here.answer = None if method == "create" else INSTANCE
    pair.here.gate.set()
    await eventually(lambda: len(pair.here.calls) == 2)
    assert pair.here.calls[1] == ("shutdown", "one")


@pytest.mark.parametrize("method", ["stop", "shutdown", "update", "pause", "resume"])
async def test_what_a_caller_left_half_done_is_finished(pair: Pair, method: str) -> None:
    pair.here.gate.clear()
    call = later(ask(pair.there, method))
    await eventually(lambda: len(pair.here.calls) == 1)
    call.cancel()
    await pair.there.aclose()
    await asyncio.sleep(0.05)
    pair.here.gate.set()
    await eventually(pair.here.ended.is_set)
    assert (pair.here.cancelled, len(pair.here.calls)) == (0, 1)


async def test_a_deadline_that_passes_in_start_undoes_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHANGE_TIMEOUT_S", 0.1)
    pair.here.answer = INSTANCE
    pair.here.gate.clear()
    with pytest.raises(errors.DeadlineExceeded):
        await pair.there.start("one")
    await asyncio.sleep(0.05)
    pair.here.gate.set()
    await eventually(lambda: len(pair.here.calls) == 2)
    assert pair.here.calls[1] == ("shutdown", "one")


async def test_a_hung_side_is_told_by_the_deadline(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PING_TIMEOUT_S", 0.1)
    pair.here.gate.clear()
    with pytest.raises(errors.DeadlineExceeded):
        await pair.there.ping("one")
    await eventually(lambda: pair.here.cancelled == 1)


async def test_nobody_there_is_told_at_once_and_by_name(address: str) -> None:
    there = RemoteController(address)
    for method in (*(set(CALLS) - {"wait", "create"}), "create"):
        with pytest.raises(errors.Unavailable) as raised:
            async with asyncio.timeout(2):
                await ask(there, method)
        assert str(there.address) in str(raised.value)
    status = await there.recover(RECORD)
    assert (status.state, str(there.address) in status.reason) == (State.UNKNOWN, True)
    await there.aclose()


async def test_what_was_never_asked_for_need_not_be_freed(address: str) -> None:
    there, here = RemoteController(address), FakeController()
    with pytest.raises(errors.Unavailable, match="start the sandboxer, or correct its address"):
        await there.create(RECORD, CreateOptions())
    await there.stop("one")
    await there.shutdown("one")
    with pytest.raises(errors.Unavailable):
        await there.shutdown("one")  # who asks again may know more
    async with listening(here, address):
        await there.create(RECORD, CreateOptions())
    with pytest.raises(errors.Unavailable):
        await there.shutdown("one")
    await there.aclose()


async def test_the_first_call_after_a_return_is_answered(address: str) -> None:
    there, here = RemoteController(address), FakeController()
    async with listening(here, address):
        await there.create(RECORD, CreateOptions())
    for _ in range(5):
        with pytest.raises(errors.Unavailable):
            await there.status("one")
    async with listening(here, address):
        assert (await there.status("one")).state is State.NOTREADY
        await there.aclose()


async def test_a_wait_outlives_restarts_and_gets_the_end_that_fell_between(address: str) -> None:
    there, here = RemoteController(address), FakeController()
    async with listening(here, address):
        await there.create(RECORD, CreateOptions())
        await there.start("one")
        waiting = later(there.wait("one"))
        await eventually(lambda: bool(there._waits))
        await asyncio.sleep(0.05)
    async with listening(here, address):
        await asyncio.sleep(0.3)
        assert not waiting.done()
    here.end("one", 42)
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with listening(here, address), asyncio.timeout(5):
        ended = await waiting
        assert ended.exit_status == 42
        assert await there.wait("one") == ended
        await there.aclose()


async def test_a_wait_in_its_longest_pause_is_asked_again_when_another_call_gets_through(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 60.0)
    there, here = RemoteController(address), FakeController()
    async with listening(here, address):
        await there.create(RECORD, CreateOptions())
        await there.start("one")
    waiting = later(there.wait("one"))
    await asyncio.sleep(2.8)  # by now it pauses for more than two seconds
    here.end("one", 3)
    async with listening(here, address), asyncio.timeout(1.5):
        await there.status("one")
        assert (await waiting).exit_status == 3
    await there.aclose()


async def test_a_wait_for_what_is_not_there_any_more_ends(address: str) -> None:
    there = RemoteController(address)
    async with listening(FakeController(), address), asyncio.timeout(5):
        with pytest.raises(errors.NotFound):
            await there.wait("one")
        await there.aclose()


async def test_a_server_that_ends_loses_its_waits_and_finishes_its_operations(address: str) -> None:
    made = Pair(address)
    made.here.gate.clear()
    async with listening(made.here, address) as service:
        waiting = later(raw(made, "Wait", pb.ControllerWaitRequest(sandbox_id="one"), pb.ControllerWaitResponse))
        starting = later(raw(made, "Start", pb.ControllerStartRequest(sandbox_id="one"), pb.ControllerStartResponse))
        await eventually(lambda: len(made.here.calls) == 2)
        made.here.answer = INSTANCE
        ending = later(service.operations.drain(5))
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Unavailable):
            await made.there.stop("two")
        made.here.wait_gate.clear()
        made.here.gate.set()
        await ending
    assert (await starting).pid == INSTANCE.pid
    with pytest.raises(errors.Unavailable):
        await waiting
    assert {call[0] for call in made.here.calls} == {"wait", "start"}  # and nothing was undone
    await made.there.aclose()


async def test_a_cancelled_wait_asks_no_more(address: str) -> None:
    there = RemoteController(address)
    waiting = later(there.wait("one"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert len(there._waits) == 0
    await there.aclose()


async def test_closing_lets_waiters_go(pair: Pair) -> None:
    pair.here.gate.clear()
    waiting = later(pair.there.wait("one"))
    await eventually(lambda: len(pair.here.calls) == 1)
    await pair.there.aclose()
    with pytest.raises(errors.Unavailable):
        await waiting
    with pytest.raises(errors.Unavailable):
        await pair.there.status("one")


async def test_a_thousand_waiters_are_one_question(pair: Pair) -> None:
    pair.here.gate.clear()
    pair.here.answer = CALLS["wait"][1]
    waiting = [later(pair.there.wait("one")) for _ in range(1000)]
    await eventually(lambda: len(pair.here.calls) == 1)
    pair.here.gate.set()
    done, _ = await asyncio.wait(waiting)
    assert {task.result() for task in done} == {pair.here.answer}
    assert len(pair.here.calls) == 1


async def test_a_thousand_waiters_of_anybody_are_one_question_to_the_controller(pair: Pair) -> None:
    pair.here.gate.clear()
    pair.here.answer = CALLS["wait"][1]
    request = pb.ControllerWaitRequest(sandbox_id="one")

    async def wait() -> pb.ControllerWaitResponse:
        return await pair.there._wire.call(remote.SERVICE, "Wait", request, pb.ControllerWaitResponse, None)

    waiting = [later(wait()) for _ in range(1000)]
    await eventually(lambda: [asked.waiters for asked in pair.service._waits._asked.values()] == [1000])
    for one in waiting[:100]:
        one.cancel()
    pair.here.gate.set()
    answers = await asyncio.wait_for(asyncio.wait(waiting[100:]), 20)
    assert {task.result().exit_status for task in answers[0]} == {137}
    assert len(pair.here.calls) == 1


async def test_more_sandboxes_than_a_connection_takes_are_waited_for(pair: Pair) -> None:
    pair.here.gate.clear()
    pair.here.answer = CALLS["wait"][1]
    waiting = [later(pair.there.wait(f"sandbox-{number}")) for number in range(1500)]
    await eventually(lambda: len(pair.here.calls) == 1500)
    pair.here.gate.set()
    done, _ = await asyncio.wait(waiting)
    assert not [task for task in done if task.exception()]


async def test_a_failed_start_that_left_something_can_be_seen_and_shut_down(address: str) -> None:
    there, here = RemoteController(address), FakeController()
    async with listening(here, address):
        await there.create(RECORD, CreateOptions(annotations={STUCK: ""}))
        with pytest.raises(CleanupFailed) as raised:
            await there.start("one")
        assert raised.value.undone == ("its process",)
        status = await there.status("one")
        assert (status.state, "its mount is busy" in status.reason) == (State.UNKNOWN, True)
        await there.shutdown("one")
        with pytest.raises(errors.NotFound):
            await there.status("one")
        await there.aclose()


async def test_grpc_has_health_and_reflection_too(tmp_path: Path) -> None:
    async with (
        listening(Scripted(), f"unix://{tmp_path}/s"),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel,
    ):
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", remote.SERVICE, remote.OWN_SERVICE):
            answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
        listed = [one async for one in call]
        names = {service.name for service in listed[0].list_services_response.service}
        assert {remote.SERVICE, remote.OWN_SERVICE} <= names


# Sockets


async def test_the_socket_is_its_owners_alone_and_goes_with_its_server(address: str) -> None:
    path = Path(RemoteController(address).address.path)
    async with listening(Scripted(), address):
        assert path.lstat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(address: str) -> None:
    path = Path(RemoteController(address).address.path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(Scripted(), address):
        with pytest.raises(errors.FailedPrecondition, match="listens"):
            async with listening(Scripted(), address):
                pass
        assert path.is_socket()


async def test_a_file_that_is_no_socket_is_left_alone(address: str) -> None:
    path = Path(RemoteController(address).address.path)
    path.write_text("precious")
    with pytest.raises(errors.FailedPrecondition, match="no socket"):
        async with listening(Scripted(), address):
            pass
    assert path.read_text() == "precious"


async def test_a_folder_that_is_missing_is_made_and_one_that_cannot_be_is_told(address: str, tmp_path: Path) -> None:
    path = RemoteController(address).address.path
    async with listening(Scripted(), address.replace(path, f"{tmp_path}/new/er/s")):
        assert (tmp_path / "new" / "er").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(errors.FailedPrecondition, match="cannot be listened on"):
        async with listening(Scripted(), address.replace(path, f"{tmp_path}/file/s")):
            pass


async def test_one_controller_on_every_wire_at_once(tmp_path: Path) -> None:
    addresses = [f"{scheme}{tmp_path}/{number}" for number, scheme in enumerate(WIRES)]
    here = FakeController()
    async with listening(here, *addresses):
        first, second = (RemoteController(address) for address in addresses)
        await first.create(RECORD, CreateOptions())
        with pytest.raises(errors.AlreadyExists):
            await second.create(RECORD, CreateOptions())
        await second.shutdown("one")
        assert here.ids == frozenset()
        await first.aclose()
        await second.aclose()


async def test_nothing_to_serve_at_is_told() -> None:
    with pytest.raises(errors.InvalidArgument):
        async with listening(Scripted()):
            pass
