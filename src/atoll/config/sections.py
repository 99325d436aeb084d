"""The tables of the configuration file, and the defaults of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the file."""


class RuntimeHandler(Section, frozen=True):
    """What a pod's runtime handler stands for: a sandboxer, a shim, an OCI runtime."""

    sandboxer: str = "shim"
    shim: str = "io.containerd.atoll.v1"
    oci_runtime: str = "auto"
    systemd_cgroup: bool = False
    address: str = ""
    remote_sandboxer: str = ""
    pause_image: str = "atoll/pause:latest"
    pod_annotations: tuple[str, ...] = ()
    container_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False


class SandboxSection(Section, frozen=True):
    """What is kept for clients of the sandbox API, such as a containerd whose sandboxer this daemon is."""

    unstarted_timeout_s: float = 300.0
    containerd_root: str = "/var/lib/containerd"
    containerd_state: str = "/run/containerd"


class NetworkSection(Section, frozen=True):
    conf_dir: str = "/etc/cni/net.d"
    conf_template: str = ""
    default_network: bool = True
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    max_conf_num: int = 1
    default_subnet: str = "10.89.0.0/16"
    pool_size: int = 4
    pool_networks: tuple[str, ...] = ()


class Registry(Section, frozen=True):
    """How to reach one registry, named by its host and port."""

    plain_http: bool = False
    skip_verify: bool = False
    ca_file: str = ""
    mirrors: tuple[str, ...] = ()


class ImageSection(Section, frozen=True):
    registries: dict[str, Registry] = {}
    auth_file: str = ""
    pinned: tuple[str, ...] = ()
    max_layer_bytes: int = 16 * 1024**3
    max_concurrent_unpacks: int = 2
    max_concurrent_downloads: int = 3
    stall_timeout_s: float = 60.0


class StreamingSection(Section, frozen=True):
    """The server behind Exec, Attach and PortForward of the CRI.

    Port 0 is one that the kernel chooses, at the first session. The files of TLS are both there or neither.
    """

    address: str = "127.0.0.1"
    port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    idle_timeout_s: float = 4 * 3600.0
    creation_timeout_s: float = 30.0
    max_connections: int = 512


class NriSection(Section, frozen=True):
    """Plugins of the Node Resource Interface: installed ones, ones that connect, and those of version 0.1."""

    enable: bool = False
    socket_path: str = "/var/run/nri/nri.sock"
    disable_connections: bool = False
    plugin_path: str = "/opt/nri/plugins"
    plugin_config_path: str = "/etc/nri/conf.d"
    plugin_registration_timeout_s: float = 5.0
    plugin_request_timeout_s: float = 2.0
    legacy_config: str = "/etc/nri/conf.json"
    legacy_plugin_path: str = "/opt/nri/bin"


class CdiSection(Section, frozen=True):
    """The Container Device Interface: folders of the files that describe devices, a later one counts more."""

    spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")


class MetricsSection(Section, frozen=True):
    """The endpoint for Prometheus: an absolute path of a unix socket, or a loopback IP and a port; empty: none."""

    address: str = ""


class TelemetrySection(Section, frozen=True):
    """Traces by OpenTelemetry: the URL of a collector that takes OTLP over HTTP; empty: none."""

    endpoint: str = ""
    service_name: str = "atoll"
    sample_ratio: float = 1.0


class Config(Section, frozen=True):
    root: str = "/var/lib/atoll"
    state: str = "/run/atoll"
    socket: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    default_runtime: str = "atoll"
    runtimes: dict[str, RuntimeHandler] = msgspec.field(default_factory=lambda: {"atoll": RuntimeHandler()})
    sandboxes: SandboxSection = SandboxSection()
    network: NetworkSection = NetworkSection()
    images: ImageSection = ImageSection()
    nri: NriSection = NriSection()
    cdi: CdiSection = CdiSection()
    streaming: StreamingSection = StreamingSection()
    metrics: MetricsSection = MetricsSection()
    telemetry: TelemetrySection = TelemetrySection()
    cgroup_parent: str = "/atoll"
    max_container_log_line_bytes: int = 16384
    idle_exit_s: float = 0.0
    pods_per_shim: int = 32

    @property
    def socket_path(self) -> Path:
        return Path(self.socket) if self.socket else Path(self.state) / "atoll.sock"
