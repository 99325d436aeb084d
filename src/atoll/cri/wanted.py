"""From the messages that ask for pods and containers to their configs."""

from __future__ import annotations

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_struct
from atoll.container.config import ContainerConfig
from atoll.sandbox.config import PodConfig


def pod(message: pb.PodSandboxConfig) -> PodConfig:
    """Raises `InvalidArgument` for what is not for Linux."""
    _require_linux(message)
    return to_struct(PodConfig, message)


def container(message: pb.ContainerConfig) -> ContainerConfig:
    """Raises `InvalidArgument` for what is not for Linux."""
    _require_linux(message)
    return to_struct(ContainerConfig, message)


def _require_linux(message: pb.PodSandboxConfig | pb.ContainerConfig) -> None:
    if message.windows.ByteSize():
        raise errors.InvalidArgument("windows: this is Linux")
