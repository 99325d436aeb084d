from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lease(_message.Message):
    __slots__ = ("pod_id", "pod_name", "ttl_s", "idle_s", "left_s", "in_use", "reason", "ended_at")
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    pod_name: str
    ttl_s: float
    idle_s: float
    left_s: float
    in_use: bool
    reason: str
    ended_at: int
    def __init__(self, pod_id: _Optional[str] = ..., pod_name: _Optional[str] = ..., ttl_s: _Optional[float] = ..., idle_s: _Optional[float] = ..., left_s: _Optional[float] = ..., in_use: _Optional[bool] = ..., reason: _Optional[str] = ..., ended_at: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("pod_id",)
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    def __init__(self, pod_id: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("pod_id", "ttl_s", "idle_s")
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    ttl_s: float
    idle_s: float
    def __init__(self, pod_id: _Optional[str] = ..., ttl_s: _Optional[float] = ..., idle_s: _Optional[float] = ...) -> None: ...

class EndRequest(_message.Message):
    __slots__ = ("pod_id",)
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    def __init__(self, pod_id: _Optional[str] = ...) -> None: ...

class EndResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Expired(_message.Message):
    __slots__ = ("pod_id", "pod_name", "reason")
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    pod_name: str
    reason: str
    def __init__(self, pod_id: _Optional[str] = ..., pod_name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
