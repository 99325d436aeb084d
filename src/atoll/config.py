"""The daemon's configuration file: TOML, every key optional, a key that nobody knows refused.

root = "/var/lib/atoll"             # durable state
state = "/run/atoll"                # volatile state
socket = "/run/atoll/atoll.sock"
default_runtime = "atoll"
pods_per_shim = 32                  # pods that share a shim process; 1: each has its own

[runtimes.atoll]                    # a runtime handler
sandboxer = "shim"                  # shim | podsandbox | remote
shim = "io.containerd.atoll.v1"     # a runtime type, or a path
oci_runtime = "auto"                # auto | crun | runc | /path
systemd_cgroup = false

[sandboxes]                         # of clients of the sandbox API
unstarted_timeout_s = 300.0

[network]
conf_dir = "/etc/cni/net.d"         # where none is there, a default bridge network is made
bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
pool_size = 4                       # ready namespaces kept for networks that are fit for it
pool_networks = []                  # their names; none: the default network alone

[streaming]                         # the server behind exec, attach and port-forward
address = "127.0.0.1"
port = 0                            # 0: one that the kernel chooses, at the first session

[nri]                               # plugins that watch pods and adjust containers
enable = false
socket_path = "/var/run/nri/nri.sock"
plugin_path = "/opt/nri/plugins"

[images.registries."127.0.0.1:5000"]
plain_http = true
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import msgspec

from atoll import errors

DEFAULT_PATH = Path("/etc/atoll/config.toml")
SANDBOXERS = ("shim", "podsandbox", "remote")
"""What a runtime handler may name; what the daemon cannot compose is refused, not ignored."""
WITHOUT_SANDBOXES = ("io.containerd.runc.v1", "io.containerd.runc.v2")
"""Shims that serve tasks only."""
MAX_PODS_PER_SHIM = 1024
MAX_UNSTARTED_S = 86400.0
MAX_PLUGIN_TIMEOUT_S = 60.0
MAX_IDLE_S = 31536000.0
MAX_SOCKET_PATH = 107
"""Longest path of a unix socket, sun_path less its NUL; unix(7)."""


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
    max_layer_bytes: int = 16 * 1024**3
    max_concurrent_unpacks: int = 2


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


class Config(Section, frozen=True):
    root: str = "/var/lib/atoll"
    state: str = "/run/atoll"
    socket: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    default_runtime: str = "atoll"
    runtimes: dict[str, RuntimeHandler] = msgspec.field(default_factory=lambda: {"atoll": RuntimeHandler()})
    sandboxes: SandboxSection = SandboxSection()
    network: NetworkSection = NetworkSection()
    images: ImageSection = ImageSection()
    nri: NriSection = NriSection()
    streaming: StreamingSection = StreamingSection()
    cgroup_parent: str = "/atoll"
    max_container_log_line_bytes: int = 16384
    idle_exit_s: float = 0.0
    pods_per_shim: int = 32

    @property
    def socket_path(self) -> Path:
        return Path(self.socket) if self.socket else Path(self.state) / "atoll.sock"


def load(path: Path | None) -> Config:
    """Read the file at `path`, or the default file where it is there, or the defaults.

    Raises `InvalidArgument` with the file, the place and what is known there, `NotFound` for a
    named file that is missing.
    """
    source = path if path is not None else DEFAULT_PATH
    try:
        text = source.read_text()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise errors.NotFound(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidArgument(f"{source}: cannot be read: {error}") from error
    try:
        config = msgspec.convert(tomllib.loads(text), Config)
    except tomllib.TOMLDecodeError as error:
        raise errors.InvalidArgument(f"{source}: is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(f"{source}: {_explain(str(error), text)}") from error
    return check(config, str(source))


def file_of(path: Path | None) -> str:
    """The file that `load(path)` reads, absolute; empty where there is none."""
    if path is not None:
        return str(path.absolute())
    return str(DEFAULT_PATH) if DEFAULT_PATH.exists() else ""


def check(config: Config, source: str) -> Config:
    """The rules that reach over more than one key; the config itself where all hold."""
    if config.default_runtime not in config.runtimes:
        known = ", ".join(sorted(config.runtimes))
        raise errors.InvalidArgument(
            f"{source}: default_runtime {config.default_runtime!r} is not among [runtimes]: {known}"
        )
    _check_handlers(config, source)
    _check_sandboxes(config.sandboxes, source)
    _check_nri(config.nri, source)
    _check_streaming(config.streaming, source)
    for name, path in (("root", config.root), ("state", config.state), ("socket", str(config.socket_path))):
        if not path.startswith("/"):
            raise errors.InvalidArgument(f"{source}: {name} = {path!r}: must be an absolute path")
    if len(str(config.socket_path)) > MAX_SOCKET_PATH:
        raise errors.InvalidArgument(
            f"{source}: socket {config.socket_path}: is longer than {MAX_SOCKET_PATH} bytes; choose a shorter path"
        )
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", config.cgroup_parent) or ".." in config.cgroup_parent:
        raise errors.InvalidArgument(f"{source}: cgroup_parent {config.cgroup_parent!r}: must be like /atoll")
    if not 1 <= config.pods_per_shim <= MAX_PODS_PER_SHIM:
        raise errors.InvalidArgument(
            f"{source}: pods_per_shim = {config.pods_per_shim}: must be 1 to {MAX_PODS_PER_SHIM}"
        )
    return config


def _check_handlers(config: Config, source: str) -> None:
    for name, handler in config.runtimes.items():
        if handler.sandboxer not in SANDBOXERS:
            known = ", ".join(SANDBOXERS)
            raise errors.InvalidArgument(
                f"{source}: [runtimes.{name}] sandboxer {handler.sandboxer!r}: is none of {known}"
            )
        if (handler.sandboxer == "remote") != bool(handler.address):
            raise errors.InvalidArgument(
                f'{source}: [runtimes.{name}]: sandboxer = "remote" and an address belong together, as in '
                'address = "grpc+/run/other/controller.sock"'
            )
        if handler.sandboxer == "shim" and handler.shim in WITHOUT_SANDBOXES:
            raise errors.InvalidArgument(
                f"{source}: [runtimes.{name}] shim {handler.shim!r}: has no sandbox service; "
                'give the handler sandboxer = "podsandbox"'
            )


def _check_sandboxes(section: SandboxSection, source: str) -> None:
    if not 1.0 <= section.unstarted_timeout_s <= MAX_UNSTARTED_S:
        raise errors.InvalidArgument(
            f"{source}: [sandboxes] unstarted_timeout_s = {section.unstarted_timeout_s:g}: "
            f"must be 1 to {MAX_UNSTARTED_S:g}"
        )
    for name, path in (
        ("containerd_root", section.containerd_root),
        ("containerd_state", section.containerd_state),
    ):
        if path and not path.startswith("/"):
            raise errors.InvalidArgument(f"{source}: [sandboxes] {name} = {path!r}: must be an absolute path, or empty")


def _check_streaming(section: StreamingSection, source: str) -> None:
    try:
        ipaddress.ip_address(section.address)
    except ValueError:
        raise errors.InvalidArgument(
            f"{source}: [streaming] address {section.address!r}: must be an IP address, as in 127.0.0.1"
        ) from None
    for name, value, least, most in (
        ("port", section.port, 0, 65535),
        ("idle_timeout_s", section.idle_timeout_s, 1.0, MAX_IDLE_S),
        ("creation_timeout_s", section.creation_timeout_s, 0.1, 3600.0),
        ("max_connections", section.max_connections, 1, 65536),
    ):
        if not least <= value <= most:
            raise errors.InvalidArgument(f"{source}: [streaming] {name} = {value:g}: must be {least:g} to {most:g}")
    if bool(section.tls_cert) != bool(section.tls_key):
        raise errors.InvalidArgument(f"{source}: [streaming] tls_cert and tls_key: belong together")


def _check_nri(section: NriSection, source: str) -> None:
    for name in ("socket_path", "plugin_path", "plugin_config_path", "legacy_config", "legacy_plugin_path"):
        path: str = getattr(section, name)
        if not path.startswith("/"):
            raise errors.InvalidArgument(f"{source}: [nri] {name} = {path!r}: must be an absolute path")
    if len(section.socket_path) > MAX_SOCKET_PATH:
        raise errors.InvalidArgument(
            f"{source}: [nri] socket_path {section.socket_path}: is longer than {MAX_SOCKET_PATH} bytes"
        )
    for name in ("plugin_registration_timeout_s", "plugin_request_timeout_s"):
        value: float = getattr(section, name)
        if not 0.1 <= value <= MAX_PLUGIN_TIMEOUT_S:
            raise errors.InvalidArgument(
                f"{source}: [nri] {name} = {value:g}: must be 0.1 to {MAX_PLUGIN_TIMEOUT_S:g}"
            )


_WRONG_TYPE = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<given>[^`]+)`")
_TYPES = {
    "array": 'a list, as in ["a", "b"]',
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
}
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$\.?(?P<path>[^`]*)`)?")


def _explain(message: str, text: str) -> str:
    """The validation error with its line, and the key that was probably meant."""
    found = _UNKNOWN.search(message)
    if found is None:
        return _explain_value(message, text)
    field = found["field"]
    known = _known(found["path"] or "")
    close = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{_where(field, text)}unknown key {field!r}; {hint}"


def _explain_value(message: str, text: str) -> str:
    """The error of a value that is none for its key, in the words of the file."""
    what, _, at = message.partition(" - at ")
    parts = [part for part in re.sub(r"\[[^]]*\]", ".*", at.strip("`$")).split(".") if part]
    items = bool(parts) and parts[-1] == "*"
    key = next((part for part in reversed(parts) if part != "*"), "")
    table = ".".join(parts[: parts.index(key)]) if key else ""
    name = f"[{table}] {key}" if table else key or "the file"
    if what.startswith("Invalid enum value"):  # the one key that is a choice
        known = ", ".join(get_args(get_type_hints(Config)["log_level"]))
        return f"{_where(key, text)}{name}: {what.removeprefix('Invalid enum value ')} is none of {known}"
    wrong = _WRONG_TYPE.fullmatch(what)
    if wrong is None:
        return f"{_where(key, text)}{name}: {what[:1].lower()}{what[1:].replace('`', '')}"
    wanted = " or ".join(_TYPES.get(one.strip(), one.strip()) for one in wrong["wanted"].split("|"))
    given = _TYPES.get(wrong["given"], wrong["given"]).partition(",")[0].removesuffix(" in quotes")
    return f"{_where(key, text)}{name}: {'each item ' if items else ''}must be {wanted}, and is {given}"


def _where(key: str, text: str) -> str:
    rows = enumerate(text.splitlines(), 1)
    line = next((n for n, row in rows if key and re.match(rf'\s*\[?[\w."-]*\b{re.escape(key)}\b', row)), 0)
    return f"line {line}: " if line else ""


def _known(path: str) -> list[str]:
    parts = path.replace("[...]", "").split(".") if path else []
    section: type[Section] = Config
    if parts and parts[0] == "network":
        section = NetworkSection
    elif parts and parts[0] == "sandboxes":
        section = SandboxSection
    elif parts and parts[0] == "nri":
        section = NriSection
    elif parts and parts[0] == "streaming":
        section = StreamingSection
    elif parts and parts[0] == "runtimes":
        section = RuntimeHandler
    elif parts[:2] == ["images", "registries"]:
        section = Registry
    elif parts and parts[0] == "images":
        section = ImageSection
    return list(section.__struct_fields__)
