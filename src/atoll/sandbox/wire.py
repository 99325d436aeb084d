"""Protobuf and the values of the sandbox contract, both ways.

`to_x` makes a message, `from_x` a value. A message field that is absent is `None`, or the contract's default.
Times are kept to the microsecond. What a peer sends and nothing of ours can hold is `Unknown` where it is an
answer, `InvalidArgument` where it is a request.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from atoll import errors
from atoll.api import containerd_services_sandbox_v1_pb2 as wire
from atoll.api import containerd_types_pb2 as types
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Mount,
    Platform,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.unreadable import UNREADABLE

REASON = "reason"
"""The key of a status' info, a JSON text, that carries `ControllerStatus.reason`: the message has no field for it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_UINT32_MAX = (1 << 32) - 1


def to_any(value: TypedAny) -> any_pb2.Any:
    return any_pb2.Any(type_url=value.type_url, value=value.value)


def from_any(value: any_pb2.Any) -> TypedAny:
    return TypedAny(type_url=value.type_url, value=value.value)


def _optional_any(value: TypedAny | None) -> any_pb2.Any | None:
    return None if value is None else to_any(value)


def to_mount(mount: Mount) -> types.Mount:
    return types.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def from_mount(mount: types.Mount) -> Mount:
    return Mount(type=mount.type, source=mount.source, target=mount.target, options=tuple(mount.options))


def to_timestamp(time: datetime) -> Timestamp:
    """The message of a time that has a time zone."""
    seconds, rest = divmod(time - _EPOCH, _SECOND)
    return Timestamp(seconds=seconds, nanos=rest // _MICROSECOND * 1000)


def from_timestamp(value: Timestamp, *, fault: type[errors.AtollError] = errors.Unknown) -> datetime:
    """The time, that of year 1 too, which Go has for none; raises `fault` for one that no calendar has."""
    if not 0 <= value.nanos < 1_000_000_000:
        raise fault(f"a time that is none: {value.nanos} nanoseconds")
    try:
        return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as error:
        raise fault(f"a time that is none: {value.seconds} seconds from the epoch") from error


def _uint32(value: int, what: str) -> int:
    if not 0 <= value <= _UINT32_MAX:
        raise errors.Internal(f"{what} {value}: does not fit into the 32 bits of its field")
    return value


# The record


def to_sandbox(sandbox: Sandbox) -> types.Sandbox:
    return types.Sandbox(
        sandbox_id=sandbox.id,
        runtime=types.Sandbox.Runtime(name=sandbox.runtime.name, options=_optional_any(sandbox.runtime.options)),
        spec=_optional_any(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=to_timestamp(sandbox.created_at),
        updated_at=to_timestamp(sandbox.updated_at),
        extensions={name: to_any(value) for name, value in sandbox.extensions.items()},
        sandboxer=sandbox.sandboxer,
    )


def from_sandbox(
    sandbox: types.Sandbox, *, sandboxer: str = "", fault: type[errors.AtollError] = errors.InvalidArgument
) -> Sandbox:
    """The record; `sandboxer` stands in where it names none, this moment where it has no times."""
    now = datetime.now(UTC)
    runtime = sandbox.runtime
    return Sandbox(
        id=sandbox.sandbox_id,
        sandboxer=sandbox.sandboxer or sandboxer,
        runtime=Runtime(name=runtime.name, options=from_any(runtime.options) if runtime.HasField("options") else None),
        spec=from_any(sandbox.spec) if sandbox.HasField("spec") else None,
        labels=dict(sandbox.labels),
        extensions={name: from_any(value) for name, value in sandbox.extensions.items()},
        created_at=from_timestamp(sandbox.created_at, fault=fault) if sandbox.HasField("created_at") else now,
        updated_at=from_timestamp(sandbox.updated_at, fault=fault) if sandbox.HasField("updated_at") else now,
    )


# The controller's requests and answers


def to_create(sandbox: Sandbox, options: CreateOptions, sandboxer: str) -> wire.ControllerCreateRequest:
    return wire.ControllerCreateRequest(
        sandbox_id=sandbox.id,
        rootfs=[to_mount(mount) for mount in options.rootfs],
        options=_optional_any(options.options),
        netns_path=options.netns_path,
        annotations=dict(options.annotations),
        sandbox=to_sandbox(sandbox),
        sandboxer=sandboxer,
    )


def from_create(request: wire.ControllerCreateRequest) -> tuple[Sandbox, CreateOptions]:
    """The record, which has the request's ID alone where none was sent, and the options."""
    sandbox = request.sandbox
    if sandbox.sandbox_id and request.sandbox_id and sandbox.sandbox_id != request.sandbox_id:
        raise errors.InvalidArgument(
            f"sandbox {request.sandbox_id}: the record sent with it is of sandbox {sandbox.sandbox_id}"
        )
    record = types.Sandbox()
    record.CopyFrom(sandbox)
    record.sandbox_id = request.sandbox_id or sandbox.sandbox_id
    options = CreateOptions(
        rootfs=tuple(from_mount(mount) for mount in request.rootfs),
        options=from_any(request.options) if request.HasField("options") else None,
        netns_path=request.netns_path,
        annotations=dict(request.annotations),
    )
    return from_sandbox(record, sandboxer=request.sandboxer), options


def to_instance(instance: ControllerInstance) -> wire.ControllerStartResponse:
    return wire.ControllerStartResponse(
        sandbox_id=instance.sandbox_id,
        pid=_uint32(instance.pid, "pid"),
        created_at=to_timestamp(instance.created_at),
        labels=dict(instance.labels),
        address=instance.address,
        version=_uint32(instance.version, "version"),
        spec=_optional_any(instance.spec),
    )


def from_instance(answer: wire.ControllerStartResponse, sandbox_id: str) -> ControllerInstance:
    """The instance of `sandbox_id`, whatever ID the answer repeats."""
    return ControllerInstance(
        sandbox_id=sandbox_id,
        pid=answer.pid,
        created_at=from_timestamp(answer.created_at),
        labels=dict(answer.labels),
        address=answer.address,
        version=answer.version,
        spec=from_any(answer.spec) if answer.HasField("spec") else None,
    )


def to_platform(platform: Platform) -> types.Platform:
    return types.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


def from_platform(platform: types.Platform) -> Platform:
    return Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


def to_exit(ended: ExitStatus) -> wire.ControllerWaitResponse:
    return wire.ControllerWaitResponse(
        exit_status=_uint32(ended.exit_status, "exit status"), exited_at=to_timestamp(ended.exited_at)
    )


def from_exit(answer: wire.ControllerWaitResponse) -> ExitStatus:
    return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))


def _encode_text(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _take_text(info: dict[str, str], key: str) -> str:
    """Take a JSON text out of `info`; what is none stays there."""
    try:
        text = msgspec.json.decode(info.get(key, '""'), type=str)
    except UNREADABLE:
        return ""
    info.pop(key, None)
    return text


def to_status(status: ControllerStatus) -> wire.ControllerStatusResponse:
    info = dict(status.info)
    if status.reason:
        info[REASON] = _encode_text(status.reason)
    return wire.ControllerStatusResponse(
        sandbox_id=status.sandbox_id,
        pid=_uint32(status.pid, "pid"),
        state=status.state.value,
        info=info,
        created_at=None if status.created_at is None else to_timestamp(status.created_at),
        exited_at=None if status.exited_at is None else to_timestamp(status.exited_at),
        extra=_optional_any(status.extra),
        address=status.address,
        version=_uint32(status.version, "version"),
    )


def from_status(answer: wire.ControllerStatusResponse, sandbox_id: str) -> ControllerStatus:
    """The status of `sandbox_id`; a state that nobody knows is `UNKNOWN`, with that as its reason."""
    known = answer.state in set(State)
    info = dict(answer.info)
    reason = _take_text(info, REASON)
    return ControllerStatus(
        sandbox_id=sandbox_id,
        state=State(answer.state) if known else State.UNKNOWN,
        pid=answer.pid,
        info=info,
        created_at=_given(answer.created_at) if answer.HasField("created_at") else None,
        exited_at=_given(answer.exited_at) if answer.HasField("exited_at") else None,
        extra=from_any(answer.extra) if answer.HasField("extra") and answer.extra.type_url else None,
        address=answer.address,
        version=answer.version,
        reason=reason if known else f"the state {answer.state!r} is not known",
    )


def _given(value: Timestamp) -> datetime | None:
    """A time of a Go program, whose zero is in year 1."""
    time = from_timestamp(value)
    return None if time.year == 1 else time


def to_metric(metric: Metric) -> types.Metric:
    return types.Metric(timestamp=to_timestamp(metric.timestamp), id=metric.id, data=to_any(metric.data))


def from_metric(metric: types.Metric) -> Metric:
    return Metric(timestamp=from_timestamp(metric.timestamp), id=metric.id, data=from_any(metric.data))
