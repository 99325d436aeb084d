"""The limits of a pod as an update brings them: of its extension `updated-resources`, and of its runtime spec."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from atoll import errors
from atoll.oci.config import LinuxContainerResources
from atoll.oci.spec import Resources
from atoll.unreadable import UNREADABLE

EXTENSION = "updated-resources"
URL = "io.containerd.cri.v1/UpdatedResources"
NOTHING = LinuxContainerResources()

T = TypeVar("T")


class UpdatedResources(msgspec.Struct, frozen=True, kw_only=True):
    """What containerd's CRI plugin keeps in that extension: the pod's overhead, and the sum of its containers."""

    overhead: LinuxContainerResources | None = msgspec.field(default=None, name="Overhead")
    resources: LinuxContainerResources | None = msgspec.field(default=None, name="Resources")


class _Linux(msgspec.Struct, frozen=True):
    resources: Resources | None = None


class _Spec(msgspec.Struct, frozen=True):
    linux: _Linux | None = None
    annotations: dict[str, str] | None = None


def decode_updated(value: bytes) -> UpdatedResources:
    """The extension's JSON; raises `InvalidArgument`."""
    return _decode(value, UpdatedResources, f"extension {EXTENSION}")


def decode_resources(value: bytes) -> Resources:
    """The JSON of an OCI LinuxResources; raises `InvalidArgument`."""
    return _decode(value, Resources, "linux resources")


def of_spec(value: bytes) -> tuple[Resources | None, dict[str, str]]:
    """The limits and the annotations of an OCI runtime spec; raises `InvalidArgument`."""
    spec = _decode(value, _Spec, "runtime spec")
    return spec.linux.resources if spec.linux is not None else None, spec.annotations or {}


def merged(now: LinuxContainerResources, update: LinuxContainerResources | None) -> LinuxContainerResources:
    """`now` with what `update` sets: a field of zero stays as it is."""
    if update is None:
        return now
    names = LinuxContainerResources.__struct_fields__
    changes = {name: value for name in names if (value := getattr(update, name)) != getattr(NOTHING, name)}
    return msgspec.structs.replace(now, **changes)


def in_cri_words(resources: Resources) -> LinuxContainerResources:
    """What of OCI's limits the CRI has words for."""
    cpu, memory = resources.cpu, resources.memory
    return LinuxContainerResources(
        cpu_period=(cpu.period if cpu is not None else 0) or 0,
        cpu_quota=(cpu.quota if cpu is not None else 0) or 0,
        cpu_shares=(cpu.shares if cpu is not None else 0) or 0,
        cpuset_cpus=cpu.cpus if cpu is not None else "",
        cpuset_mems=cpu.mems if cpu is not None else "",
        memory_limit_in_bytes=(memory.limit if memory is not None else 0) or 0,
        memory_swap_limit_in_bytes=(memory.swap if memory is not None else 0) or 0,
    )


def _decode(value: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"{what}: {error}") from error
