"""The live streams of a shim by their ids, and containerd's Streaming service over them.

One call is one stream (containerd.services.streaming.v1.Streaming/Stream): `StreamInit` names it, an empty message
acknowledges, then data flows in messages of at most 32 KiB. Who receives grants windows; who sends starts
with none and waits (containerd.types.transfer `Data`, `WindowUpdate`).
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from atoll import errors
from atoll.shim.stdio import flow
from atoll.shim.stdio.hub import Hub, HubClient
from atoll.shim.stdio.stdin import AttachedInput
from atoll.ttrpc.service import CallContext, Requests, Send

INIT_TIMEOUT_S = 10.0


class Streams:
    """Every live stream of a shim by its id."""

    def __init__(self) -> None:
        self._outputs: dict[str, Hub] = {}
        self._inputs: dict[str, AttachedInput] = {}

    def add_output(self, hub: Hub) -> None:
        """Enter an output; `AlreadyExists` where its id is taken."""
        self._check(hub.name)
        self._outputs[hub.name] = hub

    def add_input(self, attached: AttachedInput) -> None:
        """Enter an input; `AlreadyExists` where its id is taken."""
        self._check(attached.name)
        self._inputs[attached.name] = attached

    def remove(self, name: str) -> None:
        """Forget an id; clients of it read to their end. Idempotent."""
        self._outputs.pop(name, None)
        self._inputs.pop(name, None)

    def find(self, name: str) -> Hub | AttachedInput:
        """The stream `name`; `NotFound` where there is none."""
        stream = self._outputs.get(name) or self._inputs.get(name)
        if stream is None:
            raise errors.NotFound(f"stream {name!r}: no such stream in this shim")
        return stream

    def __len__(self) -> int:
        return len(self._outputs) + len(self._inputs)

    def _check(self, name: str) -> None:
        if name in self._outputs or name in self._inputs:
            raise errors.AlreadyExists(f"stream {name!r}: the id is in use")


class StreamingService:
    """Serves every stream of `streams`; register it for the descriptor of containerd's Streaming service.

    A call on an output ends at the stream's end; with `ResourceExhausted` for a client that read too slowly;
    with `Aborted` where a newer client took a lossless stream over. A call on an input ends at the client's
    half-close, with `FailedPrecondition` where the process's stdin is closed.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Stream(self, requests: Requests, context: CallContext, send: Send) -> None:
        """One stream, from its `StreamInit` to its end."""
        try:
            async with asyncio.timeout(INIT_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{context.method}: no StreamInit within {INIT_TIMEOUT_S:g} s") from None
        if first is None:
            raise errors.InvalidArgument(f"{context.method}: ended before its StreamInit")
        stream = self._streams.find(flow.streaming_id_of(first))
        await send(flow.acknowledgement())
        if isinstance(stream, Hub):
            await _serve_output(stream, requests, send)
        else:
            await _serve_input(stream, requests, send)


async def _serve_output(hub: Hub, requests: Requests, send: Send) -> None:
    window = flow.Window()
    client = hub.attach(window.fail)
    try:
        async with asyncio.TaskGroup() as group:
            grants = group.create_task(_take_grants(requests, window, client), name=f"stream/{hub.name}/grants")
            error = await _send_all(client, window, send)
            grants.cancel()
    finally:
        client.detach()
    if error is not None:
        raise error


async def _take_grants(requests: Requests, window: flow.Window, client: HubClient) -> None:
    error: errors.AtollError = errors.Cancelled("stream: the client closed it")
    try:
        async for message in requests:
            window.grant(flow.window_of(message))
    except errors.AtollError as fault:
        error = fault
    window.fail(error)
    client.detach(error)


async def _send_all(client: HubClient, window: flow.Window, send: Send) -> errors.AtollError | None:
    """Send until the end; the error that the call should end with."""
    try:
        while True:
            allowed = await window.open()
            chunk = await client.read(min(allowed, flow.MAX_DATA_BYTES))
            if not chunk:
                return None
            try:
                await send(flow.data_message(chunk))
            except BaseException:
                client.unread(chunk)
                raise
            window.spend(len(chunk))
    except errors.Cancelled:
        return None
    except errors.AtollError as error:
        return error


async def _serve_input(attached: AttachedInput, requests: Requests, send: Send) -> None:
    granted = 0
    orderly = False
    try:
        while True:
            if granted < flow.WINDOW_BYTES:
                await send(flow.window_message(flow.WINDOW_BYTES))
                granted += flow.WINDOW_BYTES
            message: Message | None = await anext(requests, None)
            if message is None:
                orderly = True
                return
            data = flow.data_of(message)
            if len(data) > granted:
                raise errors.InvalidArgument(f"stream {attached.name}: {len(data)} bytes sent, {granted} allowed")
            granted -= len(data)
            await attached.write(data)
    finally:
        attached.client_ended(orderly=orderly)
