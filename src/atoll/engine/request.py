"""From what a pod asks for to what each layer below is asked."""

from __future__ import annotations

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.container.store import Container
from atoll.network.model import AttachRequest, Dns, PortMapping
from atoll.sandbox.config import PodConfig, Protocol

PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.SCTP: "sctp"}


def pod_name(config: PodConfig) -> str:
    """The one name of a pod: `<name>_<namespace>_<uid>_<attempt>`; raises `InvalidArgument` without metadata."""
    metadata = config.metadata
    if metadata is None or not metadata.name:
        raise errors.InvalidArgument("pod config: metadata.name is required")
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def require_log_directory(config: PodConfig) -> str:
    """The pod's log folder without a slash at its end, or ""; raises `InvalidArgument` unless absolute and clean."""
    folder = config.log_directory
    trimmed = folder.rstrip("/")
    if folder and not (trimmed.startswith("/") and _is_clean(trimmed[1:])):
        raise errors.InvalidArgument(f"pod config: log_directory {folder!r}: must be an absolute path without . and ..")
    return trimmed


def names_in_log_folder(container: Container) -> int:
    """How many names at the end of a container's log path are in a folder that others may write to.

    What is below the pod's log folder is; where that has no name the log has a place of its own.
    """
    config = container.metadata.config
    wanted = config.log_path if config is not None else ""
    return wanted.count("/") + 1 if container.metadata.log_path.endswith(f"/{wanted}") else 1


def log_path(pod: PodConfig, config: ContainerConfig, own: str) -> str:
    """Where a container's log goes, "" for none: below the pod's folder, in `own` where it has none.

    Raises `InvalidArgument` for a log_path that could lead out of the pod's folder.
    """
    if not config.log_path:
        return ""
    if not _is_clean(config.log_path):
        raise errors.InvalidArgument(
            f"container config: log_path {config.log_path!r}: must be a relative path without . and .."
        )
    folder = require_log_directory(pod)
    return f"{folder}/{config.log_path}" if folder else own


def _is_clean(path: str) -> bool:
    return "\0" not in path and not {"", ".", ".."}.intersection(path.split("/"))


def attach_request(pod_id: str, config: PodConfig, netns_path: str) -> AttachRequest:
    """What the network is asked for this pod."""
    metadata = config.metadata
    dns = config.dns_config
    return AttachRequest(
        sandbox_id=pod_id,
        netns_path=netns_path,
        name=metadata.name if metadata is not None else "",
        namespace=metadata.namespace if metadata is not None else "",
        uid=metadata.uid if metadata is not None else "",
        annotations=config.annotations,
        ports=tuple(
            PortMapping(
                host_port=mapping.host_port,
                container_port=mapping.container_port,
                protocol=PROTOCOLS[mapping.protocol],
                host_ip=mapping.host_ip,
            )
            for mapping in config.port_mappings
            if mapping.host_port > 0
        ),
        dns=Dns(nameservers=dns.servers, search=dns.searches, options=dns.options) if dns is not None else None,
        cgroup_parent=config.cgroup_parent,
        users=config.users,
    )
