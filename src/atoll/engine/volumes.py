"""Image volumes: mounts of a container whose files are those of an image, read-only.

Each has a view of the image's layers, a snapshot that keeps them although the image is removed. Its mount is in the
container's spec; our own shim makes it, beside the root file system, and so can show a part of the image and map its
ids. The shims of others leave that to their OCI runtimes, which mount the whole only.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.engine import kinds
from atoll.engine.drivers import is_foreign
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.image.model import Image
from atoll.oci import mounts, spec
from atoll.oci.config import Mount, MountPropagation
from atoll.oci.rootfs import RootfsView
from atoll.shim.mapped import VOLUME
from atoll.snapshot.records import Kind
from atoll.snapshot.snapshotter import Preparation

OPTIONS = ("ro", "nosuid", "nodev", "noexec")


def of(config: ContainerConfig) -> dict[int, Mount]:
    """The mounts that are image volumes, by their place in the request."""
    return {number: mount for number, mount in enumerate(config.mounts) if mount.image is not None}


def key(container_id: str, number: int) -> str:
    """The key of the view of a volume."""
    return f"{container_id}{kinds.VOLUME}{number}"


def specified(parts: Parts, pod: Pod, config: ContainerConfig) -> tuple[spec.Mount, ...]:
    """The volumes as mounts of the spec; blocks briefly.

    Raises `InvalidArgument` for what an image volume cannot have, `NotFound` for an image that is not here,
    `FailedPrecondition` for what the pod's shim cannot do.
    """
    return tuple(_specified(parts, pod, mount) for mount in of(config).values())


def _specified(parts: Parts, pod: Pod, mount: Mount) -> spec.Mount:
    destination = mounts.destination(mount)
    image = _image(parts, mount)
    folders = layers(parts, image)
    if mount.host_path or mount.propagation is not MountPropagation.PRIVATE or mount.uidMappings or mount.gidMappings:
        raise errors.InvalidArgument(
            f"mount {destination}: an image volume takes no host_path, no propagation and no id mappings of its own"
        )
    sub_path = _sub_path(mount, destination, folders)
    if is_foreign(pod.handler.shim):
        if sub_path:
            raise errors.FailedPrecondition(f"mount {destination}: image_sub_path: only Atoll's own shim can do that")
        options = OPTIONS
    else:
        options = (f"{VOLUME}{sub_path}", *OPTIONS)
    if len(folders) == 1:
        return spec.Mount(
            destination=destination, type="bind", source=str(folders[0]), options=("rbind", "rprivate", *options)
        )
    lower = "lowerdir=" + ":".join(map(str, folders))
    return spec.Mount(destination=destination, type="overlay", source="overlay", options=(lower, *options))


def _image(parts: Parts, mount: Mount) -> Image:
    assert mount.image is not None
    image = parts.images.get(mount.image.image)
    if image.top is None:
        raise errors.InvalidArgument(f"mount {mount.container_path}: image {mount.image.image} has no files")
    return image


def _sub_path(mount: Mount, destination: str, folders: Iterable[Path]) -> str:
    path = mount.image_sub_path
    if not path:
        return ""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or "," in path:
        raise errors.InvalidArgument(f"mount {destination}: image_sub_path {path[:200]!r} must be relative, without ..")
    if not RootfsView(tuple(folders)).exists(path):
        raise errors.InvalidArgument(f"mount {destination}: image_sub_path {path[:200]!r} is not in the image")
    return path


@contextlib.asynccontextmanager
async def preparing(
    parts: Parts, container_id: str, config: ContainerConfig
) -> AsyncGenerator[tuple[Preparation, ...]]:
    """The views of a container to be, to be recorded in the block with the container."""
    async with contextlib.AsyncExitStack() as stack:
        views: list[Preparation] = []
        for number, mount in of(config).items():
            view = parts.snapshotter.preparing(key(container_id, number), _image(parts, mount).top, kind=Kind.VIEW)
            views.append(await stack.enter_async_context(view))
        yield tuple(views)


def layers(parts: Parts, image: Image) -> tuple[Path, ...]:
    """The folders of an image's layers, topmost first."""
    return tuple(parts.snapshotter.fs(chain) for chain in reversed(image.chain_ids))
