"""What a verbose status tells: the JSON text of the key `info`, with the names that containerd's clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import msgspec

from atoll import errors
from atoll.oci.config import LinuxContainerResources
from atoll.sandbox.config import PodConfig
from atoll.unreadable import UNREADABLE

KEY = "info"
NOTHING = msgspec.Raw(b"null")
"""An optional JSON text that is not there. (`Raw | None` decodes nothing but null.)"""


class SandboxInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A sandbox in full. Fields up to `resources` are containerd's; a client skips those that it does not know.

    What a controller does not know stays at its default. JSON texts of others (`runtimeSpec` is an OCI runtime
    spec, `cniResult` and `sandboxMetadata` are of the record's extension `metadata`) are passed on as they are.
    """

    pid: int = 0
    """The process that stands for the sandbox; 0 where none does."""
    process_status: str = ""
    """created, running, paused, stopped, unknown, or deleted where nothing of the process is left."""
    net_namespace_closed: bool = False
    """Whether the network namespace that it was given is gone."""
    image: str = ""
    """The pause image, its snapshot and who keeps that, where there is a pause container."""
    snapshot_key: str = ""
    snapshotter: str = ""
    runtime_handler: str = ""
    """The runtime handler that a CRI client asked for."""
    runtime_type: str = ""
    """The record's `runtime.name`, and its options."""
    runtime_options: msgspec.Raw = NOTHING
    config: PodConfig | None = None
    """What the pod asked for."""
    runtime_spec: msgspec.Raw = NOTHING
    cni_result: msgspec.Raw = NOTHING
    sandbox_metadata: msgspec.Raw = NOTHING
    overhead: LinuxContainerResources | msgspec.UnsetType = msgspec.UNSET
    """The limits as they are now, after updates: the pod's overhead, and the sum of its containers."""
    resources: LinuxContainerResources | msgspec.UnsetType = msgspec.UNSET
    labels: Mapping[str, str] = {}
    """The record's, after updates."""
    annotations: Mapping[str, str] = {}
    """The pod's, after updates."""
    shim_pid: int = 0
    """The process of the shim; other sandboxes may share it."""
    files: str = ""
    """The folder of hostname, hosts, resolv.conf and shm."""
    cgroup: str = ""
    """The cgroup that its containers' are below; empty where it has none."""
    netns: str = ""
    """The path of the network namespace; empty with the host's network."""
    containers: tuple[str, ...] = ()
    """The containers that the shim has now."""

    def encode(self) -> dict[str, str]:
        """As `ControllerStatus.info`."""
        return {KEY: msgspec.json.encode(self).decode()}

    @classmethod
    def decode(cls, info: Mapping[str, str]) -> Self:
        """Of a verbose status; all defaults where it has none. Raises `DataLoss` for a text that is no such JSON."""
        try:
            return msgspec.json.decode(info.get(KEY, "{}"), type=cls)
        except UNREADABLE as error:
            raise errors.DataLoss(f"sandbox info: is not what a status tells: {error}") from error
