"""A runtime spec in the words of the protocol, as plugins are shown it."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.nri.limits import some, to_message
from atoll.nri.merge import HOOKS
from atoll.oci import bpf, spec


def fill(container: pb.Container, found: spec.Spec, *, policy: bool = False) -> None:
    """Put what a spec says of a container into its message; its seccomp policy, some kilobytes, where asked for."""
    container.annotations.update({key: value for key, value in found.annotations.items() if key != bpf.ANNOTATION})
    container.mounts.extend(
        pb.Mount(destination=one.destination, type=one.type, source=one.source, options=one.options)
        for one in found.mounts
    )
    if found.hooks is not None:
        for name in HOOKS:
            getattr(container.hooks, name).extend(_hooks(getattr(found.hooks, name)))
    linux = container.linux
    if found.process is not None:
        _fill_process(container, found.process)
    if found.linux is None:
        return
    linux.namespaces.extend(pb.LinuxNamespace(type=one.type, path=one.path) for one in found.linux.namespaces)
    linux.devices.extend(map(_device, found.linux.devices))
    linux.resources.CopyFrom(to_message(found.linux.resources))
    linux.cgroups_path = found.linux.cgroups_path
    linux.sysctl.update(found.linux.sysctl)
    for name, device in found.linux.net_devices.items():
        linux.net_devices[name].name = device.name
    if policy and found.linux.seccomp is not None:
        linux.seccomp_policy.CopyFrom(_seccomp(found.linux.seccomp))
    if (rdt := found.linux.intel_rdt) is not None:
        linux.rdt.clos_id.value = rdt.clos_id
        linux.rdt.schemata.value.extend(rdt.schemata)
        linux.rdt.enable_monitoring.value = rdt.enable_monitoring


def _fill_process(container: pb.Container, process: spec.Process) -> None:
    container.args.extend(process.args)
    container.env.extend(process.env)
    container.rlimits.extend(pb.POSIXRlimit(type=one.type, hard=one.hard, soft=one.soft) for one in process.rlimits)
    user = process.user
    container.user.CopyFrom(pb.User(uid=user.uid, gid=user.gid, additional_gids=user.additional_gids))
    linux = container.linux
    if process.oom_score_adj is not None:
        linux.oom_score_adj.value = process.oom_score_adj
    if (priority := process.io_priority) is not None and priority.io_class in pb.IOPrioClass.keys():  # noqa: SIM118  no dict
        linux.io_priority.CopyFrom(
            pb.LinuxIOPriority(
                **{"class": priority.io_class},  # the field's name is a word of the language
                priority=priority.priority,
            )
        )
    if (scheduler := process.scheduler) is not None and scheduler.policy in pb.LinuxSchedulerPolicy.keys():  # noqa: SIM118
        linux.scheduler.CopyFrom(
            pb.LinuxScheduler(
                policy=scheduler.policy,
                nice=scheduler.nice,
                priority=scheduler.priority,
                flags=scheduler.flags,
                runtime=scheduler.runtime,
                deadline=scheduler.deadline,
                period=scheduler.period,
            )
        )


def _hooks(hooks: Iterable[spec.Hook]) -> list[pb.Hook]:
    return [
        pb.Hook(
            path=one.path,
            args=one.args,
            env=one.env,
            timeout=pb.OptionalInt(value=one.timeout) if one.timeout else None,
        )
        for one in hooks
    ]


def _device(device: spec.Device) -> pb.LinuxDevice:
    return pb.LinuxDevice(
        path=device.path,
        type=device.type,
        major=device.major or 0,
        minor=device.minor or 0,
        file_mode=some(device.file_mode, pb.OptionalFileMode),
        uid=some(device.uid, pb.OptionalUInt32),
        gid=some(device.gid, pb.OptionalUInt32),
    )


def _seccomp(profile: spec.Seccomp) -> pb.LinuxSeccomp:
    return pb.LinuxSeccomp(
        default_action=profile.default_action,
        default_errno=some(profile.default_errno_ret, pb.OptionalUInt32),
        architectures=profile.architectures,
        flags=profile.flags,
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
        syscalls=[
            pb.LinuxSyscall(
                names=one.names,
                action=one.action,
                errno_ret=some(one.errno_ret, pb.OptionalUInt32),
                args=[
                    pb.LinuxSeccompArg(index=arg.index, value=arg.value, value_two=arg.value_two, op=arg.op)
                    for arg in one.args
                ],
            )
            for one in profile.syscalls
        ],
    )
