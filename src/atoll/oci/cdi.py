"""Devices by name: the Container Device Interface, whose files say what a device means for a container's spec.

A device is called `vendor.com/class=name`. Files lie in folders of the host, the later folder counts more; in one
folder each device is in one file only. Files are JSON: YAML has no reader here, and a device that is not found says so
where there are such files. Source: the CDI specification, 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll import errors
from atoll.oci import spec
from atoll.unreadable import UNREADABLE

ANNOTATION_PREFIX = "cdi.k8s.io/"
FILE_LIMIT_BYTES = 16 << 20
DEVICES_LIMIT = 256
OLDEST, NEWEST = (0, 3), (1, 1)

_WORD = r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?/{_WORD}=[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_KIND = re.compile(rf"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?/{_WORD}")
_HOOKS = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_MODES = {"b": stat.S_ISBLK, "c": stat.S_ISCHR, "p": stat.S_ISFIFO}


class _Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A part of a file; a field that we do not know may not be left out in silence."""


class DeviceNode(_Strict, frozen=True):
    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class MountEdit(_Strict, frozen=True):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class HookEdit(_Strict, frozen=True):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


class Edits(_Strict, frozen=True):
    """What is changed in a spec; `intel_rdt` and `net_devices` are only known to be refused."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[MountEdit, ...] = ()
    hooks: tuple[HookEdit, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")
    intel_rdt: dict[str, object] | None = msgspec.field(default=None, name="intelRdt")
    net_devices: tuple[dict[str, object], ...] = ()


class _Device(_Strict, frozen=True):
    name: str
    annotations: dict[str, str] = {}
    container_edits: Edits = Edits()


class _File(_Strict, frozen=True):
    cdi_version: str
    kind: str
    annotations: dict[str, str] = {}
    devices: tuple[_Device, ...] = ()
    container_edits: Edits = Edits()


_decoder = msgspec.json.Decoder(_File)


@dataclass(slots=True)
class _Found:
    """What the folders hold: each device with its file, and what was wrong with files."""

    devices: dict[str, tuple[Path, Edits]] = field(default_factory=dict[str, tuple[Path, Edits]])
    common: dict[Path, Edits] = field(default_factory=dict[Path, Edits])
    faults: list[str] = field(default_factory=list[str])


def requested(names: Iterable[str], annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The devices asked for by name and by annotations `cdi.k8s.io/...`, each once; `InvalidArgument`."""
    found = list(names)
    for key in sorted(annotations):
        if key.startswith(ANNOTATION_PREFIX):
            found += annotations[key].split(",")
    for name in found:
        if not _NAME.fullmatch(name):
            raise errors.InvalidArgument(f"CDI device {name[:200]!r}: is not like vendor.com/class=name")
    wanted = tuple(dict.fromkeys(found))
    if len(wanted) > DEVICES_LIMIT:
        raise errors.InvalidArgument(f"CDI devices: {len(wanted)} are asked for, at most {DEVICES_LIMIT}")
    return wanted


def inject(built: spec.Spec, wanted: Sequence[str], folders: Sequence[Path]) -> spec.Spec:
    """`built` with the devices of `wanted`; blocks as long as it takes to read the folders' files.

    Raises `InvalidArgument` for a device that no file describes, `FailedPrecondition` for one whose file is wrong or
    asks for what cannot be done here. What is common to a file's devices is done once, before them.
    """
    if not wanted:
        return built
    found = _read(folders)
    edits: list[Edits] = []
    files: set[Path] = set()
    for name in wanted:
        if name not in found.devices:
            faults = f"; {'; '.join(found.faults)}" if found.faults else ""
            raise errors.InvalidArgument(
                f"CDI device {name}: no file in {', '.join(map(str, folders)) or 'any folder'} describes it{faults}"
            )
        path, own = found.devices[name]
        if path not in files:
            files.add(path)
            edits.append(found.common[path])
        edits.append(own)
    for one in edits:
        built = _edited(built, one)
    return built


# Files


def _read(folders: Sequence[Path]) -> _Found:
    found = _Found()
    for folder in folders:
        here: dict[str, tuple[Path, Edits]] = {}
        for path in _files(folder, found.faults):
            try:
                document = _document(path)
            except errors.FailedPrecondition as error:
                found.faults.append(error.message)
                continue
            found.common[path] = document.container_edits
            for device in document.devices:
                name = f"{document.kind}={device.name}"
                if name in here:
                    found.faults.append(f"{name} is in {here[name][0]} and in {path}")
                here[name] = (path, device.container_edits)
        doubled = [fault.partition(" ")[0] for fault in found.faults if " and in " in fault]
        found.devices.update(here)
        for name in doubled:
            found.devices.pop(name, None)
    return found


def _files(folder: Path, faults: list[str]) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        faults.append(f"{folder}: {error.strerror}")
        return []
    faults += [f"{folder / name}: is YAML, write it as JSON" for name in names if name.endswith((".yaml", ".yml"))]
    return [folder / name for name in names if name.endswith(".json")]


def _document(path: Path) -> _File:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            content = stream.read(FILE_LIMIT_BYTES + 1)
        if len(content) > FILE_LIMIT_BYTES:
            raise errors.FailedPrecondition(f"{path}: is larger than {FILE_LIMIT_BYTES} bytes")
        document = _decoder.decode(content)
    except (OSError, *UNREADABLE) as error:
        raise errors.FailedPrecondition(f"{path}: {error}") from error
    version = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?", document.cdi_version)
    if version is None or not OLDEST <= (int(version[1]), int(version[2])) <= NEWEST:
        raise errors.FailedPrecondition(f"{path}: cdiVersion {document.cdi_version!r}: known are 0.3.0 to 1.1.0")
    if not _KIND.fullmatch(document.kind):
        raise errors.FailedPrecondition(f"{path}: kind {document.kind!r} is not like vendor.com/class")
    for device in document.devices:
        if not _DEVICE.fullmatch(device.name):
            raise errors.FailedPrecondition(f"{path}: {device.name!r} is no name of a device")
    return document


# Edits


def _edited(built: spec.Spec, edits: Edits) -> spec.Spec:
    if edits.intel_rdt is not None or edits.net_devices:
        what = "intelRdt" if edits.intel_rdt is not None else "netDevices"
        raise errors.FailedPrecondition(f"CDI {what}: no OCI runtime here does that")
    process, linux = built.process, built.linux
    assert process is not None
    assert linux is not None
    replace = msgspec.structs.replace
    nodes = [_node(node, process.user) for node in edits.device_nodes]
    gids = process.user.additional_gids
    gids += tuple(gid for gid in dict.fromkeys(edits.additional_gids) if gid and gid not in gids)
    return replace(
        built,
        process=replace(process, env=_env(process.env, edits.env), user=replace(process.user, additional_gids=gids)),
        mounts=_mounts(built.mounts, edits.mounts),
        hooks=_hooks(built.hooks or spec.Hooks(), edits.hooks) if edits.hooks else built.hooks,
        linux=replace(
            linux,
            devices=_replaced(linux.devices, nodes),
            resources=_allowed(linux.resources or spec.Resources(), nodes, edits.device_nodes),
        ),
    )


def _env(env: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    values: dict[str, str] = {entry.partition("=")[0]: entry.partition("=")[2] for entry in env}
    for entry in more:
        name, found, value = entry.partition("=")
        if not found or not name or "\0" in entry:
            raise errors.FailedPrecondition(f"CDI env {entry[:100]!r}: is not NAME=value")
        values[name] = value
    return tuple(f"{name}={value}" for name, value in values.items())


def _mounts(mounts: tuple[spec.Mount, ...], more: tuple[MountEdit, ...]) -> tuple[spec.Mount, ...]:
    """As many folders deep as they are, so that none hides another; one of the same place is replaced."""
    new: list[spec.Mount] = []
    for edit in more:
        destination = os.path.normpath(edit.container_path)
        if not edit.host_path or not destination.startswith("/") or "\0" in edit.host_path + destination:
            raise errors.FailedPrecondition(f"CDI mount {edit.container_path[:200]!r}: its paths must be absolute")
        is_bind = edit.type in ("", "none", "bind")
        if is_bind and not edit.host_path.startswith("/"):
            where = f"CDI mount {destination}: hostPath {edit.host_path[:200]!r}"
            raise errors.FailedPrecondition(f"{where} must be absolute")
        options = edit.options if not is_bind or {"bind", "rbind"} & set(edit.options) else ("rbind", *edit.options)
        new.append(
            spec.Mount(
                destination=destination, type="bind" if is_bind else edit.type, source=edit.host_path, options=options
            )
        )
    taken = {mount.destination for mount in new}
    kept = [mount for mount in mounts if mount.destination not in taken]
    return tuple(sorted([*kept, *new], key=lambda mount: mount.destination.count("/"))) if new else mounts


def _hooks(hooks: spec.Hooks, more: tuple[HookEdit, ...]) -> spec.Hooks:
    for edit in more:
        name = _HOOKS.get(edit.hook_name)
        if name is None or not edit.path.startswith("/"):
            raise errors.FailedPrecondition(f"CDI hook {edit.hook_name!r}: is none of the runtime spec with a path")
        hook = spec.Hook(path=edit.path, args=edit.args, env=edit.env, timeout=edit.timeout)
        hooks = msgspec.structs.replace(hooks, **{name: (*getattr(hooks, name), hook)})
    return hooks


def _node(edit: DeviceNode, user: spec.User) -> spec.Device:
    """The node as the file says it; what it leaves out is asked of the host's."""
    host_path = edit.host_path or edit.path
    if not edit.path.startswith("/") or not host_path.startswith("/"):
        raise errors.FailedPrecondition(f"CDI device node {edit.path[:200]!r}: its paths must be absolute")
    kind, major, minor, mode = edit.type, edit.major, edit.minor, edit.file_mode
    if not kind or (kind != "p" and (major is None or minor is None)):
        try:
            status = os.stat(host_path)
        except OSError as error:
            raise errors.FailedPrecondition(f"CDI device node {host_path}: {error.strerror}") from error
        real = next((letter for letter, is_one in _MODES.items() if is_one(status.st_mode)), "")
        if not real or kind not in ("", "u", real) or (kind == "u" and real != "c"):
            raise errors.FailedPrecondition(f"CDI device node {host_path}: is no device of type {kind or 'b, c or p'}")
        kind, major, minor = real, os.major(status.st_rdev), os.minor(status.st_rdev)
        mode = stat.S_IMODE(status.st_mode) if mode is None else mode
    # Who runs as another user than root is to be able to open it.
    uid = user.uid or None if edit.uid is None else edit.uid
    gid = user.gid or None if edit.gid is None else edit.gid
    return spec.Device(
        path=os.path.normpath(edit.path), type=kind, major=major, minor=minor, file_mode=mode, uid=uid, gid=gid
    )


def _replaced(nodes: tuple[spec.Device, ...], more: Sequence[spec.Device]) -> tuple[spec.Device, ...]:
    by_path = {node.path: node for node in (*nodes, *more)}
    return tuple(by_path.values())


def _allowed(resources: spec.Resources, nodes: Sequence[spec.Device], edits: Sequence[DeviceNode]) -> spec.Resources:
    rules: list[spec.DeviceRule] = []
    for node, edit in zip(nodes, edits, strict=True):
        access = edit.permissions or "rwm"
        if set(access) - set("rwm"):
            raise errors.FailedPrecondition(f"CDI device node {edit.path}: permissions {access[:20]!r} are not of rwm")
        if node.type in ("b", "c", "u"):
            kind = "c" if node.type == "u" else node.type
            rules.append(spec.DeviceRule(allow=True, type=kind, major=node.major, minor=node.minor, access=access))
    return msgspec.structs.replace(resources, devices=(*resources.devices, *rules)) if rules else resources
