"""A plugin of NRI for tests, written against the published protocol: its own mux, its own ttrpc, one thread.

It registers, subscribes to what it has answers or a list for, and notes every request. An answer is a function of the
request; it may sleep, raise `Refusal`, or end the plugin.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.api import ttrpc_pb2

M = TypeVar("M", bound=Message)
Answer = Callable[[Message], Message | None]

PLUGIN_SERVICE, RUNTIME_SERVICE = 1, 2
REQUEST, RESPONSE = 1, 2
PACKAGE = "nri.pkg.api.v1alpha1"
ALL = (1 << (pb.LAST - 1)) - 1
UNCHECKED = ALL & ~(1 << (pb.VALIDATE_CONTAINER_ADJUSTMENT - 1))
"""Without being asked whether an adjustment may be made: a plugin that should tell and cannot fails the creation."""
WITHIN_S = 10.0


class Refusal(Exception):
    """An answer that is an error."""


class Plugin:
    """A connection to the runtime; `start` returns when it is synchronised."""

    def __init__(self, connection: socket.socket, name: str, index: str, *, events: int = ALL) -> None:
        self.connection = connection
        self.name = name
        self.index = index
        self.events = events
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, Message]] = []
        self.configured: pb.ConfigureRequest | None = None
        self.synchronized = threading.Event()
        self.ended = threading.Event()
        self._sending = threading.Lock()
        self._calls: dict[int, tuple[threading.Event, list[ttrpc_pb2.Response]]] = {}
        self._next = 1
        self._thread = threading.Thread(target=self._serve, name=f"nri {name}", daemon=True)

    @classmethod
    def connect(cls, path: Path, name: str, index: str = "10", *, events: int = ALL) -> Plugin:
        """Connect as soon as somebody listens there."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return cls(connection, name, index, events=events)

    def start(self, *, within: float = WITHIN_S) -> Plugin:
        self._thread.start()
        self.call("RegisterPlugin", pb.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index), pb.Empty)
        assert self.synchronized.wait(within), f"{self.name} is not synchronised"
        return self

    def close(self) -> None:
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._thread.ident is not None:
            self._thread.join(WITHIN_S)
        self.connection.close()

    # --- what came ---

    def names(self) -> list[str]:
        """The methods that were called, in order, without the handshake's."""
        return [name for name, _ in self.requests if name not in ("Configure", "Synchronize")]

    def of(self, name: str, kind: type[M]) -> list[M]:
        """The requests of one method."""
        return [request for method, request in self.requests if method == name and isinstance(request, kind)]

    def wait_for(self, name: str, count: int = 1) -> None:
        """Until so many calls of a method have come."""
        deadline = time.monotonic() + WITHIN_S
        while self.names().count(name) < count:
            assert time.monotonic() < deadline, f"no {name} has come: {self.names()}"
            time.sleep(0.005)

    def forget(self) -> None:
        self.requests.clear()

    # --- calls of the runtime ---

    def call(self, method: str, request: Message, answer: type[M]) -> M:
        stream, done = self._next, threading.Event()
        self._next += 2
        got: list[ttrpc_pb2.Response] = []
        self._calls[stream] = (done, got)
        message = ttrpc_pb2.Request(
            service=f"{PACKAGE}.Runtime", method=method, payload=request.SerializeToString()
        ).SerializeToString()
        self._send(RUNTIME_SERVICE, stream, REQUEST, message)
        assert done.wait(WITHIN_S), f"{method}: no answer"
        if got[0].status.code:
            raise Refusal(got[0].status.message)
        return answer.FromString(got[0].payload)

    def update(
        self, *updates: pb.ContainerUpdate, evict: tuple[pb.ContainerEviction, ...] = ()
    ) -> list[pb.ContainerUpdate]:
        """The unsolicited updates that failed."""
        request = pb.UpdateContainersRequest(update=updates, evict=evict)
        return [*self.call("UpdateContainers", request, pb.UpdateContainersResponse).failed]

    # --- the wire ---

    def _send(self, connection: int, stream: int, kind: int, payload: bytes) -> None:
        frame = struct.pack(">IIBB", len(payload), stream, kind, 0) + payload
        with self._sending:
            for start in range(0, len(frame), 3000):  # a frame of the mux is any part of the stream
                part = frame[start : start + 3000]
                self.connection.sendall(struct.pack(">II", connection, len(part)) + part)

    def _serve(self) -> None:
        streams = {PLUGIN_SERVICE: b"", RUNTIME_SERVICE: b""}
        try:
            while True:
                number, length = struct.unpack(">II", self._exactly(8))
                streams[number] += self._exactly(length)
                while len(streams[number]) >= 10:
                    size, stream, kind, _ = struct.unpack(">IIBB", streams[number][:10])
                    if len(streams[number]) < 10 + size:
                        break
                    payload, streams[number] = streams[number][10 : 10 + size], streams[number][10 + size :]
                    self._take(number, stream, kind, payload)
        except (ConnectionError, OSError):
            pass
        finally:
            self.ended.set()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data

    def _take(self, number: int, stream: int, kind: int, payload: bytes) -> None:
        if number == RUNTIME_SERVICE:
            assert kind == RESPONSE
            done, got = self._calls.pop(stream)
            got.append(ttrpc_pb2.Response.FromString(payload))
            done.set()
            return
        request = ttrpc_pb2.Request.FromString(payload)
        assert request.service == f"{PACKAGE}.Plugin"
        method = pb.DESCRIPTOR.services_by_name["Plugin"].methods_by_name[request.method]
        message = GetMessageClass(method.input_type).FromString(request.payload)
        self.requests.append((request.method, message))
        # Answers of their own thread: an answer may itself call the runtime.
        threading.Thread(
            target=self._answer,
            args=(stream, request.method, message, GetMessageClass(method.output_type)),
            daemon=True,
        ).start()

    def _answer(self, stream: int, method: str, message: Message, kind: type[Message]) -> None:
        response = ttrpc_pb2.Response()
        try:
            answer = self._handle(method, message)
            response.payload = (answer if answer is not None else kind()).SerializeToString()
        except Refusal as refusal:
            response.status.code = 2
            response.status.message = str(refusal)
        except NotImplementedError:
            response.status.code = 12
        try:
            self._send(PLUGIN_SERVICE, stream, RESPONSE, response.SerializeToString())
        except OSError:
            return
        if method == "Synchronize" and isinstance(message, pb.SynchronizeRequest) and not message.more:
            self.synchronized.set()

    def _handle(self, method: str, message: Message) -> Message | None:
        if method in self.answers:
            return self.answers[method](message)
        if isinstance(message, pb.ConfigureRequest):
            self.configured = message
            return pb.ConfigureResponse(events=self.events)
        if isinstance(message, pb.SynchronizeRequest):
            return pb.SynchronizeResponse(more=message.more)
        return None


def main() -> None:
    """As an installed plugin: from the socket in the environment, with the request's lines written to a file."""
    connection = socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"]))
    plugin = Plugin(connection, os.environ["NRI_PLUGIN_NAME"], os.environ["NRI_PLUGIN_IDX"])
    plugin.start()
    assert plugin.configured is not None
    Path(plugin.configured.config).write_text(f"{plugin.index}-{plugin.name} {os.getpid()}")
    plugin.ended.wait()


if __name__ == "__main__":
    main()
