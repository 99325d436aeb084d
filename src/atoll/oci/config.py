"""What pods and containers may ask of the kernel, in the words of the CRI.

Frozen structs, parsed once at the edge. Field names are the CRI's, so that one reflective codec
(`atoll.api.codec`) serves the wire and `msgspec.json` gives the JSON that containerd writes: names
as in the proto, zero values left out, enums as numbers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every config struct: frozen, keyword-only, defaults left out of JSON."""


class NamespaceMode(IntEnum):
    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class SupplementalGroupsPolicy(IntEnum):
    MERGE = 0
    STRICT = 1


class MountPropagation(IntEnum):
    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class ProfileType(IntEnum):
    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class Int64Value(Config, frozen=True):
    """An integer that may be absent; 0 is a value."""

    value: int = 0


class IDMapping(Config, frozen=True):
    host_id: int = 0
    container_id: int = 0
    length: int = 0


class UserNamespace(Config, frozen=True):
    mode: NamespaceMode = NamespaceMode.POD
    uids: tuple[IDMapping, ...] = ()
    gids: tuple[IDMapping, ...] = ()


class NamespaceOption(Config, frozen=True):
    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns_options: UserNamespace | None = None


class SELinuxOption(Config, frozen=True):
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class SecurityProfile(Config, frozen=True):
    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


class Capability(Config, frozen=True):
    """Names with or without the `CAP_` prefix; `ALL` stands for every one."""

    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()


class HugepageLimit(Config, frozen=True):
    page_size: str = ""
    limit: int = 0


class LinuxContainerResources(Config, frozen=True):
    """Limits of a cgroup; zero means not set. Periods and quotas in µs, memory in bytes."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}
    memory_swap_limit_in_bytes: int = 0


class LinuxContainerSecurityContext(Config, frozen=True):
    capabilities: Capability | None = None
    privileged: bool = False
    namespace_options: NamespaceOption | None = None
    selinux_options: SELinuxOption | None = None
    run_as_user: Int64Value | None = None
    run_as_group: Int64Value | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    apparmor_profile: str = ""
    seccomp_profile_path: str = ""


class ImageSpec(Config, frozen=True):
    image: str = ""
    annotations: dict[str, str] = {}
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


class KeyValue(Config, frozen=True):
    """One environment variable; the value is bytes as the kernel sees them."""

    key: str = ""
    value: bytes = b""


class Mount(Config, frozen=True):
    container_path: str = ""
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""


class Device(Config, frozen=True):
    """A host device; `permissions` is a subset of `rwm`."""

    container_path: str = ""
    host_path: str = ""
    permissions: str = ""


class CDIDevice(Config, frozen=True):
    name: str = ""


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
