"""A CNI configuration made of a template, once a kubelet has told the ranges of this node's pods.

The template is a network configuration (JSON) in which three texts stand for what is told:

    "{{pod_cidr}}"       the first range, as in "10.1.0.0/24"
    "{{pod_ranges}}"     all of them, as host-local takes them: [[{"subnet": "10.1.0.0/24"}], ...]
    "{{pod_routes}}"     a default route for each version of IP among them: [{"dst": "0.0.0.0/0"}, ...]
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux.files import replacing
from atoll.network import config
from atoll.network.model import JSON
from atoll.unreadable import UNREADABLE

FILE = "10-atoll.conflist"
DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
MAX_RANGES = 16

Range = ipaddress.IPv4Network | ipaddress.IPv6Network


def ranges(told: str) -> tuple[Range, ...]:
    """The ranges that a pod CIDR names, which commas part; raises `InvalidArgument`."""
    parts = [part.strip() for part in told.split(",")]
    if len(parts) > MAX_RANGES:
        raise errors.InvalidArgument(f"pod_cidr: names {len(parts)} ranges; {MAX_RANGES} are the most")
    try:
        return tuple(ipaddress.ip_network(part) for part in parts)
    except ValueError as error:
        raise errors.InvalidArgument(f"pod_cidr {told[:100]!r}: {error}") from error


def fill(template: bytes, told: tuple[Range, ...], *, source: str) -> bytes:
    """The network configuration that `template` becomes; raises `FailedPrecondition` where that is none."""
    values: dict[str, JSON] = {
        "{{pod_cidr}}": str(told[0]),
        "{{pod_ranges}}": [[{"subnet": str(one)}] for one in told],
        "{{pod_routes}}": [{"dst": DEFAULT_ROUTES[version]} for version in sorted({one.version for one in told})],
    }
    try:
        filled = msgspec.json.encode(_filled(msgspec.json.decode(template), values))
        config.parse(filled, source=source)
    except (errors.InvalidArgument, *UNREADABLE) as error:
        raise errors.FailedPrecondition(f"{source}: is no template of a CNI configuration: {error}") from error
    return msgspec.json.format(filled, indent=2) + b"\n"


def _filled(value: JSON, values: dict[str, JSON]) -> JSON:
    if isinstance(value, str):
        return values.get(value, value)
    if isinstance(value, dict):
        return {key: _filled(part, values) for key, part in msgspec.convert(value, dict[str, JSON]).items()}
    if isinstance(value, list):
        return [_filled(part, values) for part in msgspec.convert(value, list[JSON])]
    return value


def write(folder: Path, template: Path, told: tuple[Range, ...]) -> Path:
    """Write the filled template into the folder of configurations, whole or not at all; the file's path. Blocks.

    Raises `FailedPrecondition` naming what cannot be read or written.
    """
    target = folder / FILE
    try:
        content = fill(template.read_bytes(), told, source=str(template))
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with replacing(target, mode=0o644) as file:
            file.write(content)
    except OSError as error:
        raise errors.FailedPrecondition(f"{error.filename or target}: {error.strerror}") from error
    return target
