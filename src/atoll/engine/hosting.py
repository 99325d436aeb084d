"""What a hosted sandbox is made of: its ledger entries, what its controller is asked, its files.

A containerd that has us as its sandboxer gives containers the pod's files where its own sandboxer has them, and leaves
out in silence what is not there. So where its folders are, links lead from there to ours:

    <containerd root>/io.containerd.grpc.v1.cri/sandboxes/<id>    -> <state>/pods/<key>    hostname, hosts, resolv.conf
    <containerd state>/io.containerd.grpc.v1.cri/sandboxes/<id>   -> <state>/pods/<key>    shm
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.concurrency import Blocking
from atoll.config import Config
from atoll.engine import kinds
from atoll.engine.hosts import Host
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.identifiers import is_identifier
from atoll.ledger.kind import Entry, Found, Intent, Kind
from atoll.sandbox import annotations
from atoll.sandbox.controller import CreateOptions, Sandbox, TypedAny
from atoll.sandbox.metadata import EXTENSION, TYPE_URL
from atoll.sandboxers.roots import snapshot_key

CRI_FOLDER = "io.containerd.grpc.v1.cri"
LINKS = "links"
MAX_OPTIONS_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a creation is to acquire and ask; `links` lead to `files`. A remote sandbox has none of our files."""

    key: str
    intents: tuple[Intent, ...]
    options: CreateOptions
    files: Path | None
    links: tuple[Path, ...]


def wanted(parts: Parts, host: Host, key: str, namespace: str, sandbox: Sandbox, options: CreateOptions) -> Wanted:
    """Raises `InvalidArgument` for options that are no pod's config, or are too large."""
    data = {"handler": host.name, "namespace": namespace}
    if host.is_remote:
        data["id"] = sandbox.id
        intent = Intent(owner=key, kind=kinds.SANDBOX, key=key, data=data)
        return Wanted(key=key, intents=(intent,), options=options, files=None, links=())
    config = _pod_config(options.options)
    if options.options is None and not options.netns_path:
        # A client of the plain sandbox API names neither: it gets what it has itself.
        config.linux.security_context.namespace_options.network = cri.NODE
        options = dataclasses.replace(
            options, options=TypedAny(type_url=config.DESCRIPTOR.full_name, value=config.SerializeToString())
        )
    files = parts.paths.pods / key
    links = _links(parts.config, namespace, sandbox)
    ours = {annotations.FILES: str(files)}
    intents = [Intent(owner=key, kind=kinds.POD_FILES, key=key)]
    if links:
        intents.append(Intent(owner=key, kind=LINKS, key=sandbox.id))
    if not config.linux.cgroup_parent:
        ours[annotations.CGROUP] = f"{parts.cgroup_parent}/{key}"
        intents.append(Intent(owner=key, kind=kinds.CGROUP, key=key))
    if host.kind == "podsandbox":
        intents.append(Intent(owner=key, kind=kinds.SNAPSHOT, key=snapshot_key(key)))
    intents.append(Intent(owner=key, kind=kinds.SANDBOX, key=key, data=data))
    return Wanted(
        key=key,
        intents=tuple(intents),
        # A caller that has us as its remote sandboxer may have the files and the cgroup itself.
        options=dataclasses.replace(options, annotations={**ours, **options.annotations}),
        files=files,
        links=links,
    )


def _pod_config(options: TypedAny | None) -> cri.PodSandboxConfig:
    config = cri.PodSandboxConfig()
    if options is None or options.type_url.rpartition("/")[2] != config.DESCRIPTOR.full_name:
        return config  # its controller knows better what it takes
    if len(options.value) > MAX_OPTIONS_BYTES:
        raise errors.InvalidArgument(f"sandbox options: have {len(options.value)} bytes, at most {MAX_OPTIONS_BYTES}")
    try:
        config.ParseFromString(options.value)
    except DecodeError as error:
        raise errors.InvalidArgument(f"sandbox options: cannot be decoded: {error}") from error
    return config


def is_cri_pod(namespace: str, sandbox: Sandbox) -> bool:
    """Whether the CRI of a containerd asks for it."""
    metadata = sandbox.extensions.get(EXTENSION)
    return namespace == NAMESPACE and metadata is not None and metadata.type_url == TYPE_URL


def _links(config: Config, namespace: str, sandbox: Sandbox) -> tuple[Path, ...]:
    """Where the CRI plugin of the containerd that asks looks for a pod's files; nowhere where it is not one."""
    if not is_cri_pod(namespace, sandbox):
        return ()
    # Below folders that containerd has made it makes these when it needs them itself.
    return tuple(folder / sandbox.id for folder in link_folders(config) if folder.parents[1].is_dir())


def link_folders(config: Config) -> tuple[Path, ...]:
    """The folders of pods of a containerd."""
    places = (config.sandboxes.containerd_root, config.sandboxes.containerd_state)
    return tuple(Path(place) / CRI_FOLDER / "sandboxes" for place in places if place)


def prepare_files(asked: Wanted) -> None:
    """Make the folder of the pod's files, and the links to it; blocks briefly."""
    if asked.files is None:
        return
    try:
        asked.files.mkdir(0o711, exist_ok=True)
        for link in asked.links:
            link.parent.mkdir(0o711, parents=True, exist_ok=True)
            link.symlink_to(asked.files)
    except OSError as error:
        kind = errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Unavailable
        raise kind(f"{error.filename2 or error.filename}: cannot be made: {error.strerror}") from error


class LinksKind(Kind):
    """The links in a containerd's folders that lead to the files of a pod of ours."""

    name = LINKS

    def __init__(self, config: Config, pods: Path, blocking: Blocking) -> None:
        self._folders = link_folders(config)
        self._pods = pods
        self._blocking = blocking

    async def release(self, entry: Entry) -> None:
        await self._blocking.run(self._unlink, entry.key)

    def _unlink(self, name: str) -> None:
        for folder in self._folders:
            if self._target(folder / name) is not None:
                with contextlib.suppress(FileNotFoundError):
                    (folder / name).unlink()

    def _target(self, link: Path) -> Path | None:
        """Where a link leads, where that is to us."""
        try:
            target = Path(os.readlink(link))
        except OSError:
            return None
        return target if target.parent == self._pods else None

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(self._is_there, entry.key)

    def _is_there(self, name: str) -> bool:
        return any(self._target(folder / name) is not None for folder in self._folders)

    async def scan(self) -> list[Found]:
        return await self._blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        found: dict[str, Found] = {}
        for folder in self._folders:
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    target = self._target(folder / name)
                    if target is not None and is_identifier(name):
                        found[name] = Found(kind=LINKS, key=name, owner=target.name)
        return list(found.values())
