"""Between protobuf messages and config structs of the same field names.

A struct need not have every field of the message: what it lacks is not read and not written.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message

from atoll import errors

S = TypeVar("S", bound=msgspec.Struct)
M = TypeVar("M", bound=Message)
Read = Callable[[Any], Any]


def to_struct(kind: type[S], message: Message) -> S:
    """The struct of `kind` with the values of `message`; `InvalidArgument` names an enum value unknown to us."""
    values: dict[str, Any] = {}
    for name, read, presence in _fields(kind):
        if presence and not message.HasField(name):
            continue
        try:
            values[name] = read(getattr(message, name))
        except ValueError as error:
            raise errors.InvalidArgument(f"{name}: {error}") from None
    return kind(**values)


def to_message(value: msgspec.Struct, message: M) -> M:
    """Fill `message` from the struct and return it."""
    for name, _, _ in _fields(type(value)):
        _assign(message, name, getattr(value, name))
    return message


def _assign(message: Message, name: str, value: Any) -> None:
    if value is None:
        return
    target = getattr(message, name)
    if isinstance(value, msgspec.Struct):
        target.SetInParent()
        to_message(value, target)
    elif isinstance(value, tuple):
        for item in typing.cast("tuple[Any, ...]", value):
            if isinstance(item, msgspec.Struct):
                to_message(item, target.add())
            else:
                target.append(item)
    elif isinstance(value, dict):
        target.update(value)
    else:
        setattr(message, name, value)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Read, bool], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((name, *_reader(hints[name])) for name in kind.__struct_fields__)


def _reader(hint: Any) -> tuple[Read, bool]:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in typing.get_args(hint) if argument is not type(None))
        return _reader(inner)[0], True
    if origin is tuple:
        item, _ = _reader(typing.get_args(hint)[0])
        return lambda values: tuple(item(value) for value in values), False
    if origin is dict:
        return dict, False
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return functools.partial(to_struct, hint), False
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return hint, False
    return _same, False


def _same(value: Any) -> Any:
    return value
