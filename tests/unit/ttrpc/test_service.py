"""Services made from protobuf descriptors, and what serving them needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from atoll import errors
from atoll.api import containerd_services_streaming_v1_pb2 as streaming
from atoll.api import containerd_task_v2_pb2 as task
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext, Send, methods_of

TASK = task.DESCRIPTOR.services_by_name["Task"]


class Shim:
    async def Connect(  # noqa: N802 - the name of the method on the wire
        self, request: task.ConnectRequest, context: CallContext
    ) -> task.ConnectResponse:
        return task.ConnectResponse(version=request.id)

    async def Stream(  # noqa: N802
        self, requests: AsyncIterator[Any], context: CallContext, send: Send
    ) -> None:
        async for request in requests:
            await send(request)


async def test_described_service_is_served_under_its_full_name_and_any_other(socket_path: Path) -> None:
    async with Server() as server:
        server.add_service(TASK, Shim())
        server.register("containerd.task.v3.Task", methods_of(TASK, Shim()))
        await server.serve(socket_path)
        async with await Client.connect(str(socket_path)) as client:
            for service in ("containerd.task.v2.Task", "containerd.task.v3.Task"):
                answer = await client.call(service, "Connect", task.ConnectRequest(id="x"), task.ConnectResponse)
                assert answer.version == "x"
            with pytest.raises(errors.Unimplemented):
                await client.call("containerd.task.v2.Task", "State", b"", task.StateResponse)


async def test_described_stream_goes_both_ways(socket_path: Path) -> None:
    async with Server() as server:
        server.add_service(streaming.DESCRIPTOR.services_by_name["Streaming"], Shim())
        await server.serve(socket_path)
        async with await Client.connect(str(socket_path)) as client:
            stream = await client.stream(
                "containerd.services.streaming.v1.Streaming",
                "Stream",
                Any,
                client_streaming=True,
                server_streaming=True,
            )
            async with stream:
                await stream.send(Any(type_url="a", value=b"b"))
                assert await stream.receive() == Any(type_url="a", value=b"b")
                await stream.close_send()
                assert await stream.receive() is None


def test_attribute_that_cannot_be_called_is_refused() -> None:
    class Wrong:
        Connect = 1

    with pytest.raises(errors.InvalidArgument, match="Task/Connect"):
        methods_of(TASK, Wrong())


def test_server_is_light_to_import() -> None:
    program = "import atoll.ttrpc.server, json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30).stdout
    heavy = [name for name in json.loads(output) if name.partition(".")[0] in ("grpc", "sqlite3", "msgspec", "rich")]
    assert heavy == []
