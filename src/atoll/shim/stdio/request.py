"""What is asked for a process's stdio, and the URIs that name where a stream goes.

    (empty)                                    null: the process gets /dev/null
    /path  fifo:///path                        a named pipe made by the client
    file:///path                               appended to, 0644, folders made
    binary:///program?key=value                a log program (fds 3, 4, 5); binary-v2 says ready by a byte
    cri:///path?max_line=N                     CRI log lines in that file, and live attach; `cri:` has no file
    cri:///path?below=N                        the same, and no symbolic link among the last N names of the path
    <proto>+<address>?streaming_id=<id>        live only and lossless: the process waits for its client

`cri` names its live streams `<id>-stdin`, `<id>-stdout`, `<id>-stderr` where the query has no `streaming_id`;
`stdin_once=1` in the query of stdin closes it when the client that wrote it ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from atoll import errors
from atoll.shim.stdio.log import DEFAULT_MAX_LINE_BYTES

_STREAMING = re.compile(r"[A-Za-z][A-Za-z0-9.-]*\+.+", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioRequest:
    """The stdio of a container's init process, or of an exec where `exec_id` is set."""

    id: str
    exec_id: str = ""
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    namespace: str = ""

    @property
    def process(self) -> str:
        """The id that names the process: the exec's, else the container's."""
        return self.exec_id or self.id


@dataclass(frozen=True, slots=True)
class Null:
    """Nothing in, nothing kept."""


@dataclass(frozen=True, slots=True)
class Fifo:
    path: Path


@dataclass(frozen=True, slots=True)
class File:
    path: Path


@dataclass(frozen=True, slots=True)
class Binary:
    """A log program; `needs_ready_byte` where closing the ready pipe alone does not mean ready."""

    program: Path
    arguments: tuple[str, ...]
    needs_ready_byte: bool


@dataclass(frozen=True, slots=True)
class Cri:
    """A log file (None: no log) and a live stream that never slows the process; `below` as `log.open_log`."""

    path: Path | None
    max_line: int
    streaming_id: str
    stdin_once: bool
    below: int = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """A live stream without a log: the process waits while its client does not read."""

    streaming_id: str
    stdin_once: bool


Target: TypeAlias = Null | Fifo | File | Binary | Cri | Stream


def parse_target(uri: str, *, stream: str, process: str) -> Target:
    """The target that `uri` names for `stream` (stdin, stdout, stderr) of `process`.

    `InvalidArgument` names the URI and what is wrong.
    """
    if not uri:
        return Null()
    if "\0" in uri:
        raise errors.InvalidArgument(f"{stream} {uri!r}: holds a NUL byte")
    if uri.startswith("/"):
        return Fifo(_absolute(uri, uri, stream))
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise errors.InvalidArgument(f"{stream} {uri!r}: {error}") from None
    path = unquote(parts.path)
    match parts.scheme:
        case "fifo":
            return Fifo(_absolute(path, uri, stream))
        case "file":
            return File(_absolute(path, uri, stream))
        case "binary" | "binary-v2":
            arguments = tuple(word for pair in query for word in pair)
            return Binary(_absolute(path, uri, stream), arguments, parts.scheme == "binary-v2")
        case "cri":
            return _cri(path, dict(query), uri, stream, process)
        case _ if _STREAMING.fullmatch(uri):
            options = dict(query)
            if not options.get("streaming_id"):
                raise errors.InvalidArgument(f"{stream} {uri!r}: has no streaming_id in its query")
            return Stream(options["streaming_id"], options.get("stdin_once") == "1")
        case _:
            raise errors.InvalidArgument(
                f"{stream} {uri!r}: unknown scheme {parts.scheme!r}; use fifo, file, binary, binary-v2, cri or a stream"
            )


def _cri(path: str, options: dict[str, str], uri: str, stream: str, process: str) -> Cri:
    max_line = options.get("max_line", str(DEFAULT_MAX_LINE_BYTES))
    try:
        limit = int(max_line)
    except ValueError:
        raise errors.InvalidArgument(f"{stream} {uri!r}: max_line {max_line!r} is not a number") from None
    below = options.get("below", "1")
    if not (below.isascii() and below.isdecimal() and 0 < int(below) <= max(path.count("/"), 1)):
        raise errors.InvalidArgument(f"{stream} {uri!r}: below {below!r} is no number of names of its path")
    return Cri(
        path=_absolute(path, uri, stream) if path else None,
        below=int(below),
        max_line=limit,
        streaming_id=options.get("streaming_id") or f"{process}-{stream}",
        stdin_once=options.get("stdin_once") == "1",
    )


def _absolute(path: str, uri: str, stream: str) -> Path:
    if not path.startswith("/") or "\0" in path or ".." in Path(path).parts or path.endswith("/"):
        raise errors.InvalidArgument(f"{stream} {uri!r}: needs an absolute path of a file, without '..'")
    return Path(path)


def cri_uri(path: Path | None = None, *, max_line: int | None = None, stdin_once: bool = False, below: int = 1) -> str:
    """The URI of a `Cri` target; without `path` it has live attach and no log."""
    options: dict[str, str] = {"below": str(below)} if below > 1 else {}
    if max_line is not None:
        options["max_line"] = str(max_line)
    if stdin_once:
        options["stdin_once"] = "1"
    head = f"cri://{quote(str(path))}" if path is not None else "cri:"
    return f"{head}?{urlencode(options)}" if options else head


def stream_uri(address: str, streaming_id: str) -> str:
    """The URI of a `Stream` target, served by the ttrpc server at `address` (a socket's path or `unix://` address)."""
    place = address if "://" in address else f"unix://{address}"
    return f"ttrpc+{place}?{urlencode({'streaming_id': streaming_id})}"
