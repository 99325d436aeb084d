"""Images for tests: layers as bytes, OCI layouts and docker archives made of them, and stores to put them in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.concurrency import Blocking, TaskOwner
from atoll.database import Database
from atoll.image import records as image_records
from atoll.image.config import ImageSettings
from atoll.image.store import ImageStore
from atoll.snapshot import records as snapshot_records
from atoll.snapshot.mount import Mount
from atoll.snapshot.snapshotter import Snapshotter

OPTIONS_LIMIT_BYTES = 4095
"""mount(2) copies at most one page of options, its closing NUL included."""
OCI = "application/vnd.oci.image"


def member(name: str, data: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer: a file unless `type` says otherwise."""
    info = tarfile.TarInfo(name)
    info.mode = 0o755 if attributes.get("type") == tarfile.DIRTYPE else 0o644
    info.mtime = 1_700_000_000
    for key, value in attributes.items():
        setattr(info, key, value)
    if info.type == tarfile.REGTYPE:
        info.size = len(data)
    return info, data


def folder(name: str, mode: int = 0o755, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The tar of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """The documents and blobs of one image."""

    manifest: bytes
    config: bytes
    blobs: tuple[bytes, ...]

    @property
    def id(self) -> str:
        return digest(self.config)


def image(
    tars: Sequence[bytes],
    *,
    blobs: Sequence[bytes] | None = None,
    diff_ids: Sequence[str] | None = None,
    config: dict[str, object] | None = None,
    architecture: str = "amd64",
) -> ImageFiles:
    """An OCI image of these layers, gzipped unless `blobs` says how they are packed."""
    blobs = tuple(gzipped(tar) for tar in tars) if blobs is None else tuple(blobs)
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": config or {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or [digest(tar) for tar in tars])},
    }
    config_bytes = json.dumps(document).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": descriptor(config_bytes, f"{OCI}.config.v1+json"),
        "layers": [descriptor(blob, f"{OCI}.layer.v1.tar{_suffix(blob)}") for blob in blobs],
    }
    return ImageFiles(manifest=json.dumps(manifest).encode(), config=config_bytes, blobs=blobs)


def _suffix(blob: bytes) -> str:
    return "+gzip" if blob.startswith(b"\x1f\x8b") else "+zstd" if blob.startswith(b"\x28\xb5\x2f\xfd") else ""


def descriptor(data: bytes, media_type: str, **extra: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **extra}


def write_layout(path: Path, *images: tuple[ImageFiles, str]) -> Path:
    """An OCI layout of images with their names (empty for none)."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries: list[dict[str, object]] = []
    for one, name in images:
        for data in (one.manifest, one.config, *one.blobs):
            (blobs / digest(data)[7:]).write_bytes(data)
        names = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        entries.append(descriptor(one.manifest, f"{OCI}.manifest.v1+json", **names))
    write_index(path, entries)
    return path


def write_index(path: Path, entries: list[dict[str, object]]) -> None:
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def write_docker_archive(path: Path, tars: Sequence[bytes], tags: Sequence[str]) -> ImageFiles:
    """What `docker save` wrote before it knew OCI; the second use of a layer is a symlink."""
    one = image(tars, blobs=tars)
    members = [member("config.json", one.config)]
    paths: list[str] = []
    seen: dict[bytes, str] = {}
    for number, tar in enumerate(tars):
        members.append(folder(str(number)))
        name = f"{number}/layer.tar"
        members.append(symlink(name, f"../{seen[tar]}") if tar in seen else member(name, tar))
        seen.setdefault(tar, name)
        paths.append(name)
    listing = [{"Config": "config.json", "RepoTags": list(tags), "Layers": paths}]
    members.append(member("manifest.json", json.dumps(listing).encode()))
    path.write_bytes(layer(*members, format=tarfile.USTAR_FORMAT))
    return one


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A store with what it stands on."""

    root: Path
    db: Database
    snapshots: Snapshotter
    images: ImageStore

    def snapshot_folders(self) -> list[str]:
        return sorted(name for name in os.listdir(self.root / "snapshots") if name.isdecimal())

    def blobs(self) -> list[str]:
        return sorted(os.listdir(self.root / "content" / "blobs" / "sha256"))

    def ingests(self) -> list[str]:
        return os.listdir(self.root / "content" / "ingest")

    def is_empty(self) -> bool:
        """Whether nothing is left on the disk but the folders themselves."""
        return not (self.snapshot_folders() or self.blobs() or self.ingests() or self.images.list())


@asynccontextmanager
async def stack(root: Path, settings: ImageSettings | None = None) -> AsyncIterator[Stack]:
    """A store below `root`, recovered; closed when the block is left."""
    async with AsyncExitStack() as exits:
        blocking = Blocking()
        exits.callback(blocking.close)
        db = await Database.open(root / "state.db", (snapshot_records.SCHEMA, image_records.SCHEMA))
        exits.push_async_callback(db.close)
        owner = await exits.enter_async_context(TaskOwner("test"))
        snapshots = Snapshotter(root, db, blocking)
        exits.push_async_callback(snapshots.close)
        await snapshots.recover()
        images = ImageStore(root, db, snapshots, blocking, owner, settings or ImageSettings())
        exits.push_async_callback(images.close)
        await images.recover()
        yield Stack(root=root, db=db, snapshots=snapshots, images=images)


def short(mount: Mount) -> tuple[str, Mount]:
    """The working directory to mount from and an equal mount whose options fit the page that mount(2) takes.

    An overlay of many layers names more than a page of folders: there the lower folders are given relative to the
    folder that they share.
    """
    if mount.type != "overlay" or len(",".join(mount.options).encode()) <= OPTIONS_LIMIT_BYTES:
        return "/", mount
    lowers = next((o.removeprefix("lowerdir=") for o in mount.options if o.startswith("lowerdir=")), "")
    folders = lowers.split(":")
    shared = os.path.commonpath(folders)
    lowerdir = "lowerdir=" + ":".join(os.path.relpath(folder, shared) for folder in folders)
    options = tuple(lowerdir if o.startswith("lowerdir=") else o for o in mount.options)
    return shared, replace(mount, options=options)


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mount a snapshot at `target`, by mount(8)."""
    target.mkdir(exist_ok=True)
    for mount in mounts:
        directory, fitting = short(mount)
        options = ["-o", ",".join(fitting.options)] if fitting.options else []
        subprocess.run(
            ["mount", "-n", "-i", "-t", fitting.type, *options, fitting.source, str(target)],
            cwd=directory,
            check=True,
            capture_output=True,
        )
    try:
        yield target
    finally:
        for _ in mounts:
            subprocess.run(["umount", str(target)], check=True, capture_output=True)
