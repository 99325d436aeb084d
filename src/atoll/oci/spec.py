"""The OCI runtime spec as structs: what goes into a bundle's config.json.

Field names are the specification's in snake case; defaults are left out of the JSON. Only what Atoll
writes or reads is modelled. A spec written by somebody else is never decoded and encoded again as a
whole: `rewrite` replaces named top-level parts and leaves every other byte as it was.
Source: the OCI runtime specification 1.1, config.md and config-linux.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from atoll import errors
from atoll.unreadable import UNREADABLE

OCI_VERSION = "1.0.2"


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of every part of a spec: frozen, camelCase in JSON, defaults left out."""


class Box(Part, frozen=True):
    """Height and width of a terminal, in characters. Both are written, even zeros."""

    height: int = msgspec.field(default=0)
    width: int = msgspec.field(default=0)


class User(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Always written whole: the runtimes demand uid and gid."""

    uid: int = 0
    gid: int = 0
    umask: int | msgspec.UnsetType = msgspec.UNSET
    additional_gids: tuple[int, ...] = ()
    username: str | msgspec.UnsetType = msgspec.UNSET


class Capabilities(Part, frozen=True):
    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit such as RLIMIT_NOFILE; zeros are values."""

    type: str
    soft: int
    hard: int


class Scheduler(Part, frozen=True):
    """How the kernel schedules the process; `policy` such as SCHED_BATCH, the last three of SCHED_DEADLINE, in ns."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IOPriority(msgspec.Struct, frozen=True, kw_only=True):
    """`io_class` such as IOPRIO_CLASS_BE; always written whole."""

    io_class: str = msgspec.field(name="class")
    priority: int = 0


class Process(Part, frozen=True):
    """What is executed, by create and by exec. `args` non-empty, `cwd` absolute."""

    terminal: bool = False
    console_size: Box | None = None
    user: User = msgspec.field(default_factory=User)
    args: tuple[str, ...] = ()
    command_line: str = ""
    env: tuple[str, ...] = ()
    cwd: str = ""
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    selinux_label: str = ""
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None


class Root(Part, frozen=True):
    path: str
    readonly: bool = False


class IDMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A range of ids of a user namespace; always written whole."""

    containerID: int
    hostID: int
    size: int


class Mount(Part, frozen=True):
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


class Hook(Part, frozen=True):
    """A program run at a point of the life cycle; `timeout` in seconds, 0 for none."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


class Hooks(Part, frozen=True):
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]


class Namespace(Part, frozen=True):
    """A new namespace, or with `path` the existing one to join."""

    type: NamespaceType
    path: str = ""


class Device(Part, frozen=True):
    """A device node made in the container's /dev; `type` is c, b, u or p."""

    path: str
    type: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(Part, frozen=True):
    """One entry of the device cgroup's list; `allow` is always written."""

    allow: bool | msgspec.UnsetType = msgspec.UNSET
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class Memory(Part, frozen=True):
    """Bytes; -1 lifts a limit."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool = msgspec.field(default=False, name="disableOOMKiller")
    use_hierarchy: bool = False


class CPU(Part, frozen=True):
    """Quota and period in microseconds."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


class Pids(Part, frozen=True):
    limit: int | None = None


class HugepageLimit(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`page_size` such as 2MB, `limit` in bytes; zero is a limit."""

    page_size: str
    limit: int


class WeightDevice(Part, frozen=True):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(msgspec.Struct, frozen=True, kw_only=True):
    major: int
    minor: int
    rate: int


class BlockIO(Part, frozen=True):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleReadIOPSDevice")
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleWriteIOPSDevice")


class Resources(Part, frozen=True):
    """What a cgroup grants; also the payload of a task's Update."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: CPU | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}


class SeccompArg(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A condition on one argument; always written whole."""

    index: int
    value: int
    value_two: int = 0
    op: str


class SeccompSyscall(Part, frozen=True):
    """Syscalls by name that share an action; every condition of `args` must hold."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(Part, frozen=True):
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompSyscall, ...] = ()


class NetDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface of the host, moved into the container; `name` there, empty for the same."""

    name: str = ""


class IntelRdt(Part, frozen=True):
    clos_id: str = msgspec.field(default="", name="closID")
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False


class MemoryPolicy(Part, frozen=True):
    """As set_mempolicy(2); `mode` such as MPOL_BIND, `nodes` such as 0-1."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Linux(Part, frozen=True):
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    sysctl: dict[str, str] = {}
    resources: Resources | None = None
    cgroups_path: str = ""
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    net_devices: dict[str, NetDevice] = {}
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None


class Spec(Part, frozen=True):
    """A container as an OCI runtime reads it."""

    oci_version: str | msgspec.UnsetType = msgspec.UNSET
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks | None = None
    annotations: dict[str, str] = {}
    linux: Linux | None = None


_encoder = msgspec.json.Encoder()
_spec_decoder = msgspec.json.Decoder(Spec)
_resources_decoder = msgspec.json.Decoder(Resources)
_parts_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(part: Part) -> bytes:
    """The JSON of a spec, a process or resources, as an OCI runtime reads it."""
    return _encoder.encode(part)


def decode(document: bytes) -> Spec:
    """Read the modelled part of a config.json; raises `InvalidArgument` naming the field."""
    try:
        return _spec_decoder.decode(document)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"runtime spec: {error}") from error


def decode_resources(document: bytes) -> Resources:
    """Read the JSON of LinuxResources, such as the payload of an update; raises `InvalidArgument`."""
    try:
        return _resources_decoder.decode(document)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"linux resources: {error}") from error


def rewrite(document: bytes, **parts: Part) -> bytes:
    """Replace top-level parts (`process=...`, `root=...`) of a foreign config.json.

    Everything else, known to Atoll or not, stays byte for byte. Raises `InvalidArgument`.
    """
    try:
        kept = _parts_decoder.decode(document)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"runtime spec: {error}") from error
    known = {field.name: field.encode_name for field in msgspec.structs.fields(Spec)}
    for name, part in parts.items():
        kept[known[name]] = msgspec.Raw(_encoder.encode(part))
    return _encoder.encode(kept)
