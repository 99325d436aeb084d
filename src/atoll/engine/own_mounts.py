"""Mounts that the CRI has no field for, asked for by annotations: file systems in memory, and volumes of a pod.

On a container:

    io.atoll.container/tmpfs:    /run:size=64m,mode=1777;/scratch
    io.atoll.container/volumes:  data:/var/lib/data;cache:/cache:ro

On its pod, the volumes that those name, which live as long as the pod does; `memory` with or without a size:

    io.atoll.pod/volumes:  data;cache:memory=67108864

A volume is a folder of mode 1777 in <root>/volumes/<pod>, or a tmpfs in <state>/pods/<pod>/volumes; the ledger has an
entry for the one, and what is in the other goes with the pod's files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.linux import syscalls
from atoll.oci import spec

TMPFS = "io.atoll.container/tmpfs"
VOLUMES = "io.atoll.container/volumes"
POD_VOLUMES = "io.atoll.pod/volumes"

FLAGS = ("nosuid", "nodev", "noexec")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OPTION = re.compile(
    r"size=\d+[kmg%]?|mode=[0-7]{3,4}|nr_inodes=\d+[kmg]?|uid=\d+|gid=\d+|rw|ro|exec|noexec|suid|nosuid|dev|nodev"
)
_MEMORY = re.compile(r"memory(?:=(\d+))?")


def of(parts: Parts, pod: Pod, config: ContainerConfig) -> tuple[spec.Mount, ...]:
    """The mounts that a container's annotations ask for; makes the pod's volumes that it names. Blocks.

    Raises `InvalidArgument` for what is no mount, `NotFound` for a volume that the pod does not have.
    """
    asked = [_tmpfs(one) for one in _items(config.annotations, TMPFS)]
    wanted = _items(config.annotations, VOLUMES)
    there = pod_volumes(pod.config.annotations) if wanted else {}
    return (*asked, *(_volume(parts, pod, one, there) for one in wanted))


def pod_volumes(annotations: Mapping[str, str]) -> dict[str, int | None]:
    """The volumes of a pod: None for one on the disk, else the bytes that one in memory may take, 0 for no limit."""
    found: dict[str, int | None] = {}
    for one in _items(annotations, POD_VOLUMES):
        name, colon, medium = one.partition(":")
        match = _MEMORY.fullmatch(medium)
        if not _NAME.fullmatch(name) or (colon and match is None):
            raise errors.InvalidArgument(
                f"annotation {POD_VOLUMES}: {one[:80]!r} is not like data or cache:memory=4096"
            )
        found[name] = int(match[1] or 0) if match is not None else None
    return found


def _items(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(filter(None, (one.strip() for one in annotations.get(key, "").split(";"))))


def _destination(key: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/") or not path.strip("/"):
        raise errors.InvalidArgument(f"annotation {key}: {path[:200]!r} must be an absolute path below / without ..")
    return path


def _tmpfs(one: str) -> spec.Mount:
    path, _, text = one.partition(":")
    options = tuple(filter(None, text.split(",")))
    if wrong := [option for option in options if not _OPTION.fullmatch(option)]:
        raise errors.InvalidArgument(f"annotation {TMPFS}: {wrong[0][:60]!r} is not like size=64m, mode=1777 or ro")
    flags = tuple(flag for flag in FLAGS if flag.removeprefix("no") not in options and flag not in options)
    return spec.Mount(destination=_destination(TMPFS, path), type="tmpfs", source="tmpfs", options=(*flags, *options))


def _volume(parts: Parts, pod: Pod, one: str, there: Mapping[str, int | None]) -> spec.Mount:
    name, _, rest = one.partition(":")
    path, _, mode = rest.partition(":")
    if mode not in ("", "ro"):
        raise errors.InvalidArgument(f"annotation {VOLUMES}: {one[:80]!r} is not like data:/var/lib/data or with :ro")
    if name not in there:
        raise errors.NotFound(f"annotation {VOLUMES}: pod {pod.id[:13]} has no volume {name[:63]!r}")
    destination = _destination(VOLUMES, path)
    limit = there[name]
    source = _on_disk(parts, pod.id, name) if limit is None else _in_memory(parts, pod.id, name, limit)
    return spec.Mount(
        destination=destination, type="bind", source=str(source), options=("rbind", "rprivate", mode or "rw")
    )


def _on_disk(parts: Parts, pod_id: str, name: str) -> Path:
    folder = parts.paths.volumes / pod_id
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    return _folder(folder / name)


def _in_memory(parts: Parts, pod_id: str, name: str, limit: int) -> Path:
    volumes = parts.paths.pods / pod_id / "volumes"
    volumes.mkdir(mode=0o711, exist_ok=True)
    path = _folder(volumes / name)
    if path.stat().st_dev == volumes.stat().st_dev:  # a tmpfs of its own has another device
        size = f",size={limit}" if limit else ""
        syscalls.mount("tmpfs", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"mode=1777{size}")
    return path


def _folder(path: Path) -> Path:
    try:
        path.mkdir()
    except FileExistsError:
        return path
    os.chmod(path, 0o1777)  # noqa: S103 - any user of the pod's containers writes there
    return path
