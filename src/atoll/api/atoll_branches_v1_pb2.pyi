from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Snapshot(_message.Message):
    __slots__ = ("id", "name", "container_id", "container_name", "pod_id", "image", "bytes", "inodes", "created_at", "in_use")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    container_id: str
    container_name: str
    pod_id: str
    image: str
    bytes: int
    inodes: int
    created_at: int
    in_use: bool
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., container_id: _Optional[str] = ..., container_name: _Optional[str] = ..., pod_id: _Optional[str] = ..., image: _Optional[str] = ..., bytes: _Optional[int] = ..., inodes: _Optional[int] = ..., created_at: _Optional[int] = ..., in_use: _Optional[bool] = ...) -> None: ...

class Container(_message.Message):
    __slots__ = ("id", "name", "pod_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    pod_id: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., pod_id: _Optional[str] = ...) -> None: ...

class TakeRequest(_message.Message):
    __slots__ = ("container_id", "name")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    name: str
    def __init__(self, container_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class TakeResponse(_message.Message):
    __slots__ = ("snapshot", "paused_s", "copied_bytes", "shared_bytes")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    PAUSED_S_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    paused_s: float
    copied_bytes: int
    shared_bytes: int
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., paused_s: _Optional[float] = ..., copied_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    def __init__(self, snapshot: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("snapshot", "pod_id", "count", "no_start")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    POD_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NO_START_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    pod_id: str
    count: int
    no_start: bool
    def __init__(self, snapshot: _Optional[str] = ..., pod_id: _Optional[str] = ..., count: _Optional[int] = ..., no_start: _Optional[bool] = ...) -> None: ...

class ForkResponse(_message.Message):
    __slots__ = ("containers",)
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    containers: _containers.RepeatedCompositeFieldContainer[Container]
    def __init__(self, containers: _Optional[_Iterable[_Union[Container, _Mapping]]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("container_id", "snapshot", "timeout_s")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    snapshot: str
    timeout_s: float
    def __init__(self, container_id: _Optional[str] = ..., snapshot: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DiffRequest(_message.Message):
    __slots__ = ("container_id", "since")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    since: str
    def __init__(self, container_id: _Optional[str] = ..., since: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "path")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ADDED: _ClassVar[Change.Kind]
        CHANGED: _ClassVar[Change.Kind]
        DELETED: _ClassVar[Change.Kind]
    ADDED: Change.Kind
    CHANGED: Change.Kind
    DELETED: Change.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    kind: Change.Kind
    path: bytes
    def __init__(self, kind: _Optional[_Union[Change.Kind, str]] = ..., path: _Optional[bytes] = ...) -> None: ...

class DiffResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("container_id", "since")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    since: str
    def __init__(self, container_id: _Optional[str] = ..., since: _Optional[str] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("container_id", "reference", "changes", "author", "message", "no_pause")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NO_PAUSE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    reference: str
    changes: _containers.RepeatedScalarFieldContainer[str]
    author: str
    message: str
    no_pause: bool
    def __init__(self, container_id: _Optional[str] = ..., reference: _Optional[str] = ..., changes: _Optional[_Iterable[str]] = ..., author: _Optional[str] = ..., message: _Optional[str] = ..., no_pause: _Optional[bool] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...
