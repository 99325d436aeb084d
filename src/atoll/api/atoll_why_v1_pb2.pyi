from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("pod",)
    POD_FIELD_NUMBER: _ClassVar[int]
    pod: str
    def __init__(self, pod: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("operation", "subject", "name", "started_at", "duration", "waits_on", "error", "frames")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    WAITS_ON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    operation: str
    subject: str
    name: str
    started_at: int
    duration: int
    waits_on: str
    error: str
    frames: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, operation: _Optional[str] = ..., subject: _Optional[str] = ..., name: _Optional[str] = ..., started_at: _Optional[int] = ..., duration: _Optional[int] = ..., waits_on: _Optional[str] = ..., error: _Optional[str] = ..., frames: _Optional[_Iterable[str]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "parent", "role", "command", "state", "wait_channel", "age_s")
    PID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    pid: int
    parent: int
    role: str
    command: str
    state: str
    wait_channel: str
    age_s: float
    def __init__(self, pid: _Optional[int] = ..., parent: _Optional[int] = ..., role: _Optional[str] = ..., command: _Optional[str] = ..., state: _Optional[str] = ..., wait_channel: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("pod_id", "name", "state", "reason", "now", "steps", "processes", "debts")
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    DEBTS_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    name: str
    state: str
    reason: str
    now: int
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    debts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pod_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., now: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., debts: _Optional[_Iterable[str]] = ...) -> None: ...
