"""A merged adjustment, put into the runtime spec of a container that is being created.

What it asks for and this host or OCI runtime cannot do is an error: `FailedPrecondition`, which fails the creation.
CDI devices come first, so that what else is asked for holds over what their files say.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import msgspec

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.linux.host import HostFacts
from atoll.nri.limits import number, overlay
from atoll.nri.merge import HOOKS
from atoll.nri.owners import removed
from atoll.oci import bpf, cdi, rlimits, spec, sysctls
from atoll.oci.config import NamespaceOption
from atoll.oci.features import RuntimeFeatures
from atoll.oci.resources import oom_score_adj

RESCTRL = Path("/sys/fs/resctrl/schemata")
NAMESPACES: tuple[str, ...] = get_args(spec.NamespaceType)
PROPAGATIONS = ("rshared", "rslave")
MAJORS, MINORS = 1 << 12, 1 << 20
"""As many as the kernel's dev_t has; include/linux/kdev_t.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the container is going to run."""

    host: HostFacts
    runtime: RuntimeFeatures
    cdi_folders: tuple[Path, ...] = ()


def apply(made: spec.Spec, asked: pb.ContainerAdjustment, place: Place) -> spec.Spec:
    """`made` with everything that is asked for. Raises `InvalidArgument` for what is no value of its field.

    Blocks for as long as files of CDI devices take.
    """
    devices = cdi.requested((one.name for one in asked.CDI_devices), {})
    made = cdi.inject(made, devices, place.cdi_folders)
    assert made.process is not None
    assert made.linux is not None
    linux = _linux(made.linux, asked, place)
    annotations = {**made.annotations, **asked.annotations}
    for marked in asked.annotations:
        if (key := removed(marked)) is not None:
            annotations.pop(marked)
            annotations.pop(key, None)
    if bpf.ANNOTATION in asked.annotations:
        raise errors.InvalidArgument(f"nri: annotation {bpf.ANNOTATION}: would replace the seccomp filter")
    if asked.linux.HasField("seccomp_policy"):
        annotations.pop(bpf.ANNOTATION, None)  # the filter of the profile that was
        if place.runtime.seccomp_bpf and linux.seccomp is not None:
            annotations.update(bpf.annotation(linux.seccomp))
    return msgspec.structs.replace(
        made,
        process=_process(made.process, asked, place),
        mounts=_mounts(made.mounts, asked.mounts),
        hooks=_hooks(made.hooks, asked.hooks),
        annotations=annotations,
        linux=linux,
    )


def _process(process: spec.Process, asked: pb.ContainerAdjustment, place: Place) -> spec.Process:
    limits = {one.type: one for one in process.rlimits}
    for one in asked.rlimits:
        if one.type not in rlimits.TYPES or one.soft > one.hard:
            raise errors.InvalidArgument(f"nri: rlimit {one.type[:60]!r}, {one.soft} of {one.hard}: is none")
        limits[one.type] = spec.Rlimit(type=one.type, soft=one.soft, hard=one.hard)
    changes: dict[str, object] = {"env": _env(process.env, asked.env), "rlimits": tuple(limits.values())}
    if asked.args:
        changes["args"] = tuple(asked.args)
    linux = asked.linux
    if linux.HasField("oom_score_adj"):
        changes["oom_score_adj"] = oom_score_adj(linux.oom_score_adj.value, place.host)
    if linux.HasField("io_priority"):
        changes["io_priority"] = _io_priority(linux.io_priority)
    if linux.HasField("scheduler"):
        changes["scheduler"] = _scheduler(linux.scheduler)
    return msgspec.structs.replace(process, **changes)


def _env(env: tuple[str, ...], asked: Iterable[pb.KeyValue]) -> tuple[str, ...]:
    """A variable that is there keeps its place."""
    values = {name: value for name, _, value in (entry.partition("=") for entry in env)}
    for entry in asked:
        if (gone := removed(entry.key)) is not None:
            values.pop(gone, None)
        elif not entry.key or "=" in entry.key or "\0" in entry.key + entry.value:
            raise errors.InvalidArgument(
                f"nri: env: {entry.key[:60]!r} is no name of a variable, or has no value of one"
            )
        else:
            values[entry.key] = entry.value
    return tuple(f"{name}={value}" for name, value in values.items())


def _io_priority(asked: pb.LinuxIOPriority) -> spec.IOPriority | None:
    io_class: int = getattr(asked, "class")
    if io_class == pb.IOPRIO_CLASS_NONE:
        return None
    if io_class not in pb.IOPrioClass.values() or not 0 <= asked.priority <= 7:
        raise errors.InvalidArgument(
            f"nri: io_priority: class {io_class}, priority {asked.priority}: are none (0 to 7)"
        )
    return spec.IOPriority(io_class=pb.IOPrioClass.Name(cast("pb.IOPrioClass", io_class)), priority=asked.priority)


def _scheduler(asked: pb.LinuxScheduler) -> spec.Scheduler | None:
    if asked.policy == pb.SCHED_NONE:
        return None
    if asked.policy not in pb.LinuxSchedulerPolicy.values():
        raise errors.InvalidArgument(f"nri: scheduler: policy {asked.policy} is none")
    return spec.Scheduler(
        policy=pb.LinuxSchedulerPolicy.Name(asked.policy),
        nice=asked.nice,
        priority=asked.priority,
        flags=tuple(pb.LinuxSchedulerFlag.Name(flag) for flag in asked.flags),
        runtime=asked.runtime,
        deadline=asked.deadline,
        period=asked.period,
    )


def _mounts(mounts: tuple[spec.Mount, ...], asked: Iterable[pb.Mount]) -> tuple[spec.Mount, ...]:
    """Added mounts after ours, parents before children; one of the same destination is replaced."""
    added: dict[str, spec.Mount] = {}
    gone: set[str] = set()
    for one in asked:
        destination = removed(one.destination)
        if destination is not None:
            gone.add(posixpath.normpath(destination))
            continue
        if not one.destination.startswith("/"):
            raise errors.InvalidArgument(f"nri: mount {one.destination[:200]!r}: the destination is not absolute")
        clean = posixpath.normpath(one.destination)
        if clean in ("/", "//") or "\0" in "".join((one.destination, one.type, one.source, *one.options)):
            raise errors.InvalidArgument(f"nri: mount {one.destination[:200]!r}: is the root, or has a zero byte")
        if {"bind", "rbind"} & {one.type, *one.options} and not os.path.exists(one.source):
            raise errors.InvalidArgument(f"nri: mount {clean[:200]!r}: its source {one.source[:200]!r} is not there")
        added[clean] = spec.Mount(destination=clean, type=one.type, source=one.source, options=tuple(one.options))
    kept = [one for one in mounts if one.destination not in gone and one.destination not in added]
    return (*kept, *sorted(added.values(), key=lambda one: one.destination.count("/")))


def _hooks(hooks: spec.Hooks | None, asked: pb.Hooks) -> spec.Hooks | None:
    for one in (hook for name in HOOKS for hook in getattr(asked, name)):
        if not one.path.startswith("/") or "\0" in "".join((one.path, *one.args, *one.env)):
            raise errors.InvalidArgument(f"nri: hook {one.path[:200]!r}: is not absolute, or has a zero byte")
    added = {
        name: tuple(
            spec.Hook(path=one.path, args=tuple(one.args), env=tuple(one.env), timeout=one.timeout.value)
            for one in getattr(asked, name)
        )
        for name in HOOKS
    }
    if not any(added.values()):
        return hooks
    now = hooks or spec.Hooks()
    return msgspec.structs.replace(now, **{name: (*getattr(now, name), *more) for name, more in added.items()})


def _linux(linux: spec.Linux, asked: pb.ContainerAdjustment, place: Place) -> spec.Linux:
    wanted = asked.linux
    devices = {one.path: one for one in linux.devices}
    rules: list[spec.DeviceRule] = []
    for one in wanted.devices:
        if (gone := removed(one.path)) is not None:
            devices.pop(gone, None)
        else:
            devices[one.path] = _device(one)
            rules.append(spec.DeviceRule(allow=True, type=one.type, major=one.major, minor=one.minor, access="rwm"))
    limits = overlay(linux.resources, wanted.resources, place.host)
    sysctl = {**linux.sysctl, **wanted.sysctl}
    for marked, value in wanted.sysctl.items():
        if (key := removed(marked)) is not None:
            sysctl.pop(marked)
            sysctl.pop(key, None)
        else:
            try:
                sysctls.resolve({marked: value}, NamespaceOption())
            except errors.InvalidArgument as error:
                raise errors.InvalidArgument(f"nri: {error}") from error
    changes: dict[str, object] = {
        "devices": tuple(devices.values()),
        "resources": msgspec.structs.replace(limits, devices=(*limits.devices, *rules)),
        "namespaces": _namespaces(linux.namespaces, wanted.namespaces),
        "sysctl": sysctl,
        "rootfs_propagation": _propagation(linux.rootfs_propagation, asked.mounts),
        **_of_newer_runtimes(linux, wanted, place.runtime),
    }
    if wanted.cgroups_path:
        if "\0" in wanted.cgroups_path or ".." in wanted.cgroups_path.split("/"):
            raise errors.InvalidArgument(f"nri: cgroups_path {wanted.cgroups_path[:200]!r}: leads elsewhere")
        changes["cgroups_path"] = wanted.cgroups_path
    if wanted.HasField("seccomp_policy"):
        changes["seccomp"] = _seccomp(wanted.seccomp_policy)
    if wanted.HasField("rdt"):
        changes["intel_rdt"] = _rdt(linux.intel_rdt, wanted.rdt)
    return msgspec.structs.replace(linux, **changes)


def _device(asked: pb.LinuxDevice) -> spec.Device:
    is_one = asked.type in ("c", "b", "u", "p") and 0 <= asked.major < MAJORS and 0 <= asked.minor < MINORS
    if not is_one or not asked.path.startswith("/") or "\0" in asked.path:
        raise errors.InvalidArgument(
            f"nri: device {asked.path[:200]!r}, {asked.type[:20]!r} {asked.major}:{asked.minor}: is no device"
        )
    return spec.Device(
        path=asked.path,
        type=asked.type,
        major=asked.major,
        minor=asked.minor,
        file_mode=number(asked.file_mode, present=asked.HasField("file_mode")),
        uid=number(asked.uid, present=asked.HasField("uid")),
        gid=number(asked.gid, present=asked.HasField("gid")),
    )


def _namespaces(
    namespaces: tuple[spec.Namespace, ...], asked: Iterable[pb.LinuxNamespace]
) -> tuple[spec.Namespace, ...]:
    found = {one.type: one for one in namespaces}
    for one in asked:
        gone = removed(one.type)
        kind = gone or one.type
        if kind not in NAMESPACES:
            raise errors.InvalidArgument(f"nri: namespace {kind[:20]!r}: is none of {', '.join(NAMESPACES)}")
        known = cast("spec.NamespaceType", kind)
        if gone is not None:
            found.pop(known, None)
        else:
            if one.path and not _is_namespace(one.path):
                raise errors.InvalidArgument(f"nri: namespace {kind}: {one.path[:200]!r} is the path of none")
            found[known] = spec.Namespace(type=known, path=one.path)
    return tuple(found.values())


def _is_namespace(path: str) -> bool:
    """Whether it leads to a file of nsfs, as every namespace is one."""
    try:
        return path.startswith("/") and os.stat(path).st_dev == os.stat("/proc/self/ns/mnt").st_dev
    except (OSError, ValueError):
        return False


def _propagation(now: str, asked: Iterable[pb.Mount]) -> str:
    """What the root file system needs for mounts that are shared."""
    options = {option for one in asked if removed(one.destination) is None for option in one.options}
    return next((word for word in PROPAGATIONS if word in options or word == now), now)


def _seccomp(asked: pb.LinuxSeccomp) -> spec.Seccomp:
    return spec.Seccomp(
        default_action=asked.default_action,
        default_errno_ret=number(asked.default_errno, present=asked.HasField("default_errno")),
        architectures=tuple(asked.architectures),
        flags=tuple(asked.flags),
        listener_path=asked.listener_path,
        listener_metadata=asked.listener_metadata,
        syscalls=tuple(
            spec.SeccompSyscall(
                names=tuple(one.names),
                action=one.action,
                errno_ret=number(one.errno_ret, present=one.HasField("errno_ret")),
                args=tuple(
                    spec.SeccompArg(index=arg.index, value=arg.value, value_two=arg.value_two, op=arg.op)
                    for arg in one.args
                ),
            )
            for one in asked.syscalls
        ),
    )


def _rdt(now: spec.IntelRdt | None, asked: pb.LinuxRdt) -> spec.IntelRdt | None:
    kept = None if asked.remove else now
    if not any(asked.HasField(name) for name in ("clos_id", "schemata", "enable_monitoring")):
        return kept
    if not RESCTRL.exists():
        raise errors.FailedPrecondition("nri: rdt: this host has no resctrl file system to divide caches with")
    kept = kept or spec.IntelRdt()
    return spec.IntelRdt(
        clos_id=asked.clos_id.value if asked.HasField("clos_id") else kept.clos_id,
        schemata=tuple(asked.schemata.value) if asked.HasField("schemata") else kept.schemata,
        enable_monitoring=asked.enable_monitoring.value or kept.enable_monitoring,
    )


def _of_newer_runtimes(
    linux: spec.Linux, asked: pb.LinuxContainerAdjustment, runtime: RuntimeFeatures
) -> dict[str, object]:
    """What an older OCI runtime would leave out without a word."""
    changes: dict[str, object] = {}
    devices = dict(linux.net_devices)
    for name, device in asked.net_devices.items():
        if (gone := removed(name)) is not None:
            devices.pop(gone, None)
            continue
        told = _newer(runtime).net_devices
        if told is None or not told.enabled:
            raise errors.FailedPrecondition(f"nri: net_devices: {_named(runtime)} does not move network interfaces")
        devices[name] = spec.NetDevice(name=device.name)
    if devices != linux.net_devices:
        changes["net_devices"] = devices
    if asked.HasField("memory_policy"):
        policy = asked.memory_policy
        if _newer(runtime).memory_policy is None:
            raise errors.FailedPrecondition(f"nri: memory_policy: {_named(runtime)} does not set one")
        changes["memory_policy"] = spec.MemoryPolicy(
            mode=pb.MpolMode.Name(policy.mode),
            nodes=policy.nodes,
            flags=tuple(pb.MpolFlag.Name(flag) for flag in policy.flags),
        )
    return changes


class _Switch(msgspec.Struct):
    enabled: bool = True


class _Linux(msgspec.Struct, rename="camel"):
    net_devices: _Switch | None = None
    memory_policy: _Switch | None = None


class _Features(msgspec.Struct):
    linux: _Linux = msgspec.field(default_factory=_Linux)


def _newer(runtime: RuntimeFeatures) -> _Linux:
    """What the runtime says of the parts of `linux` that came late to the specification."""
    return msgspec.json.decode(runtime.document or b"{}", type=_Features).linux


def _named(runtime: RuntimeFeatures) -> str:
    return f"{runtime.name} {runtime.version}"
