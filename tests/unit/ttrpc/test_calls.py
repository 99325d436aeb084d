"""Calls between our client and our server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from atoll import errors
from atoll.ttrpc import calls, codec, transport
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from tests.unit.ttrpc.echo import SERVICE, Echo, RawPeer, request_frame, status_of

BOUND_S = 5.0


def text(value: str) -> StringValue:
    return StringValue(value=value)


async def call(client: Client, method: str, value: str = "", *, timeout: float | None = None) -> str:
    response = await client.call(SERVICE, method, text(value), StringValue, timeout=timeout)
    return response.value


async def test_unary_call_returns_what_the_handler_returned(client: Client) -> None:
    assert await call(client, "say", "hello") == "hello"


async def test_empty_message_is_an_answer(client: Client) -> None:
    assert await call(client, "say", "") == ""


async def test_request_may_be_given_as_bytes(client: Client) -> None:
    response = await client.call(SERVICE, "say", text("x").SerializeToString(), StringValue)
    assert response.value == "x"


async def test_answers_may_come_in_another_order_than_their_calls(client: Client, echo: Echo) -> None:
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(call(client, "hang"))
        await echo.started.wait()
        assert await call(client, "say", "overtakes") == "overtakes"
        echo.released.set()
    assert slow.result() == "released"


async def test_thousand_calls_at_once_each_get_their_own_answer(client: Client) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(client, "say", str(number))) for number in range(1000)]
    assert [task.result() for task in tasks] == [str(number) for number in range(1000)]


async def test_metadata_reaches_the_handler_with_lower_case_keys(client: Client, echo: Echo) -> None:
    metadata = {"Containerd-Namespace-TTRPC": "k8s.io", "many": ["a", "b"]}
    await client.call(SERVICE, "say", text(""), StringValue, metadata=metadata)
    (context,) = echo.contexts
    assert context.metadata == {"containerd-namespace-ttrpc": ("k8s.io",), "many": ("a", "b")}
    assert context.namespace == "k8s.io"
    assert (context.service, context.method, context.deadline) == (SERVICE, "say", None)


async def test_handler_knows_its_peer(client: Client, echo: Echo) -> None:
    await call(client, "say")
    assert echo.contexts[0].peer == (os.getpid(), os.getuid(), os.getgid())
    assert client.peer_credentials == (os.getpid(), os.getuid(), os.getgid())


async def test_error_of_the_tree_keeps_its_kind_and_text(client: Client) -> None:
    with pytest.raises(errors.NotFound, match=r"^sandbox s1: not found$"):
        await call(client, "fail", "s1")


async def test_unknown_exception_becomes_internal_with_an_id_and_is_logged_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(errors.Internal) as caught:
        await call(client, "crash")
    fault = str(caught.value).rpartition(" ")[2]
    assert "secret" not in str(caught.value)
    logged = [record for record in caplog.records if fault in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].exc_info is not None


async def test_handler_that_returns_nothing_is_an_error(client: Client) -> None:
    with pytest.raises(errors.Internal, match="returned nothing"):
        await call(client, "nothing")


async def test_unknown_service_and_method_are_unimplemented(client: Client) -> None:
    with pytest.raises(errors.Unimplemented, match=r"no\.Such"):
        await client.call("no.Such", "say", b"", StringValue)
    with pytest.raises(errors.Unimplemented, match="no_such"):
        await call(client, "no_such")


async def test_request_that_cannot_be_decoded_is_an_invalid_argument(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be decoded"):
        await client.call(SERVICE, "say", b"\xff\xff\xff", StringValue)
    assert await call(client, "say", "next") == "next"


async def test_too_large_request_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(errors.ResourceExhausted, match="limit"):
        await call(client, "say", "x" * codec.MAX_PAYLOAD_BYTES)
    assert await call(client, "say", "next") == "next"


async def test_largest_request_makes_the_round_trip(client: Client) -> None:
    value = "x" * (codec.MAX_PAYLOAD_BYTES - 100)
    assert await call(client, "say", value) == value


async def test_too_large_response_is_told_as_resource_exhausted(client: Client) -> None:
    with pytest.raises(errors.ResourceExhausted, match="limit"):
        await call(client, "huge")
    assert await call(client, "say", "next") == "next"


async def test_deadline_is_kept_by_the_client_and_cancels_the_handler(client: Client, echo: Echo) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await call(client, "hang", timeout=0.02)
    await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)
    deadline = echo.contexts[0].deadline
    assert deadline is not None
    assert deadline <= asyncio.get_running_loop().time()


async def test_passed_deadline_sends_nothing(client: Client, echo: Echo) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await call(client, "say", timeout=0)
    assert echo.contexts == []


async def test_server_answers_the_deadline_by_itself(server: Server, socket_path: Path, echo: Echo) -> None:
    envelope = codec.encode_request(SERVICE, "hang", b"", timeout_s=0.02)
    with RawPeer.connect(socket_path) as peer:
        await peer.write(codec.encode_frame(1, codec.REQUEST, 0, envelope))
        frame = await peer.read_frame()
        assert status_of(frame) == errors.DeadlineExceeded.code
        await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)


async def test_cancelled_caller_stops_waiting_and_the_connection_stays_usable(client: Client, echo: Echo) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(call(client, "hang"))
        await echo.started.wait()
        waiting.cancel()
    assert waiting.cancelled()
    echo.released.set()
    assert await call(client, "say", "next") == "next"


async def test_handlers_are_cancelled_when_the_peer_goes(client: Client, echo: Echo) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(call(client, "hang"))
        await echo.started.wait()
        waiting.cancel()
        await client.aclose()
    await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)


async def test_every_waiting_call_fails_when_the_server_goes(socket_path: Path, echo: Echo) -> None:
    server = Server()
    server.register(SERVICE, echo.methods())
    await server.serve(socket_path)
    client = await Client.connect(str(socket_path))
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(fails_closed(client)) for _ in range(3)]
        await echo.started.wait()
        (connection,) = server._connections
        connection.abort()
    assert all(task.done() for task in waiting)
    await asyncio.wait_for(client.closed, BOUND_S)
    assert client.is_closed
    await fails_closed(client)
    await client.aclose()
    await server.shutdown()


async def fails_closed(client: Client) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        await call(client, "hang")
    assert str(caught.value).endswith(transport.CLOSED)


async def test_waiting_for_the_end_may_be_cancelled(client: Client) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.closed, 0.01)
    assert not client.is_closed
    assert await call(client, "say", "alive") == "alive"


async def test_close_is_idempotent_and_fails_what_waits(client: Client, echo: Echo) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails_closed(client))
        await echo.started.wait()
        client.close()
    await client.aclose()
    await client.aclose()
    assert client.is_closed


async def test_calls_on_one_connection_are_limited(client: Client, echo: Echo, server: Server) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(call(client, "hang")) for _ in range(calls.MAX_CALLS_PER_CONNECTION)]
        await asyncio.sleep(0)
        with pytest.raises(errors.ResourceExhausted):
            await call(client, "say")
        echo.released.set()
    assert {task.result() for task in waiting} == {"released"}
    assert await call(client, "say", "again") == "again"


async def test_peer_of_another_user_is_dropped(socket_path: Path, echo: Echo) -> None:
    async with Server(peer_uid=os.getuid() + 1) as server:
        server.register(SERVICE, echo.methods())
        await server.serve(socket_path)
        async with await Client.connect(str(socket_path)) as client:
            await asyncio.wait_for(client.closed, BOUND_S)
    assert echo.contexts == []


async def test_connect_to_nobody_fails_fast(socket_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="cannot connect"):
        await Client.connect(f"unix://{socket_path}")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(socket_path))
        with pytest.raises(errors.Unavailable, match="refused"):
            await Client.connect(f"unix://{socket_path}")


async def test_connect_to_a_full_backlog_is_bounded(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen(0)
        async with await Client.connect(str(socket_path)):
            with pytest.raises(errors.DeadlineExceeded, match="backlog"):
                await Client.connect(str(socket_path), timeout=0.05)


async def test_shutdown_lets_a_running_call_end(socket_path: Path, echo: Echo) -> None:
    server = Server()
    server.register(SERVICE, echo.methods())
    await server.serve(socket_path)
    async with await Client.connect(str(socket_path)) as client, asyncio.TaskGroup() as group:
        waiting = group.create_task(call(client, "hang"))
        await echo.started.wait()
        ending = group.create_task(server.shutdown(within=BOUND_S))
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable):
            await call(client, "say")
        echo.released.set()
        await ending
    assert waiting.result() == "released"
    assert not socket_path.exists()
    await server.shutdown()


async def test_shutdown_is_bounded_by_cancelling(socket_path: Path, echo: Echo) -> None:
    server = Server()
    server.register(SERVICE, echo.methods())
    await server.serve(socket_path)

    async def told_unavailable(client: Client) -> None:
        with pytest.raises(errors.Unavailable, match="shutting down"):
            await call(client, "hang")

    async with await Client.connect(str(socket_path)) as client, asyncio.TaskGroup() as group:
        group.create_task(told_unavailable(client))
        await echo.started.wait()
        await server.shutdown(within=0.02)
    assert echo.cancelled.is_set()


async def test_service_is_registered_once(server: Server, echo: Echo) -> None:
    with pytest.raises(errors.AlreadyExists):
        server.register(SERVICE, echo.methods())


async def test_path_is_bound_for_the_owner_only_and_a_dead_socket_is_replaced(socket_path: Path, echo: Echo) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    async with Server() as server:
        await server.serve(socket_path)
        assert socket_path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(errors.AlreadyExists):
            await Server().serve(socket_path)
    assert not socket_path.exists()


async def test_rules_on_stream_ids_are_answered_on_that_stream(server: Server, socket_path: Path) -> None:
    with RawPeer.connect(socket_path) as peer:
        for stream_id, code in ((2, 3), (5, 0), (5, 3), (3, 3), (7, 0)):
            await peer.write(request_frame(stream_id, "say", text("x")))
            frame = await peer.read_frame()
            assert (frame.stream_id, status_of(frame)) == (stream_id, code)
