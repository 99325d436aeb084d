"""What holds of a configuration beyond the types of its values; what the daemon cannot do is refused, not ignored."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Iterable

from atoll.config.sections import (
    Config,
    ImageSection,
    MetricsSection,
    NetworkSection,
    NriSection,
    RuntimeHandler,
    SandboxSection,
    Section,
    StreamingSection,
    TelemetrySection,
)
from atoll.config.text import Place, named

SANDBOXERS = ("shim", "podsandbox", "remote")
WITHOUT_SANDBOXES = ("io.containerd.runc.v1", "io.containerd.runc.v2")
"""Shims that serve tasks only."""
MAX_SOCKET_PATH = 107
"""Longest path of a unix socket, sun_path less its NUL; unix(7)."""
DAY_S = 86400.0
YEAR_S = 365 * DAY_S
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_MIRROR = re.compile(rf"{_HOST}(?:/[a-z0-9][a-z0-9._/-]*)?")
_REGISTRY = re.compile(rf"{_HOST}|\*")
_IMAGE = re.compile(r"[A-Za-z0-9\[][\w.:/@\[\]-]*")


class Mistake(Exception):
    """What is wrong, and with which key."""

    def __init__(self, place: Place, said: str) -> None:
        super().__init__(f"{named(place)}{said if said.startswith(':') else f' {said}'}")
        self.place = place


def check(config: Config) -> None:
    """Raises the first `Mistake`."""
    if config.default_runtime not in config.runtimes:
        known = ", ".join(sorted(config.runtimes))
        raise Mistake(("default_runtime",), f"{config.default_runtime!r} is not among [runtimes]: {known}")
    for name, handler in config.runtimes.items():
        _check_handler(name, handler)
    _check_sandboxes(config.sandboxes)
    _check_network(config.network)
    _check_images(config.images)
    _check_nri(config.nri)
    _check_streaming(config.streaming)
    _check_metrics(config.metrics)
    _check_telemetry(config.telemetry)
    _absolute((), config, ("root", "state"))
    socket = str(config.socket_path)
    if not socket.startswith("/"):
        raise Mistake(("socket",), f"= {socket!r}: must be an absolute path")
    if len(socket) > MAX_SOCKET_PATH:
        raise Mistake(
            ("socket",) if config.socket else ("state",),
            f": socket {socket}: is longer than {MAX_SOCKET_PATH} bytes; choose a shorter path",
        )
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", config.cgroup_parent) or ".." in config.cgroup_parent:
        raise Mistake(("cgroup_parent",), f"{config.cgroup_parent!r}: must be like /atoll")
    for folder in config.cdi.spec_dirs:
        if not folder.startswith("/"):
            raise Mistake(("cdi", "spec_dirs"), f": {folder!r} must be an absolute path")
    _within((), config, (("pods_per_shim", 1, 1024), ("idle_exit_s", 0, YEAR_S)))


def _check_handler(name: str, handler: RuntimeHandler) -> None:
    place = ("runtimes", name)
    if not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", name):
        raise Mistake(place, f": {name!r} must be letters, digits, `.`, `_` and `-`")
    if handler.sandboxer not in SANDBOXERS:
        raise Mistake((*place, "sandboxer"), f"{handler.sandboxer!r}: is none of {', '.join(SANDBOXERS)}")
    if (handler.sandboxer == "remote") != bool(handler.address):
        raise Mistake(
            (*place, "address" if handler.address else "sandboxer"),
            ': sandboxer = "remote" and an address belong together, as in address = "grpc+/run/other/controller.sock"',
        )
    if handler.sandboxer == "shim" and handler.shim in WITHOUT_SANDBOXES:
        raise Mistake(
            (*place, "shim"),
            f'{handler.shim!r}: has no sandbox service; give the handler sandboxer = "podsandbox"',
        )


def _check_sandboxes(section: SandboxSection) -> None:
    _within(("sandboxes",), section, (("unstarted_timeout_s", 1, DAY_S),))
    _absolute(("sandboxes",), section, ("containerd_root", "containerd_state"), or_empty=True)


def _check_network(section: NetworkSection) -> None:
    place = ("network",)
    _absolute(place, section, ("conf_dir",))
    _absolute(place, section, ("conf_template",), or_empty=True)
    for folder in section.bin_dirs:
        if not folder.startswith("/"):
            raise Mistake((*place, "bin_dirs"), f": {folder!r} must be an absolute path")
    _within(place, section, (("max_conf_num", 0, 1024), ("pool_size", 0, 1024)))
    try:
        ipaddress.ip_network(section.default_subnet)
    except ValueError as error:
        raise Mistake((*place, "default_subnet"), f": {error}") from None


def _check_images(section: ImageSection) -> None:
    place = ("images",)
    _absolute(place, section, ("auth_file",), or_empty=True)
    limits = (("max_layer_bytes", 1, 1 << 50), ("max_concurrent_unpacks", 1, 64), ("max_concurrent_downloads", 1, 64))
    _within(place, section, (*limits, ("stall_timeout_s", 1, DAY_S)))
    for name in section.pinned:
        if not _IMAGE.fullmatch(name):
            raise Mistake((*place, "pinned"), f": {name!r} is no image reference")
    for host, registry in section.registries.items():
        at = (*place, "registries", host)
        if not _REGISTRY.fullmatch(host):
            raise Mistake(at, ": is no HOST, HOST:PORT or *")
        _absolute(at, registry, ("ca_file",), or_empty=True)
        for mirror in registry.mirrors:
            if not _MIRROR.fullmatch(mirror):
                raise Mistake(
                    (*at, "mirrors"), f": {mirror!r} must be HOST, HOST:PORT or HOST:PORT/PATH, without http://"
                )


def _check_streaming(section: StreamingSection) -> None:
    place = ("streaming",)
    try:
        ipaddress.ip_address(section.address)
    except ValueError:
        raise Mistake((*place, "address"), f"{section.address!r}: must be an IP address, as in 127.0.0.1") from None
    _within(
        place,
        section,
        (
            ("port", 0, 65535),
            ("idle_timeout_s", 1, YEAR_S),
            ("creation_timeout_s", 0.1, 3600),
            ("max_connections", 1, 65536),
        ),
    )
    if bool(section.tls_cert) != bool(section.tls_key):
        raise Mistake((*place, "tls_cert" if section.tls_cert else "tls_key"), ": tls_cert and tls_key belong together")


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `IP:PORT` or `[IP]:PORT`; raises `ValueError`."""
    host, _, port = address.rpartition(":")
    number = int(port) if port.isdecimal() else 0
    if not 0 < number < 1 << 16:
        raise ValueError(f"{port!r} is no port")
    return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), number


def _check_metrics(section: MetricsSection) -> None:
    place, address = ("metrics", "address"), section.address
    if address.startswith("/"):
        if len(address) > MAX_SOCKET_PATH:
            raise Mistake(place, f"{address}: is longer than {MAX_SOCKET_PATH} bytes")
    elif address:
        try:
            host, _ = host_and_port(address)
        except ValueError:
            raise Mistake(place, f"{address!r}: must be a path, or an IP and a port, as in 127.0.0.1:9417") from None
        if not ipaddress.ip_address(host).is_loopback:
            raise Mistake(
                place,
                f"{address!r}: must be of the loopback, as in 127.0.0.1:9417; let a proxy with a password pass it on",
            )


def _check_telemetry(section: TelemetrySection) -> None:
    place, endpoint = ("telemetry",), section.endpoint
    try:
        url = urllib.parse.urlsplit(endpoint)
        is_one = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        is_one = False
    if endpoint and not is_one:
        raise Mistake((*place, "endpoint"), f"{endpoint!r}: must be a URL, as in http://127.0.0.1:4318")
    if not section.service_name:
        raise Mistake((*place, "service_name"), ": is empty, name the service")
    _within(place, section, (("sample_ratio", 0, 1),))


def _check_nri(section: NriSection) -> None:
    place = ("nri",)
    paths = ("socket_path", "plugin_path", "plugin_config_path", "legacy_config", "legacy_plugin_path")
    _absolute(place, section, paths)
    if len(section.socket_path) > MAX_SOCKET_PATH:
        raise Mistake((*place, "socket_path"), f"{section.socket_path}: is longer than {MAX_SOCKET_PATH} bytes")
    _within(place, section, (("plugin_registration_timeout_s", 0.1, 60), ("plugin_request_timeout_s", 0.1, 60)))


def _absolute(place: Place, section: Section, keys: Iterable[str], *, or_empty: bool = False) -> None:
    for key in keys:
        path: str = getattr(section, key)
        if not path.startswith("/") and not (or_empty and not path):
            raise Mistake((*place, key), f"= {path!r}: must be an absolute path{', or empty' if or_empty else ''}")


def _within(place: Place, section: Section, limits: Iterable[tuple[str, float, float]]) -> None:
    for key, least, most in limits:
        value: float = getattr(section, key)
        if not least <= value <= most:
            raise Mistake((*place, key), f"= {_number(value)}: must be {_number(least)} to {_number(most)}")


def _number(value: float) -> str:
    return f"{value:.15g}"
