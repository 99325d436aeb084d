"""Which OCI runtime a container gets: what its request asks for, else what the shim was told, else what is there."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_runtimeoptions_v1_pb2 as runtimeoptions_pb2
from atoll.oci.runtime import ENVIRONMENT, OCIRuntime
from atoll.shim import wire
from atoll.shim.reaper import Reaper
from atoll.shim.records import TaskRecord
from atoll.shim.shim import Shim

DEFAULT_ROOT = "/run/atoll/oci"
# In the order of preference where nobody chose.
KNOWN = ("crun", "runc")


def unpack(value: AnyMessage, into: Message) -> None:
    """Decode an Any of `into`'s type; an empty one leaves it as it is, another type too.

    Options of other shims are none of ours. Raises `InvalidArgument` for bytes that do not decode.
    """
    if wire.type_name(value) != into.DESCRIPTOR.full_name:
        return
    try:
        into.ParseFromString(value.value)
    except DecodeError as error:
        raise errors.InvalidArgument(f"{value.type_url}: cannot be decoded: {error}") from error


def options(value: AnyMessage) -> runc_pb2.Options:
    """The runtime options of a request; the task API's address and version in them mean nothing here.

    In runc's form, or in the one that containerd gives any other shim: `runtimeoptions.v1.Options` with the handler's
    table as TOML, in which the keys are runc's (`BinaryName`, `Root`, `SystemdCgroup`). Raises `InvalidArgument`.
    """
    found = runc_pb2.Options()
    unpack(value, found)
    table = runtimeoptions_pb2.Options()
    unpack(value, table)
    if table.config_body:
        _read_table(table.config_body, found)
    return found


def _read_table(text: bytes, into: runc_pb2.Options) -> None:
    fields = {name.replace("_", ""): name for name in into.DESCRIPTOR.fields_by_name}
    try:
        for key, value in tomllib.loads(text.decode()).items():
            if key.lower() not in fields:
                known = ", ".join(sorted(fields))
                raise errors.InvalidArgument(f"runtime options: unknown key {key!r}; known, in any case: {known}")
            setattr(into, fields[key.lower()], value)
    except (ValueError, TypeError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise errors.InvalidArgument(f"runtime options: {error}") from error


def choose(shim: Shim, container_id: str, asked: runc_pb2.Options) -> tuple[OCIRuntime, TaskRecord]:
    """The driver for a container, and the record from which it can be found again."""
    told = shim.request.runtime
    namespace = wire.identifier(shim.request.namespace, "namespace")
    # Options.Root is shared by namespaces, as in the reference shim; what the daemon gives is the folder itself.
    root = str(Path(asked.root) / namespace) if asked.root else told.root or f"{DEFAULT_ROOT}/{namespace}"
    record = TaskRecord(
        id=container_id,
        namespace=namespace,
        binary=str(find_binary(asked.binary_name or told.binary)),
        root=root,
        systemd_cgroup=asked.systemd_cgroup or told.systemd_cgroup,
    )
    return drive(record, shim.reaper), record


def drive(record: TaskRecord, reaper: Reaper) -> OCIRuntime:
    """The driver that a record describes."""
    return OCIRuntime(Path(record.binary), Path(record.root), reaper, systemd_cgroup=record.systemd_cgroup)


def find_binary(name: str) -> Path:
    """The program `name` (a path, or a name searched for); the first known runtime for an empty one."""
    for candidate in (name,) if name else KNOWN:
        found = shutil.which(candidate, path=ENVIRONMENT["PATH"])
        if found is not None:
            return Path(found)
    raise errors.FailedPrecondition(
        f"OCI runtime {name or ' or '.join(KNOWN)}: not found in {ENVIRONMENT['PATH']}; install it or name another one"
    )
