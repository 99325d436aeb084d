"""Host devices for a container: their nodes and the cgroup's rules.

Source: config-linux.md of the runtime spec; the CRI's Device message.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.oci import spec
from atoll.oci.config import Device

DENY_ALL = spec.DeviceRule(allow=False, access="rwm")
ALLOW_ALL = spec.DeviceRule(allow=True, access="rwm")
DEVICE_LIMIT = 4096
# Not devices of the host but file systems that a container has its own of, and container programs' folders.
_SKIPPED = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    nodes: tuple[spec.Device, ...]
    rules: tuple[spec.DeviceRule, ...]


def resolve(asked: tuple[Device, ...], *, all_devices: bool) -> Devices:
    """The devices of a container; `all_devices` gives every one of the host besides those asked for.

    A host path that is a folder stands for every device below it. Raises `InvalidArgument` for a path that is no
    device or folder of devices.
    """
    nodes: dict[str, spec.Device] = {}
    rules = [ALLOW_ALL if all_devices else DENY_ALL]
    if all_devices:
        nodes.update((node.path, node) for node in _below(Path("/dev"), "/dev"))
    for device in asked:
        access = _permissions(device)
        found = list(_devices(device))
        nodes.update((node.path, node) for node in found)
        if not all_devices:
            rules += [
                spec.DeviceRule(allow=True, type=node.type, major=node.major, minor=node.minor, access=access)
                for node in found
            ]
    return Devices(nodes=tuple(nodes.values()), rules=tuple(rules))


def _permissions(device: Device) -> str:
    access = device.permissions or "rwm"
    if set(access) - set("rwm") or len(set(access)) != len(access):
        raise errors.InvalidArgument(
            f"device {device.host_path}: permissions {access[:20]!r} are not of the letters rwm"
        )
    return access


def _devices(device: Device) -> Iterator[spec.Device]:
    target = device.container_path or device.host_path
    if not device.host_path.startswith("/") or not target.startswith("/") or "\0" in device.host_path + target:
        raise errors.InvalidArgument(
            f"device {device.host_path[:200]!r}: host_path and container_path must be absolute"
        )
    if os.path.normpath(target).startswith(("/proc/", "/sys/")):
        raise errors.InvalidArgument(f"device {device.host_path}: container_path {target}: no device can be made there")
    try:
        real = Path(device.host_path).resolve(strict=True)
        status = real.stat()
    except OSError as error:
        raise errors.InvalidArgument(f"device {device.host_path}: {error.strerror}") from error
    except RuntimeError as error:
        raise errors.InvalidArgument(f"device {device.host_path}: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        if not real.is_relative_to("/dev"):
            raise errors.InvalidArgument(f"device {device.host_path}: is a folder outside /dev; name its devices")
        yield from _below(real, os.path.normpath(target))
    elif (node := _node(os.path.normpath(target), status)) is not None:
        yield node
    else:
        raise errors.InvalidArgument(f"device {device.host_path}: is not a device")


def _below(folder: Path, target: str) -> Iterator[spec.Device]:
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        place = os.path.normpath(os.path.join(target, os.path.relpath(parent, folder)))
        for name in names:
            if name in _SKIPPED:
                continue
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # unplugged meanwhile
                continue
            node = _node(f"{place}/{name}", status)
            if node is not None:
                count += 1
                if count > DEVICE_LIMIT:
                    raise errors.InvalidArgument(f"device {folder}: more than {DEVICE_LIMIT} devices below it")
                yield node


def _node(path: str, status: os.stat_result) -> spec.Device | None:
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    return spec.Device(
        path=path,
        type=kind,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        file_mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )
