"""The namespaces that a sandbox's options ask for, as the beginning of a command line (unshare(1), nsenter(1))."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api.codec import to_struct
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.oci.config import NamespaceMode
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import CreateOptions

POD_CONFIG = "runtime.v1.PodSandboxConfig"
"""The type URL of a pod's config in `CreateOptions.options`, which every CRI client sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """`command` goes before a program; where it `forks`, the program is its child. `hostname` is to be set inside."""

    command: tuple[str, ...]
    forks: bool
    hostname: str = ""


def namespaces_of(options: CreateOptions) -> Namespaces:
    """A PID, IPC and UTS namespace, and the network namespace that is given or a new one, but for the host's.

    By the modes of a pod's config, which may be absent. Raises `InvalidArgument` for a config that cannot be read, and
    for one with what these namespaces do not have: sysctls, user namespaces.
    """
    config = _config(options)
    modes = config.namespaces
    if modes.userns_options is not None and modes.userns_options.mode is not NamespaceMode.NODE:
        raise errors.InvalidArgument("pod config: this controller makes no user namespaces")
    if config.linux is not None and config.linux.sysctls:
        raise errors.InvalidArgument("pod config: this controller sets no sysctls")
    flags = ["--ipc"] if modes.ipc is NamespaceMode.POD else []
    if not config.host_network:
        flags += ["--uts"] if options.netns_path else ["--uts", "--net"]
    forks = modes.pid is NamespaceMode.POD
    flags += ["--pid", "--fork"] if forks else []
    enter = ("nsenter", f"--net={options.netns_path}", "--") if options.netns_path else ()
    command = (*enter, "unshare", *flags, "--") if flags else enter
    return Namespaces(command=command, forks=forks, hostname="" if config.host_network else config.hostname)


def _config(options: CreateOptions) -> PodConfig:
    if options.options is None or options.options.type_url != POD_CONFIG:
        return PodConfig()
    try:
        return to_struct(PodConfig, PodSandboxConfig.FromString(options.options.value))
    except DecodeError as error:
        raise errors.InvalidArgument(f"pod config: cannot be read: {error}") from None
