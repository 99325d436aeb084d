"""What an OCI runtime can do, from its `features` command or, where it has none, from its version line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from atoll import errors
from atoll.unreadable import UNREADABLE

T = TypeVar("T")

CRUN_RECURSIVE_READ_ONLY = (1, 4)
CRUN_ID_MAPPED_MOUNTS = (1, 4)
RUNC_ID_MAPPED_MOUNTS = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFeatures:
    """Abilities that the spec builder, CRI's runtime handlers and `doctor` ask for.

    `document` is the JSON of the runtime's own answer, empty where it has no such command.
    `seccomp_bpf`: takes a compiled filter by annotation. `no_users`: why pods can have no user namespaces of their own.
    """

    name: str
    version: str
    seccomp: bool = False
    apparmor: bool = False
    selinux: bool = False
    systemd_cgroup: bool = False
    checkpoint: bool = False
    recursive_read_only: bool = False
    id_mapped_mounts: bool = False
    seccomp_bpf: bool = False
    no_users: str = ""
    document: bytes = b""


class _Switch(msgspec.Struct):
    enabled: bool = False


class _Cgroup(msgspec.Struct):
    systemd: bool = False


class _MountExtensions(msgspec.Struct):
    idmap: _Switch = msgspec.field(default_factory=_Switch)


class _Linux(msgspec.Struct, rename="camel"):
    seccomp: _Switch = msgspec.field(default_factory=_Switch)
    apparmor: _Switch = msgspec.field(default_factory=_Switch)
    selinux: _Switch = msgspec.field(default_factory=_Switch)
    cgroup: _Cgroup = msgspec.field(default_factory=_Cgroup)
    mount_extensions: _MountExtensions = msgspec.field(default_factory=_MountExtensions)


class _Document(msgspec.Struct, rename="camel"):
    mount_options: list[str] = []
    linux: _Linux = msgspec.field(default_factory=_Linux)
    annotations: dict[str, str] = {}


_decoder = msgspec.json.Decoder(_Document)


def version_of(version: str) -> str:
    """The number in the first line of `--version`; empty where it has none."""
    match = re.search(r"version:? v?(\d[\w.+~-]*)", version)
    return match.group(1) if match else ""


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison: `1.1.5+ds1` gives (1, 1, 5)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def from_version(name: str, version: str) -> RuntimeFeatures:
    """What is known of a runtime without a `features` command: crun tells its build options as `+NAME`."""
    built_with = set(re.findall(r"\+([A-Z]+)\b", version))
    number = version_of(version)
    is_crun = version.startswith("crun ")
    return RuntimeFeatures(
        name=name,
        version=number,
        seccomp="SECCOMP" in built_with,
        apparmor="APPARMOR" in built_with,
        selinux="SELINUX" in built_with,
        systemd_cgroup="SYSTEMD" in built_with,
        checkpoint="CRIU" in built_with,
        recursive_read_only=is_crun and numbers(number) >= CRUN_RECURSIVE_READ_ONLY,
        id_mapped_mounts=is_crun and numbers(number) >= CRUN_ID_MAPPED_MOUNTS,
        seccomp_bpf=is_crun and "SECCOMP" in built_with,
    )


def from_document(name: str, version: str, document: bytes) -> RuntimeFeatures:
    """Read the answer of `features`; raises `Internal` where it is not the JSON of the specification."""
    try:
        told = _decoder.decode(document)
    except UNREADABLE as error:
        raise errors.Internal(f"{name} features: not the JSON of the runtime specification: {error}") from error
    number = version_of(version)
    is_crun = version.startswith("crun ")
    return RuntimeFeatures(
        name=name,
        version=number,
        seccomp=told.linux.seccomp.enabled,
        apparmor=told.linux.apparmor.enabled,
        selinux=told.linux.selinux.enabled,
        systemd_cgroup=told.linux.cgroup.systemd,
        checkpoint="true"
        in (
            told.annotations.get("org.opencontainers.runc.checkpoint.enabled"),
            told.annotations.get("run.oci.crun.checkpoint.enabled"),
        ),
        recursive_read_only="rro" in told.mount_options,
        id_mapped_mounts=told.linux.mount_extensions.idmap.enabled
        or (not is_crun and numbers(number) >= RUNC_ID_MAPPED_MOUNTS),
        seccomp_bpf=is_crun and told.linux.seccomp.enabled,
        document=document,
    )
