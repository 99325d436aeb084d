"""A client of streaming servers for tests, blocking: SPDY/3.1 and WebSocket, as kubectl's libraries speak them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Self
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import ConnectionState

from atoll.streaming import spdy_codec as codec
from tests.integration.leaks import wait_until

TIMEOUT_S = 20.0
READ_BYTES = 1 << 20


class Answer(Exception):
    """The server's answer where it did not upgrade."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


def connect(url: str, tls: ssl.SSLContext | None = None) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=TIMEOUT_S)
    return tls.wrap_socket(connection, server_hostname=parts.hostname) if tls is not None else connection


def request(connection: socket.socket, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
    """Send a request and read the head of its answer: status, head, what came behind it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(4096)
        if not piece:
            break
        head += piece
    text, _, rest = head.partition(b"\r\n\r\n")
    if not text:
        raise Answer(0, "")
    return int(text.split()[1]), text.decode(), rest


class Spdy:
    """A client's end of a SPDY session; what comes is kept by stream in `data`, or given to `taker`."""

    def __init__(
        self,
        url: str,
        *protocols: str,
        tls: ssl.SSLContext | None = None,
        taker: Callable[[int, memoryview], None] | None = None,
        method: str = "POST",
    ) -> None:
        self.socket = connect(url, tls)
        headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
        if protocols:
            headers["X-Stream-Protocol-Version"] = ", ".join(protocols)
        try:
            status, self.head, rest = request(self.socket, method, urlsplit(url).path, headers)
            if status != 101:
                raise Answer(status, self.head + rest.decode())
        except BaseException:
            self.socket.close()
            raise
        self._init(taker)
        self._take(rest)

    def _init(self, taker: Callable[[int, memoryview], None] | None = None) -> None:
        self._encoder = codec.Encoder()
        self._decoder = codec.Decoder()
        self._taker = taker
        self._next = 1
        self._buffer = bytearray(READ_BYTES)
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.replied: set[int] = set()
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.gone = False
        self.pongs: list[int] = []
        self.window_updates = 0
        self.away: codec.GoAway | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        """Bytes of the session, whatever they are."""
        self.socket.sendall(data)

    def read(self) -> bytes | memoryview:
        try:
            size = self.socket.recv_into(self._buffer)
        except ConnectionResetError:
            return b""
        return memoryview(self._buffer)[:size]

    def open(self, *, fin: bool = False, **headers: str) -> int:
        """A new stream with these headers; kubectl writes names in lower case."""
        stream, self._next = self._next, self._next + 2
        self.write(self._encoder.syn_stream(stream, headers, fin=fin))
        return stream

    def send(self, stream: int, data: bytes = b"", *, fin: bool = False) -> None:
        self.write(codec.data_head(stream, len(data), fin=fin) + data)

    def feed(self, stream: int, chunk: bytes, count: int) -> threading.Thread:
        """Send a chunk so many times, and the end, from a thread."""
        frame = codec.data_head(stream, len(chunk)) + chunk

        def work() -> None:
            try:
                for _ in range(count):
                    self.write(frame)
                self.send(stream, fin=True)
            except OSError:
                return

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def until(self, done: Callable[[], bool]) -> Self:
        """Take what comes until `done`, or the end of the connection."""
        while not done() and not self.gone:
            data = self.read()
            if not data:
                self.gone = True
                return self
            self._take(data)
        return self

    def _take(self, data: bytes | memoryview) -> None:
        for event in self._decoder.feed(data):
            match event:
                case codec.Data(stream_id=stream, chunk=chunk, fin=fin):
                    if self._taker is not None and chunk:
                        self._taker(stream, memoryview(chunk))
                    else:
                        self.data[stream] += chunk
                    if fin:
                        self.ended.add(stream)
                case codec.SynReply(stream_id=stream):
                    self.replied.add(stream)
                case codec.RstStream(stream_id=stream, reason=reason):
                    self.reset[stream] = reason
                case codec.Ping(ping_id=number):
                    self.pongs.append(number)
                case codec.WindowUpdate():
                    self.window_updates += 1
                case codec.GoAway():
                    self.away = event
                case _:
                    pass


class SpdyCommand:
    """An exec or attach over SPDY; streams are opened in kubectl's order."""

    def __init__(
        self,
        url: str,
        protocol: str,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool = False,
        taker: Callable[[int, memoryview], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.session = Spdy(url, *([protocol] if protocol else []), taker=taker, tls=tls)
        wanted = {"error": True, "stdin": stdin, "stdout": stdout, "stderr": stderr and not tty, "resize": tty}
        self.ids = {name: self.session.open(streamtype=name) for name, is_wanted in wanted.items() if is_wanted}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.socket.close()

    def text(self, name: str) -> bytes:
        return bytes(self.session.data[self.ids[name]])

    def stdin(self, data: bytes = b"", *, fin: bool = False) -> None:
        self.session.send(self.ids["stdin"], data, fin=fin)

    def resize(self, width: int, height: int) -> None:
        self.session.send(self.ids["resize"], b'{"Width":%d,"Height":%d}\n' % (width, height))

    def until(self, name: str, text: bytes) -> Self:
        """Take what comes until a stream has `text`; an error where it ends without."""
        self.session.until(lambda: text in self.text(name))
        assert text in self.text(name), (self.session.data, self.session.reset)
        return self

    def wait(self) -> Self:
        """Until the streams that we read have ended."""
        wanted = {self.ids[name] for name in ("error", "stdout", "stderr") if name in self.ids}
        self.session.until(lambda: wanted <= self.session.ended | set(self.session.reset))
        assert wanted <= self.session.ended, (self.session.ended, self.session.reset, self.session.gone)
        return self


class WebSocket:
    """A client's end of a WebSocket; messages are kept in `messages`."""

    def __init__(self, url: str, *protocols: str) -> None:
        parts = urlsplit(url)
        self.socket = connect(url)
        self._connection = WSConnection(ConnectionType.CLIENT)
        asked = events.Request(host="test", target=parts.path, subprotocols=list(protocols))
        self.socket.sendall(self._connection.send(asked))
        self.messages: list[bytes] = []
        self.protocol: str | None = None
        self.closed: int | None = None
        self.gone = False
        self._partial = bytearray()
        self._accepted = False
        self._refused = 0
        self.until(lambda: self._accepted or bool(self._refused))
        if not self._accepted:
            self.socket.close()
            raise Answer(self._refused, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, message: bytes | str) -> None:
        event = events.TextMessage(message) if isinstance(message, str) else events.BytesMessage(message)
        self.socket.sendall(self._connection.send(event))

    def close(self) -> None:
        self.socket.sendall(self._connection.send(events.CloseConnection(1000)))

    def until(self, done: Callable[[], bool]) -> Self:
        """Take what comes until `done`, or the end of the connection."""
        while not done() and not self.gone:
            try:
                data = self.socket.recv(READ_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                self.gone = True
                return self
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._take(event)
        return self

    def _take(self, event: events.Event) -> None:
        match event:
            case events.AcceptConnection():
                self.protocol, self._accepted = event.subprotocol, True
            case events.RejectConnection():
                self._refused = event.status_code
            case events.Message():
                self._partial += event.data if isinstance(event.data, bytes | bytearray) else event.data.encode()
                if event.message_finished:
                    self.messages.append(bytes(self._partial))
                    self._partial.clear()
            case events.CloseConnection():
                self.closed = int(event.code)
                if self._connection.state is ConnectionState.REMOTE_CLOSING:
                    self.socket.sendall(self._connection.send(event.response()))
            case _:
                pass


class Tunnelled(Spdy):
    """A SPDY session inside a WebSocket."""

    def __init__(self, url: str) -> None:
        self._websocket = WebSocket(url, "SPDY/3.1+portforward.k8s.io")
        self.socket = self._websocket.socket
        self._init()

    def write(self, data: bytes) -> None:
        self._websocket.send(data)

    def read(self) -> bytes | memoryview:
        self._websocket.until(lambda: bool(self._websocket.messages))
        found, self._websocket.messages = self._websocket.messages, []
        return b"".join(found)


def settles(check: Callable[[], bool], *, within: float = 5.0) -> bool:
    """Whether `check` holds soon."""
    return wait_until(check, within=within)
