"""Errors become statuses at one place; gates and idleness see every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import grpc
import pytest

from atoll import errors, rpc, tracing
from atoll.api import atoll_v1_pb2 as pb


class Aborted(grpc.aio.AbortError):
    pass


class Context:
    """What gRPC gives a handler, as far as errors go."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.written: list[object] = []
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    async def write(self, message: object) -> None:
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        raise Aborted


class Calls:
    def __init__(self) -> None:
        self.now = 0
        self.seen = 0

    def begin(self) -> None:
        self.now += 1
        self.seen += 1

    def end(self) -> None:
        self.now -= 1


async def _open() -> None:
    return


async def answered(error: Exception) -> Context:
    async def work(request: object, context: object) -> pb.InfoResponse:
        raise error

    context, calls = Context(), Calls()
    with pytest.raises(Aborted):
        await rpc._unary("Info", work, calls, _open)(pb.InfoRequest(), context)
    assert (calls.now, calls.seen) == (0, 1)
    return context


@pytest.mark.parametrize("kind", errors.KINDS.values())
async def test_every_kind_of_error_has_its_status(kind: type[errors.AtollError]) -> None:
    context = await answered(kind("pod x: is not there"))
    assert context.code is not None
    assert context.code.value[0] == kind.code
    assert context.details == "pod x: is not there"


async def test_an_error_of_nobody_is_internal_with_a_mark_and_no_details() -> None:
    context = await answered(RuntimeError("secret path"))
    assert context.code is grpc.StatusCode.INTERNAL
    assert "secret" not in context.details
    assert "RuntimeError" in context.details


async def test_time_that_ran_out_is_told_as_that() -> None:
    assert (await answered(TimeoutError())).code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_that_fails_after_its_first_message_is_told() -> None:
    async def work(request: object, context: object) -> AsyncGenerator[pb.LogsResponse]:
        yield pb.LogsResponse()
        raise errors.DataLoss("the log is torn")

    context, calls = Context(), Calls()
    with pytest.raises(Aborted):
        await rpc._streaming("Logs", work, calls, _open)(pb.LogsRequest(), context)
    assert context.written == [pb.LogsResponse()]
    assert (context.code, calls.now) == (grpc.StatusCode.DATA_LOSS, 0)


async def test_a_stream_whose_client_leaves_cleans_up_before_its_call_ends() -> None:
    cleaned: list[str] = []

    async def work(request: object, context: object) -> AsyncGenerator[pb.LogsResponse]:
        try:
            while True:
                yield pb.LogsResponse()
        finally:
            await asyncio.sleep(0)
            cleaned.append("work")

    class Stuck(Context):
        async def write(self, message: object) -> None:
            await asyncio.Event().wait()

    calls = Calls()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(rpc._streaming("Logs", work, calls, _open)(pb.LogsRequest(), Stuck()))
        await asyncio.sleep(0)
        call.cancel()
    assert call.cancelled()
    assert (cleaned, calls.now) == (["work"], 0)


async def test_a_reader_that_leaves_while_it_is_written_to_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def work(request: object, context: object) -> AsyncGenerator[pb.LogsResponse]:
        yield pb.LogsResponse()

    class Gone(Context):
        async def write(self, message: object) -> None:
            raise grpc.aio.InternalError("the batch failed")

    context, calls = Gone(), Calls()
    with caplog.at_level(logging.INFO):
        await rpc._streaming("Logs", work, calls, _open)(pb.LogsRequest(), context)
    assert (context.code, calls.now, caplog.records) == (None, 0, [])


async def test_a_gated_call_waits_for_its_gate() -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    async def work(request: object, context: object) -> pb.InfoResponse:
        return pb.InfoResponse(pods=1)

    call = rpc._unary("Info", work, Calls(), wait)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(call(pb.InfoRequest(), Context()))
        await asyncio.sleep(0)
        assert not running.done()
        gate.set()
    assert running.result().pods == 1


def test_a_handler_of_the_wrong_form_is_found_at_the_start() -> None:
    class Wrong:
        async def Logs(self, request: object, context: object) -> None: ...  # noqa: N802

    service = pb.DESCRIPTOR.services_by_name["Runtime"]
    with pytest.raises(TypeError, match="Logs"):
        rpc.handlers(service, Wrong(), Calls())


async def test_the_trace_of_a_call_is_its_own() -> None:
    seen: list[tracing.Parent | None] = []

    async def work(request: object, context: object) -> pb.InfoResponse:
        seen.append(tracing.PARENT.get())
        return pb.InfoResponse()

    traced, plain = Context(), Context()
    traced.metadata = (("user-agent", "grpc"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"))
    async with asyncio.TaskGroup() as group:
        for context in (traced, plain):
            group.create_task(rpc._unary("Info", work, Calls(), _open)(pb.InfoRequest(), context))
    assert seen == [tracing.Parent(trace_id=int("a" * 32, 16), span_id=int("b" * 16, 16), is_sampled=True), None]
    assert tracing.PARENT.get() is None
