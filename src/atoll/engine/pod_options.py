"""What is looked at in a pod's config before anything is acquired for it: what this host cannot honour is refused.

A pod has no process of its own where the shim holds its namespaces; the security context of the pod is for the process
that a pause container has, and is refused all the same where it could not be obeyed.
"""

from __future__ import annotations

import re
from pathlib import Path

from atoll import errors
from atoll.engine import own_mounts
from atoll.engine.hosts import REMOTE
from atoll.engine.parts import Parts
from atoll.linux.cgroup_layout import validated
from atoll.oci import resources, seccomp, security, user
from atoll.oci.config import LinuxContainerSecurityContext
from atoll.sandbox import annotations
from atoll.sandbox.config import DNSConfig, PodConfig

PORT_LIMIT = 65535
HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


def require(parts: Parts, handler_name: str, config: PodConfig) -> None:
    """Raises `InvalidArgument` for what no pod can have, `FailedPrecondition` for what a pod of the handler cannot.

    Blocks as long as it takes to read the seccomp profile where the host's is named.
    """
    if config.namespaces.target_id:
        raise errors.InvalidArgument("namespace_options.target_id: is for containers, not for pods")
    if config.hostname and not HOSTNAME.fullmatch(config.hostname):
        raise errors.InvalidArgument(f"hostname {config.hostname[:100]!r}: letters, digits, dots and dashes only")
    _require_dns(config.dns_config or DNSConfig())
    _require_places(config)
    own_mounts.pod_volumes(config.annotations)
    for mapping in config.port_mappings:
        if not 0 <= mapping.host_port <= PORT_LIMIT or not 0 <= mapping.container_port <= PORT_LIMIT:
            raise errors.InvalidArgument(f"port_mappings: {mapping.host_port}:{mapping.container_port}: no such port")
    problem = parts.features[handler_name].no_users
    if config.users is not None and problem:
        raise errors.FailedPrecondition(f"user namespace: runtime handler {handler_name!r} has none: {problem}")
    if parts.config.runtimes[handler_name].sandboxer == REMOTE or config.linux is None:
        return
    if config.cgroup_parent.strip("/"):
        validated(config.cgroup_parent)
    for field in ("overhead", "resources"):
        asked = getattr(config.linux, field)
        if asked is not None:
            resources.resolve(asked, parts.host)
    if config.linux.security_context is not None:
        _require_security(parts, handler_name, config.linux.security_context.in_container_words())


def _require_places(config: PodConfig) -> None:
    """The network that it is to be without, and the folder of its logs."""
    if config.annotations.get(annotations.NO_NETWORK, "true") not in ("true", "false"):
        raise errors.InvalidArgument(f"annotation {annotations.NO_NETWORK}: is true or false")
    logs = Path(config.log_directory) if config.log_directory else None
    if logs is not None and logs.exists() and not logs.is_dir():
        raise errors.InvalidArgument(f"log_directory {config.log_directory[:200]!r}: is there and no folder")


def _require_dns(dns: DNSConfig) -> None:
    """Each value is one word of a line of resolv.conf(5)."""
    for name in ("servers", "searches", "options"):
        for value in getattr(dns, name):
            if not value or not value.isprintable() or " " in value:
                raise errors.InvalidArgument(f"dns_config.{name}: {value[:100]!r} is not one word")


def _require_security(parts: Parts, handler_name: str, asked: LinuxContainerSecurityContext) -> None:
    security.selinux_labels(None if asked.privileged else asked.selinux_options, parts.host)
    security.apparmor_profile(asked, parts.host)
    user.require_ids(asked)
    seccomp.resolve(seccomp.SeccompRequest(security=asked), parts.host, parts.features[handler_name])
