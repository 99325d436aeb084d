"""Small conversions between protobuf and the shim's own values."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from atoll import errors

IDENTIFIER_MAX = 76
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def identifier(value: str, what: str) -> str:
    """`value` if it is a containerd identifier, so that it may name a file; else `InvalidArgument`."""
    if len(value) > IDENTIFIER_MAX or _IDENTIFIER.fullmatch(value) is None:
        raise errors.InvalidArgument(
            f"{what} {value[:IDENTIFIER_MAX]!r}: must be letters and digits with single . _ - between, "
            f"at most {IDENTIFIER_MAX}"
        )
    return value


def absolute(path: str, what: str) -> Path:
    """`path` if it is absolute and goes nowhere upwards; else `InvalidArgument`."""
    found = Path(path)
    if not path.startswith("/") or ".." in found.parts or "\0" in path:
        raise errors.InvalidArgument(f"{what} {path!r}: must be an absolute path without '..'")
    return found


def pack(message: Message) -> AnyMessage:
    """An Any with the bare type name, the form that containerd compares."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def type_name(value: AnyMessage) -> str:
    """The type's full name, without a URL in front."""
    return value.type_url.rpartition("/")[2]


def timestamp(at_ns: int) -> Timestamp:
    """A timestamp from ns since the epoch."""
    return Timestamp(seconds=at_ns // 1_000_000_000, nanos=at_ns % 1_000_000_000)
