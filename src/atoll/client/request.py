"""From the SDK's arguments to what CRI is asked for; everything is checked here, before a call is made."""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Literal

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.hardening import MASKED_PATHS, READONLY_PATHS

Network = Literal["default", "host", "none"]
PullPolicy = Literal["missing", "always", "never"]

NO_NETWORK = "io.atoll.network/none"
PORTS = "io.atoll.ports"
"""Annotation that keeps a pod's published ports for people: `8080->80/tcp`, joined by `, `."""
REQUEST = "io.atoll.request"
"""Annotation that tells a retry of one request from another request for the same name."""
REMOVE_AT_END = "io.atoll.pod/remove-at-end"
"""Annotation of a pod that the daemon removes once all of its containers have ended; its value is `true`."""
RLIMITS = "io.atoll.container/rlimits"
TMPFS = "io.atoll.container/tmpfs"
VOLUMES = "io.atoll.container/volumes"
POD_VOLUMES = "io.atoll.pod/volumes"
LEASE_TTL = "io.atoll.lease/ttl"
"""Annotations for what CRI has no field for."""
NAMESPACE = "atoll"

CPU_PERIOD_US = 100_000
CPU_MIN_QUOTA_US = 1_000
CPU_MIN_SHARES = 2
MEMORY_MIN_BYTES = 512 << 10
PIDS_HIGHEST = 4 << 20
CPUS_HIGHEST = 65536
INT64_MAX = 2**63 - 1
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
_HOSTNAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_PROTOCOLS = {"tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder or file of the host in a container, both by absolute path."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A port of the host that leads to a port of the pod; `host_ip` empty for every address."""

    host_port: int
    pod_port: int
    protocol: str = "tcp"
    host_ip: str = ""

    def __str__(self) -> str:
        address = f"{self.host_ip}:" if self.host_ip else ""
        return f"{address}{self.host_port}->{self.pod_port}/{self.protocol}"


Ports = dict[int, int] | list[Publish] | tuple[Publish, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """The arguments of `Client.run_pod`, as given."""

    name: str = ""
    network: Network = "default"
    ports: Ports = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    hostname: str = ""
    share_pid: bool = False
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """The arguments of `Pod.run`, as given."""

    image: str
    command: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: str = ""
    user: str = ""
    mounts: Sequence[Mount] = ()
    cpus: float | None = None
    memory: int | str | None = None
    pids: int | None = None
    tty: bool = False
    stdin: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    read_only: bool = False
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    share_pid: bool = False
    network: Network = "default"


def new_name(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


def require_name(value: str, what: str) -> str:
    """`value` where it may name a pod or a container; raises `InvalidArgument`."""
    if not _NAME.fullmatch(value):
        raise errors.InvalidArgument(
            f"{what} name {value[:80]!r}: must be 1 to 63 letters, digits, '-', '_' and '.', "
            "with a letter or digit first and last"
        )
    return value


def size_bytes(value: int | str, what: str = "memory") -> int:
    """Bytes of `64MiB`, `64m`, `1.5g` or a plain number. Every unit is a power of 1024, as docker has it."""
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value.strip()) if _is_text(value) else None
        if match is None:
            raise errors.InvalidArgument(
                f"{what} {value!r}: must be a size like 64MiB, 512k, 1.5g or a number of bytes"
            )
        size = int(Decimal(match[1]) * 1024 ** _POWERS[match[2].lower()])
    if size > INT64_MAX:
        raise errors.InvalidArgument(f"{what} {str(value)[:40]}: is more bytes than any machine has")
    return size


def resources(
    cpus: float | None, memory: int | str | None, pids: int | None = None
) -> cri.LinuxContainerResources | None:
    """Limits of CPU, memory and processes in the words of CRI; None where there are none."""
    if cpus is None and memory is None and pids is None:
        return None
    limits = cri.LinuxContainerResources()
    if cpus is not None:
        if not isinstance(cpus, int | float) or not math.isfinite(cpus):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
            raise errors.InvalidArgument(f"cpus {cpus!r}: must be a number, as in 0.5")
        if cpus > CPUS_HIGHEST:
            raise errors.InvalidArgument(f"cpus {cpus:g}: must be at most {CPUS_HIGHEST}")
        quota = round(cpus * CPU_PERIOD_US)
        if quota < CPU_MIN_QUOTA_US:
            raise errors.InvalidArgument(f"cpus {cpus:g}: must be at least {CPU_MIN_QUOTA_US / CPU_PERIOD_US:g}")
        limits.cpu_period, limits.cpu_quota = CPU_PERIOD_US, quota
        limits.cpu_shares = max(CPU_MIN_SHARES, round(cpus * 1024))
    if memory is not None:
        limits.memory_limit_in_bytes = size_bytes(memory)
        if limits.memory_limit_in_bytes < MEMORY_MIN_BYTES:
            raise errors.InvalidArgument(f"memory {memory!r}: must be at least {MEMORY_MIN_BYTES >> 10} KiB")
    if pids is not None:
        if not 0 < pids <= PIDS_HIGHEST:
            raise errors.InvalidArgument(f"pids {pids}: must be 1 to {PIDS_HIGHEST}")
        limits.unified["pids.max"] = str(pids)
    return limits


def published(ports: Ports) -> tuple[Publish, ...]:
    """The ports to publish, each checked; a mapping is host port to pod port over TCP."""
    if isinstance(ports, dict):
        wanted = tuple(Publish(host_port=host, pod_port=pod) for host, pod in ports.items())
    elif isinstance(ports, list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
        wanted = tuple(ports)
    else:
        raise errors.InvalidArgument(f"ports {ports!r}: must be {{8080: 80}} or a list of Publish values")
    for one in wanted:
        if not isinstance(one, Publish) or not isinstance(one.host_port, int) or not isinstance(one.pod_port, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
            raise errors.InvalidArgument(f"port {one!s}: ports are {{8080: 80}} or a list of Publish values")
        if not (0 < one.host_port < 65536 and 0 < one.pod_port < 65536):
            raise errors.InvalidArgument(f"port {one}: a port is 1 to 65535")
        if one.protocol not in _PROTOCOLS:
            raise errors.InvalidArgument(f"port {one}: the protocol must be tcp, udp or sctp")
    return wanted


def parse_publish(text: str) -> Publish:
    """`[ip:]host:pod[/protocol]` or `port[/protocol]`, as docker's `-p` has it."""
    numbers, _, protocol = text.partition("/")
    ip, colon, rest = "", "", numbers
    if numbers.startswith("["):
        ip, _, rest = numbers[1:].partition("]")
        rest = rest.removeprefix(":")
    elif numbers.count(":") == 2:
        ip, colon, rest = numbers.partition(":")
    host, colon, pod = rest.partition(":")
    pod = pod if colon else host
    if not (host.isdecimal() and pod.isdecimal()):
        raise errors.InvalidArgument(f"port {text!r}: must be like 8080:80, 127.0.0.1:8080:80 or 53:53/udp")
    found = Publish(host_port=int(host), pod_port=int(pod), protocol=protocol or "tcp", host_ip=ip)
    return published((found,))[0]


def parse_mount(text: str) -> Mount:
    """`/host/path:/container/path[:ro]`, as docker's `-v` has it."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise errors.InvalidArgument(f"mount {text!r}: must be like /host/path:/container/path or with :ro at its end")
    return Mount(source=parts[0], target=parts[1], read_only=parts[2:] == ["ro"])


def pod_config(options: PodOptions) -> cri.PodSandboxConfig:
    """What RunPodSandbox is asked for; the uid is the name, so that one name is one pod."""
    name = require_name(options.name, "pod") if options.name else new_name("pod")
    if options.network not in ("default", "host", "none"):
        raise errors.InvalidArgument(f"network {options.network!r}: must be default, host or none")
    ports = published(options.ports)
    if ports and options.network != "default":
        raise errors.InvalidArgument(
            f"ports: a pod with network {options.network!r} has none to publish; use the default network"
        )
    if options.hostname and not _HOSTNAME.fullmatch(options.hostname):
        raise errors.InvalidArgument(
            f"hostname {options.hostname[:80]!r}: must be 1 to 63 letters, digits, '-' and '.', as host names are"
        )
    annotations = {**options.annotations, REQUEST: secrets.token_hex(8)}
    if options.network == "none":
        annotations[NO_NETWORK] = "true"
    if ports:
        annotations[PORTS] = ", ".join(map(str, ports))
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace=NAMESPACE),
        hostname="" if options.network == "host" else options.hostname or name,
        port_mappings=[
            cri.PortMapping(
                protocol=_PROTOCOLS[one.protocol],
                container_port=one.pod_port,
                host_port=one.host_port,
                host_ip=one.host_ip,
            )
            for one in ports
        ],
        labels=_texts("label", options.labels),
        annotations=_texts("annotation", annotations),
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent=options.cgroup_parent,
            sysctls=_texts("sysctl", options.sysctls),
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=_namespaces(options.network, options.share_pid)
            ),
        ),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _texts(what: str, given: Mapping[str, str]) -> dict[str, str]:
    for key, value in given.items():
        if not (_is_text(key) and _is_text(value)):
            raise errors.InvalidArgument(f"{what} {key!r}: {value!r} is no text; write key and value as text")
    return dict(given)


def _namespaces(network: Network, share_pid: bool) -> cri.NamespaceOption:
    return cri.NamespaceOption(
        network=cri.NODE if network == "host" else cri.POD, pid=cri.POD if share_pid else cri.CONTAINER, ipc=cri.POD
    )


def container_config(options: ContainerOptions) -> cri.ContainerConfig:
    """What CreateContainer is asked for."""
    name = require_name(options.name, "container") if options.name else new_name("c")
    if not options.image:
        raise errors.InvalidArgument("image: is empty; name one, as in atoll/busybox")
    linux = cri.LinuxContainerConfig(
        security_context=cri.LinuxContainerSecurityContext(
            namespace_options=_namespaces(options.network, options.share_pid),
            readonly_rootfs=options.read_only,
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
            seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
            capabilities=cri.Capability(
                add_capabilities=_capabilities(options.cap_add), drop_capabilities=_capabilities(options.cap_drop)
            ),
        )
    )
    _set_user(linux.security_context, options.user)
    limits = resources(options.cpus, options.memory, options.pids)
    if limits is not None:
        linux.resources.CopyFrom(limits)
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=options.image, user_specified_image=options.image),
        command=words(options.entrypoint, "entrypoint"),
        args=words(options.command, "command"),
        working_dir=folder(options.cwd),
        envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in _environment(options.env).items()],
        mounts=[_mount(mount) for mount in options.mounts],
        labels=_texts("label", options.labels),
        annotations=_texts("annotation", options.annotations),
        log_path=f"{name}.log",
        stdin=options.stdin,
        stdin_once=options.stdin and not options.tty,
        tty=options.tty,
        linux=linux,
    )


def words(command: Sequence[str], what: str) -> list[str]:
    """A command as a list; one string is refused, because no shell would split it."""
    if isinstance(command, str):
        raise errors.InvalidArgument(f"{what} {command!r}: must be a list of words, as in ['sh', '-c', {command!r}]")
    found = list(command)
    if wrong := [word for word in found if not _is_text(word)]:
        raise errors.InvalidArgument(f"{what}: {wrong[0]!r} is no text; write each word as one")
    if any("\0" in word for word in found):
        raise errors.InvalidArgument(f"{what}: has a NUL byte in it")
    if found and not found[0]:
        raise errors.InvalidArgument(f"{what}: its first word is empty; name a program")
    return found


def folder(cwd: str) -> str:
    """A folder to start in; empty for the image's."""
    if cwd and not cwd.startswith("/"):
        raise errors.InvalidArgument(f"working folder {cwd!r}: must be an absolute path")
    return cwd


def environment(env: Mapping[str, str]) -> list[str]:
    """`KEY=value` for each variable; raises `InvalidArgument` for a name that cannot be one."""
    return [f"{key}={value}" for key, value in _environment(env).items()]


def _environment(env: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in env.items():
        if not (_is_text(key) and _is_text(value)):
            raise errors.InvalidArgument(f"env {key!r}: its name and its value must be text, not {value!r}")
        if not key or "=" in key or "\0" in key + value:
            raise errors.InvalidArgument(f"env {key!r}: a variable has a name without '=', and no NUL byte")
    return env


def _capabilities(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]{1,40}", name):
            raise errors.InvalidArgument(f"capability {name[:60]!r}: must be like NET_ADMIN or CAP_NET_ADMIN, or ALL")
    return names


def limits_and_mounts(*, ulimits: Sequence[str] = (), tmpfs: Sequence[str] = ()) -> dict[str, str]:
    """The annotations of a container that ask for limits like `nofile=1024:4096` and mounts like `/run:size=64m`."""
    found: dict[str, str] = {}
    for one in ulimits:
        if not re.fullmatch(r"[a-z]+=(\d+|unlimited)(:(\d+|unlimited))?", one):
            raise errors.InvalidArgument(f"ulimit {one!r}: must be like nofile=1024:4096 or core=0")
    if ulimits:
        found[RLIMITS] = ",".join(ulimits)
    targets = [one.partition(":") for one in tmpfs]
    for target, _, options in targets:
        if not target.startswith("/") or ";" in target + options:
            raise errors.InvalidArgument(f"tmpfs {target!r}: must be an absolute path, as in /run:size=64m")
    if tmpfs:
        found[TMPFS] = ";".join(f"{target}:{options}" if options else target for target, _, options in targets)
    return found


def _mount(mount: Mount) -> cri.Mount:
    if not isinstance(mount, Mount):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
        raise errors.InvalidArgument(f"mount {mount!r}: must be a Mount, as in Mount(source='/a', target='/b')")
    for what, path in (("source", mount.source), ("target", mount.target)):
        if not PurePosixPath(path).is_absolute():
            raise errors.InvalidArgument(f"mount {what} {path!r}: must be an absolute path")
    if not os.path.lexists(mount.source):
        # CRI has a runtime make a missing source as a folder; a typing error would leave one behind.
        raise errors.NotFound(f"mount source {mount.source}: is not on this host; make it first")
    return cri.Mount(
        host_path=mount.source,
        container_path=mount.target,
        readonly=mount.read_only,
    )


def _set_user(context: cri.LinuxContainerSecurityContext, user: str) -> None:
    """`uid[:gid]` or a name, as CRI tells them apart; CRI has a group only beside a user."""
    if not user:
        return
    who, colon, group = user.partition(":")
    if colon and not group.isdecimal():
        raise errors.InvalidArgument(f"user {user!r}: the group must be a number")
    if who.isdecimal():
        context.run_as_user.value = int(who)
    elif who:
        context.run_as_username = who
    else:
        raise errors.InvalidArgument(f"user {user!r}: must be like 1000, 1000:1000 or nobody")
    if colon:
        context.run_as_group.value = int(group)
