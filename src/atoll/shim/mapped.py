"""What a container's user namespace needs of the shim: mounts with its ids, which few OCI runtimes can make.

    rootfs/      an overlay with the options `uidmap=` and `gidmap=`: its lower folders have their owners mapped. The
                 upper one has not: who made it gave it to the root of the user namespace
    mounts/<n>   the n-th mount of the spec, where it has uidMappings: a bind mount with these ids; and where it has the
                 option `x-atoll.volume=`: an image volume, with the ids of the root file system. The spec then binds
                 this folder, without mappings, or what is below it at the path that the option names

Source: config.md of the runtime spec (mounts); the options are those that containerd's snapshotters write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux import idmap, mounts, syscalls
from atoll.linux.userns import IDMap, IDRange, checked
from atoll.oci.spec import IDMapping
from atoll.shim.pod_holder import Holders
from atoll.shim.rootfs import MAPPED, RootMount, mount_root, unmount_root

LAYERS = "layers"
UIDS, GIDS = "uidmap=", "gidmap="
VOLUME = "x-atoll.volume="
_RANGE = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})")


class SpecMount(msgspec.Struct, frozen=True, rename="camel"):
    """What is read of a mount of a spec."""

    destination: str = ""
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


async def mount_all(holders: Holders, bundle: Path, rootfs: tuple[RootMount, ...], asked: Sequence[SpecMount]) -> None:
    """Mount a container's root file system and the mapped mounts of its spec; on an error nothing stays mounted.

    Raises `InvalidArgument` for maps that are none, `FailedPrecondition` for a file system whose ids cannot be mapped.
    """
    at = bundle / "rootfs"
    users = users_of_root(rootfs)
    if users is None:
        mount_root(rootfs, at)
    else:
        _let_in(bundle, users)
        async with holders.user_namespace(users) as fd:
            _mount_mapped_root(rootfs, at, fd)
    try:
        await _mount_beside(holders, bundle, asked, users)
    except BaseException:
        unmount_root(at)
        raise


def _let_in(folder: Path, users: IDMap) -> None:
    """Let root of the user namespace through the bundle: an OCI runtime is that when it mounts the root file system."""
    os.chown(folder, -1, users.root[1])
    folder.chmod(0o710)


# The root file system


def users_of_root(rootfs: tuple[RootMount, ...]) -> IDMap | None:
    """The ids that the options of a root file system ask for; None without any. Raises `InvalidArgument`."""
    options = [option for mount in rootfs for option in mount.options]
    uids = next((option for option in options if option.startswith(UIDS)), "")
    gids = next((option for option in options if option.startswith(GIDS)), "")
    if not uids and not gids:
        return None
    return checked(IDMap(uids=_ranges(uids), gids=_ranges(gids)), "rootfs")


def _ranges(option: str) -> tuple[IDRange, ...]:
    found: list[IDRange] = []
    for text in option.partition("=")[2].split(","):
        match = _RANGE.fullmatch(text)
        if match is None:
            raise errors.InvalidArgument(f"rootfs: option {option[:100]!r} is not like uidmap=0:100000:65536")
        inside, host, length = (int(group) for group in match.groups())
        found.append(IDRange(container_id=inside, host_id=host, length=length))
    return tuple(found)


def _mount_mapped_root(rootfs: tuple[RootMount, ...], at: Path, users: int) -> None:
    """As `mount_root`, of overlays whose lower folders are first mounted once more, with the ids mapped."""
    layers = at.parent / LAYERS
    layers.mkdir(mode=0o700, exist_ok=True)
    try:
        with contextlib.ExitStack() as opened:
            mount_root(tuple(_with_mapped_layers(mount, layers, users, opened) for mount in rootfs), at)
    finally:
        # The overlay has its own copies of the mounts of its folders.
        mounts.unmount_tree(layers)
        layers.rmdir()


def _with_mapped_layers(mount: RootMount, layers: Path, users: int, opened: contextlib.ExitStack) -> RootMount:
    options = tuple(option for option in mount.options if not option.startswith((UIDS, GIDS)))
    if options == mount.options:
        return mount
    lower = next((option for option in options if option.startswith("lowerdir=")), None)
    if mount.type != "overlay" or lower is None:
        raise errors.InvalidArgument(f"rootfs: a mount of type {mount.type!r} takes no uidmap, only an overlay does")
    folders = [Path(folder) for folder in lower.removeprefix("lowerdir=").split(":")]
    common = Path(os.path.commonpath(folders))
    _map(common, layers, users)
    # By a descriptor, for the bundle's path in front of each of many layers would be too long (mount(2)).
    shared = os.open(layers, os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, shared)
    moved = ":".join(os.path.normpath(f"/proc/self/fd/{shared}/{folder.relative_to(common)}") for folder in folders)
    return replace(mount, options=tuple(f"lowerdir={moved}" if option is lower else option for option in options))


def _map(source: Path, target: Path, users: int) -> None:
    with _explained(source), idmap.tree(source, users, recursive=False) as fd:
        syscalls.move_mount(fd, target)


@contextlib.contextmanager
def _explained(source: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            raise
        raise errors.FailedPrecondition(
            f"{source}: its ids cannot be mapped ({error.strerror}) by the file system there, or one mounted below"
        ) from error


# Mounts of the spec


async def _mount_beside(holders: Holders, bundle: Path, asked: Sequence[SpecMount], users: IDMap | None) -> None:
    volumes = {number: mount for number, mount in enumerate(asked) if _volume(mount) is not None}
    mapped = {number: mount for number, mount in enumerate(asked) if mount.uid_mappings or mount.gid_mappings}
    if not volumes and not mapped:
        return
    folder = bundle / MAPPED
    folder.mkdir(mode=0o711, exist_ok=True)
    sources: dict[int, str] = {}
    if volumes:
        async with _maybe(holders, users) as fd:
            sources |= {number: _mount_volume(mount, folder / str(number), fd) for number, mount in volumes.items()}
    by_users: dict[IDMap, list[int]] = {}
    for number, mount in mapped.items():
        own = IDMap(uids=_of_spec(mount.uid_mappings), gids=_of_spec(mount.gid_mappings))
        by_users.setdefault(checked(own, f"mount {mount.destination}", root=False), []).append(number)
    for own, numbers in by_users.items():
        async with holders.user_namespace(own) as fd:
            for number in numbers:
                source = Path(mapped[number].source)
                with _explained(source):
                    idmap.bind(source, folder / str(number), fd)
                sources[number] = str(folder / str(number))
    rename_sources(bundle, sources)


@contextlib.asynccontextmanager
async def _maybe(holders: Holders, users: IDMap | None) -> AsyncGenerator[int | None]:
    if users is None:
        yield None
        return
    async with holders.user_namespace(users) as fd:
        yield fd


def _volume(mount: SpecMount) -> str | None:
    """The path in the image that an image volume shows, empty for all of it; None for any other mount."""
    return next((option.removeprefix(VOLUME) for option in mount.options if option.startswith(VOLUME)), None)


def _mount_volume(mount: SpecMount, at: Path, users: int | None) -> str:
    """Mount an image volume at `at`, which is made; the path that the container is to have."""
    at.mkdir(mode=0o711)
    options = tuple(option for option in mount.options if not option.startswith(VOLUME))
    if mount.type != "overlay":
        if users is None:
            mounts.mount(mount.type, mount.source, at, options)
        else:
            _map(Path(mount.source), at, users)
    elif users is None:
        mounts.mount("overlay", "overlay", at, options)
    else:
        root = RootMount(type="overlay", source="overlay", options=(*options, UIDS, GIDS))
        _mount_mapped_root((root,), at, users)
    return _below(at, _volume(mount) or "")


def _below(folder: Path, path: str) -> str:
    """The real path of what `path` means with `folder` as its root: the links in an image lead nowhere else."""
    root = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        found = syscalls.openat2(path or ".", os.O_PATH, resolve=syscalls.RESOLVE_IN_ROOT, folder_fd=root)
    except OSError as error:
        raise errors.InvalidArgument(f"image_sub_path {path[:200]!r}: {error.strerror}") from error
    finally:
        os.close(root)
    try:
        return os.readlink(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _of_spec(mappings: tuple[IDMapping, ...]) -> tuple[IDRange, ...]:
    return tuple(IDRange(container_id=one.containerID, host_id=one.hostID, length=one.size) for one in mappings)


def rename_sources(bundle: Path, sources: dict[int, str]) -> None:
    """Have config.json name other sources for the mounts of these numbers; everything else as it is."""
    path = bundle / "config.json"
    spec = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    listed = msgspec.json.decode(spec["mounts"], type=list[dict[str, msgspec.Raw]])
    for number, source in sources.items():
        options = msgspec.json.decode(listed[number].get("options", b"[]"), type=list[str])
        kept = [option for option in options if not option.startswith((VOLUME, "lowerdir="))]
        bound = {"type": "bind", "source": source, "options": kept if "rbind" in kept else ["rbind", *kept]}
        listed[number].update({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in bound.items()})
        listed[number].pop("uidMappings", None)
        listed[number].pop("gidMappings", None)
    spec["mounts"] = msgspec.Raw(msgspec.json.encode(listed))
    renamed = path.with_name("config.json.new")
    renamed.write_bytes(msgspec.json.encode(spec))
    renamed.replace(path)
