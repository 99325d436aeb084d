"""Pods and containers of the engine in the words of NRI."""

from __future__ import annotations

from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.container.config import ContainerConfig
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import pod_limits
from atoll.engine.pod import Pod
from atoll.nri import views
from atoll.oci import spec as oci
from atoll.oci.config import LinuxContainerResources, NamespaceMode, ProfileType
from atoll.oci.resources import PIDS_MAX

STATES = {
    State.CREATED: pb.CONTAINER_CREATED,
    State.RUNNING: pb.CONTAINER_RUNNING,
    State.EXITED: pb.CONTAINER_STOPPED,
    State.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
PROFILES = {
    ProfileType.RUNTIME_DEFAULT: pb.SecurityProfile.RUNTIME_DEFAULT,
    ProfileType.UNCONFINED: pb.SecurityProfile.UNCONFINED,
    ProfileType.LOCALHOST: pb.SecurityProfile.LOCALHOST,
}


def pod_message(pod: Pod, cgroup_parent: str) -> pb.PodSandbox:
    """A pod; its cgroup is below `cgroup_parent` where it names none itself."""
    config, attachment = pod.config, pod.attachment
    message = pb.PodSandbox(
        id=pod.id,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=pod.handler_name,
        pid=pod.instance.pid if pod.instance is not None else 0,
        ips=(attachment.ip, *attachment.additional_ips) if attachment is not None and attachment.ip else (),
    )
    if config.metadata is not None:
        message.name = config.metadata.name
        message.uid = config.metadata.uid
        message.namespace = config.metadata.namespace
    limits = pod_limits.resources_now(pod)
    linux = message.linux
    linux.pod_overhead.CopyFrom(limits_message(limits.overhead))
    linux.pod_resources.CopyFrom(limits_message(limits.resources))
    linux.cgroup_parent = config.cgroup_parent
    linux.cgroups_path = config.cgroup_parent or f"{cgroup_parent}/{pod.id}"
    linux.namespaces.extend(_namespaces(pod))
    return message


def _namespaces(pod: Pod) -> list[pb.LinuxNamespace]:
    """Those that are the pod's own."""
    if pod.instance is None:
        return []
    modes = pod.config.namespaces
    folder = f"/proc/{pod.instance.pid}/ns"
    found: list[pb.LinuxNamespace] = []
    if modes.pid is NamespaceMode.POD:
        found.append(pb.LinuxNamespace(type="pid", path=f"{folder}/pid"))
    if modes.ipc is not NamespaceMode.NODE:
        found.append(pb.LinuxNamespace(type="ipc", path=f"{folder}/ipc"))
    if modes.network is not NamespaceMode.NODE:
        found.append(pb.LinuxNamespace(type="network", path=pod.netns_path or f"{folder}/net"))
        found.append(pb.LinuxNamespace(type="uts", path=f"{folder}/uts"))
    return found


def limits_message(limits: LinuxContainerResources | None) -> pb.LinuxResources:
    """Limits in the words of the CRI, of which zero means not set."""
    message = pb.LinuxResources()
    if limits is None:
        return message
    for name, value in (
        ("shares", limits.cpu_shares),
        ("quota", limits.cpu_quota),
        ("period", limits.cpu_period),
    ):
        if value:
            getattr(message.cpu, name).value = value
    message.cpu.cpus, message.cpu.mems = limits.cpuset_cpus, limits.cpuset_mems
    if limits.memory_limit_in_bytes:
        message.memory.limit.value = limits.memory_limit_in_bytes
    if limits.memory_swap_limit_in_bytes:
        message.memory.swap.value = limits.memory_swap_limit_in_bytes
    for one in limits.hugepage_limits:
        message.hugepage_limits.add(page_size=one.page_size, limit=one.limit)
    message.unified.update(limits.unified)
    pids = message.unified.pop(PIDS_MAX, "")
    if pids:
        message.pids.limit = -1 if pids == "max" else int(pids)
    return message


def container_message(container: Container) -> pb.Container:
    """A container that is there."""
    config = container.metadata.config or ContainerConfig()
    message = _message(container.id, container.sandbox_id, config, oci.decode(container.record.spec), policy=False)
    status = container.status.get()
    message.state = STATES[status.state]
    message.pid = status.pid
    message.created_at, message.started_at = status.created_at, status.started_at
    message.finished_at, message.exit_code = status.finished_at, status.exit_code
    message.status_reason, message.status_message = status.reason, status.message
    return message


def new_container(container_id: str, pod_id: str, config: ContainerConfig, spec: oci.Spec) -> pb.Container:
    """A container that is being created."""
    message = _message(container_id, pod_id, config, spec, policy=True)
    message.state = pb.CONTAINER_CREATED
    return message


def _message(container_id: str, pod_id: str, config: ContainerConfig, spec: oci.Spec, *, policy: bool) -> pb.Container:
    message = pb.Container(
        id=container_id,
        pod_sandbox_id=pod_id,
        name=config.metadata.name if config.metadata is not None else "",
        labels=config.labels,
        annotations=config.annotations,
        CDI_devices=[pb.CDIDevice(name=one.name) for one in config.CDI_devices],
    )
    views.fill(message, spec, policy=policy)
    security = config.security
    profile = message.linux.seccomp_profile
    if security.privileged or security.seccomp is None:
        profile.profile_type = pb.SecurityProfile.UNCONFINED
    else:
        profile.profile_type = PROFILES[security.seccomp.profile_type]
        profile.localhost_ref = security.seccomp.localhost_ref
    return message
