"""How the parts of a sandbox record are kept: JSON texts, legible with any SQLite tool.

runtime     {"name": "...", "options": {"type_url": "...", "value": "<base64>"} | null}
spec        {"type_url": "...", "value": "<base64>"} | null
labels      {"key": "value"}
extensions  {"name": {"type_url": "...", "value": "<base64>"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TypeVar

import msgspec

from atoll import errors
from atoll.sandbox.controller import Runtime, TypedAny
from atoll.unreadable import UNREADABLE

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_runtime: msgspec.json.Decoder[Runtime] = msgspec.json.Decoder(Runtime)
_spec: msgspec.json.Decoder[TypedAny | None] = msgspec.json.Decoder(TypedAny | None)
_labels: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])
_extensions: msgspec.json.Decoder[dict[str, TypedAny]] = msgspec.json.Decoder(dict[str, TypedAny])


def encode(part: Runtime | TypedAny | Mapping[str, str] | Mapping[str, TypedAny] | None) -> bytes:
    """The JSON text of one part of a record."""
    return msgspec.json.encode(dict(part) if isinstance(part, Mapping) else part)


def decode_runtime(text: bytes) -> Runtime:
    return _read(_runtime, text, "runtime")


def decode_spec(text: bytes) -> TypedAny | None:
    return _read(_spec, text, "spec")


def decode_labels(text: bytes) -> Mapping[str, str]:
    return MappingProxyType(_read(_labels, text, "labels"))


def decode_extensions(text: bytes) -> Mapping[str, TypedAny]:
    return MappingProxyType(_read(_extensions, text, "extensions"))


def _read(decoder: msgspec.json.Decoder[T], text: bytes, what: str) -> T:
    try:
        return decoder.decode(text)
    except UNREADABLE as error:
        raise errors.DataLoss(f"{what}: cannot be read: {error}") from error


def to_microseconds(time: datetime) -> int:
    """Microseconds since the epoch, exact; `time` has a time zone."""
    return (time - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """The UTC time; `DataLoss` where no calendar has it."""
    try:
        return _EPOCH + value * _MICROSECOND
    except OverflowError as error:
        raise errors.DataLoss(f"time {value}: out of range") from error
