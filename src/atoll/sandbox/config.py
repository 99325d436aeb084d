"""What a pod asks for: `PodConfig` and its parts, in the words of the CRI's PodSandboxConfig."""

from __future__ import annotations

from enum import IntEnum

from atoll.linux.userns import IDMap
from atoll.oci import userns
from atoll.oci.config import (
    Config,
    Int64Value,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    NamespaceMode,
    NamespaceOption,
    SecurityProfile,
    SELinuxOption,
    SupplementalGroupsPolicy,
)


class Protocol(IntEnum):
    TCP = 0
    UDP = 1
    SCTP = 2


class PodMetadata(Config, frozen=True):
    """The four values that name a pod; equal ones mean the same pod, asked for again."""

    name: str = ""
    uid: str = ""
    namespace: str = ""
    attempt: int = 0


class DNSConfig(Config, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(Config, frozen=True):
    protocol: Protocol = Protocol.TCP
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


class LinuxSandboxSecurityContext(Config, frozen=True):
    namespace_options: NamespaceOption | None = None
    selinux_options: SELinuxOption | None = None
    run_as_user: Int64Value | None = None
    run_as_group: Int64Value | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    seccomp_profile_path: str = ""

    def in_container_words(self) -> LinuxContainerSecurityContext:
        """The same as of a container: what the process of a pause container is to be."""
        return LinuxContainerSecurityContext(
            privileged=self.privileged,
            namespace_options=self.namespace_options,
            selinux_options=self.selinux_options,
            run_as_user=self.run_as_user,
            run_as_group=self.run_as_group,
            supplemental_groups=self.supplemental_groups,
            supplemental_groups_policy=self.supplemental_groups_policy,
            seccomp=self.seccomp,
            apparmor=self.apparmor,
            seccomp_profile_path=self.seccomp_profile_path,
        )


class LinuxPodConfig(Config, frozen=True):
    cgroup_parent: str = ""
    security_context: LinuxSandboxSecurityContext | None = None
    sysctls: dict[str, str] = {}
    overhead: LinuxContainerResources | None = None
    resources: LinuxContainerResources | None = None


class PodConfig(Config, frozen=True):
    metadata: PodMetadata | None = None
    hostname: str = ""
    log_directory: str = ""
    dns_config: DNSConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    linux: LinuxPodConfig | None = None

    @property
    def namespaces(self) -> NamespaceOption:
        """The namespace modes asked for; all `POD` where nothing was said."""
        if self.linux is None or self.linux.security_context is None:
            return NamespaceOption()
        return self.linux.security_context.namespace_options or NamespaceOption()

    @property
    def users(self) -> IDMap | None:
        """The ids of the pod's own user namespace; None for the host's. Raises `InvalidArgument`."""
        return userns.of_pod(self.namespaces)

    @property
    def host_network(self) -> bool:
        return self.namespaces.network is NamespaceMode.NODE

    @property
    def cgroup_parent(self) -> str:
        return self.linux.cgroup_parent if self.linux is not None else ""

    @property
    def privileged(self) -> bool:
        return (
            self.linux is not None
            and self.linux.security_context is not None
            and self.linux.security_context.privileged
        )
