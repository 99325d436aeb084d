from atoll.api import atoll_v1_pb2 as _atoll_v1_pb2
from atoll.api import cri_runtime_v1_pb2 as _cri_runtime_v1_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Spec(_message.Message):
    __slots__ = ("pod", "container", "runtime_handler", "ready", "ready_within_s")
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_HANDLER_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    READY_WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    pod: _cri_runtime_v1_pb2.PodSandboxConfig
    container: _cri_runtime_v1_pb2.ContainerConfig
    runtime_handler: str
    ready: _containers.RepeatedScalarFieldContainer[str]
    ready_within_s: float
    def __init__(self, pod: _Optional[_Union[_cri_runtime_v1_pb2.PodSandboxConfig, _Mapping]] = ..., container: _Optional[_Union[_cri_runtime_v1_pb2.ContainerConfig, _Mapping]] = ..., runtime_handler: _Optional[str] = ..., ready: _Optional[_Iterable[str]] = ..., ready_within_s: _Optional[float] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "size", "generation", "spec", "ready", "booting", "hits", "misses", "error", "created_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BOOTING_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    generation: int
    spec: Spec
    ready: int
    booting: int
    hits: int
    misses: int
    error: str
    created_at: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., generation: _Optional[int] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., ready: _Optional[int] = ..., booting: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., error: _Optional[str] = ..., created_at: _Optional[int] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("name", "spec", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: Spec
    size: int
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., size: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ...) -> None: ...

class ResizeRequest(_message.Message):
    __slots__ = ("name", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("name", "ttl_s", "idle_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttl_s: float
    idle_s: float
    def __init__(self, name: _Optional[str] = ..., ttl_s: _Optional[float] = ..., idle_s: _Optional[float] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: Spec
    def __init__(self, spec: _Optional[_Union[Spec, _Mapping]] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("pod_id", "pod_name", "container_id", "container_name", "rung", "duration_s", "phases")
    class Rung(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        POOL: _ClassVar[AcquireResponse.Rung]
        COLD: _ClassVar[AcquireResponse.Rung]
    POOL: AcquireResponse.Rung
    COLD: AcquireResponse.Rung
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    pod_id: str
    pod_name: str
    container_id: str
    container_name: str
    rung: AcquireResponse.Rung
    duration_s: float
    phases: _containers.RepeatedCompositeFieldContainer[_atoll_v1_pb2.Phase]
    def __init__(self, pod_id: _Optional[str] = ..., pod_name: _Optional[str] = ..., container_id: _Optional[str] = ..., container_name: _Optional[str] = ..., rung: _Optional[_Union[AcquireResponse.Rung, str]] = ..., duration_s: _Optional[float] = ..., phases: _Optional[_Iterable[_Union[_atoll_v1_pb2.Phase, _Mapping]]] = ...) -> None: ...
