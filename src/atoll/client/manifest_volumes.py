"""The volumes of a Pod manifest: folders that the pod's containers share, and paths of the host."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atoll import errors
from atoll.client.manifest_fields import Fields

NO_STORE = "config maps, secrets and claims are a cluster's; write the files to a folder, and mount it as hostPath"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TYPES: dict[str, Callable[[int], bool]] = {
    "Directory": stat.S_ISDIR,
    "DirectoryOrCreate": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "FileOrCreate": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume: of the pod, which `annotation` asks the daemon for, or a path of the host."""

    name: str
    annotation: str = ""
    host_path: str = ""


def read_volumes(spec: Fields) -> tuple[Volume, ...]:
    """Every volume of a pod; raises `InvalidArgument` for a kind that is not supported."""
    found: dict[str, Volume] = {}
    for one in spec.objects("volumes"):
        with one:
            name = one.need("name")
            if not _NAME.fullmatch(name) or name in found:
                raise errors.InvalidArgument(f"{one.at('name')}: {name!r} is there twice, or no name of a volume")
            found[name] = _volume(one, name)
    return tuple(found.values())


def _volume(one: Fields, name: str) -> Volume:
    for kind in ("configMap", "secret", "persistentVolumeClaim", "projected", "downwardAPI"):
        if one.has(kind):
            raise errors.InvalidArgument(f"{one.at(kind)}: is not supported; {NO_STORE}")
    empty, host = one.object("emptyDir"), one.object("hostPath")
    if empty is not None:
        with empty:
            return _empty(empty, name)
    if host is not None:
        with host:
            return Volume(name=name, host_path=_host(host))
    raise errors.InvalidArgument(f"{one.path}: is neither an emptyDir nor a hostPath")


def _empty(empty: Fields, name: str) -> Volume:
    medium, limit = empty.one_of("medium", ("", "Memory")), empty.quantity("sizeLimit")
    if not medium and limit is not None:
        raise errors.InvalidArgument(f"{empty.at('sizeLimit')}: is supported with medium Memory only")
    if not medium:
        return Volume(name=name, annotation=name)
    return Volume(name=name, annotation=f"{name}:memory={int(limit)}" if limit is not None else f"{name}:memory")


def _host(host: Fields) -> str:
    path, kind = host.need("path"), host.one_of("type", ("", *_TYPES))
    if not PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise errors.InvalidArgument(f"{host.at('path')}: {path!r} must be an absolute path without ..")
    try:
        if kind == "DirectoryOrCreate":
            Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
        elif kind == "FileOrCreate":
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        mode = os.stat(path).st_mode
    except OSError as error:
        raise errors.InvalidArgument(f"{host.at('path')}: {path}: {error.strerror}") from error
    if kind and not _TYPES[kind](mode):
        raise errors.InvalidArgument(f"{host.at('path')}: {path}: is no {kind.removesuffix('OrCreate')}")
    return path
