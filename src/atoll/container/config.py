"""What a container asks for: `ContainerConfig`, in the words of the CRI's ContainerConfig."""

from __future__ import annotations

from atoll.oci.config import (
    CDIDevice,
    Config,
    Device,
    ImageSpec,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
)


class ContainerMetadata(Config, frozen=True):
    """Name and attempt, unique in the pod."""

    name: str = ""
    attempt: int = 0


class LinuxContainerConfig(Config, frozen=True):
    resources: LinuxContainerResources | None = None
    security_context: LinuxContainerSecurityContext | None = None


class ContainerConfig(Config, frozen=True):
    metadata: ContainerMetadata | None = None
    image: ImageSpec | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[KeyValue, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    linux: LinuxContainerConfig | None = None
    CDI_devices: tuple[CDIDevice, ...] = ()
    stop_signal: int = 0

    @property
    def security(self) -> LinuxContainerSecurityContext:
        """The security context asked for; the defaults where nothing was said."""
        if self.linux is None or self.linux.security_context is None:
            return LinuxContainerSecurityContext()
        return self.linux.security_context

    @property
    def resources(self) -> LinuxContainerResources:
        if self.linux is None or self.linux.resources is None:
            return LinuxContainerResources()
        return self.linux.resources
