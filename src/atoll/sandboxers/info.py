"""What a sandbox's record tells of itself in a verbose status."""

from __future__ import annotations

import base64

import msgspec

from atoll.sandbox.controller import Runtime, Sandbox, TypedAny
from atoll.sandbox.info import NOTHING
from atoll.sandbox.metadata import EXTENSION
from atoll.unreadable import UNREADABLE


class _Inner(msgspec.Struct):
    cni_result: msgspec.Raw = msgspec.field(default=NOTHING, name="CNIResult")
    runtime_handler: str = msgspec.field(default="", name="RuntimeHandler")


class _Outer(msgspec.Struct):
    metadata: _Inner = msgspec.field(default_factory=_Inner, name="Metadata")


def of_record(sandbox: Sandbox) -> dict[str, object]:
    """The fields of `SandboxInfo` that come of the record."""
    metadata = sandbox.extensions.get(EXTENSION)
    inner = _inner(metadata)
    return {
        "labels": dict(sandbox.labels),
        "runtime_type": sandbox.runtime.name,
        "runtime_options": _options(sandbox.runtime),
        "runtime_handler": inner.runtime_handler,
        "cni_result": inner.cni_result,
        "sandbox_metadata": _raw(metadata),
    }


def _options(runtime: Runtime) -> msgspec.Raw:
    if runtime.options is None:
        return NOTHING
    told = {"type_url": runtime.options.type_url, "value": base64.b64encode(runtime.options.value).decode()}
    return msgspec.Raw(msgspec.json.encode(told))


def _raw(value: TypedAny | None) -> msgspec.Raw:
    """The JSON of an extension; null for what is none."""
    if value is None:
        return NOTHING
    try:
        msgspec.json.decode(value.value, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return NOTHING
    return msgspec.Raw(value.value)


def _inner(metadata: TypedAny | None) -> _Inner:
    if metadata is None:
        return _Inner()
    try:
        return msgspec.json.decode(metadata.value, type=_Outer).metadata
    except UNREADABLE:
        return _Inner()
