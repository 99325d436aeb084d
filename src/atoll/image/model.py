"""What an image is, to the rest of Atoll, and the documents that describe one on the wire.

Documents: OCI image-spec 1.1 (manifest, index, config), Docker image manifest version 2 schema 2.
Fields that Atoll does not use are not read; the bytes themselves are kept as they came.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from atoll import errors
from atoll.image.reference import is_digest
from atoll.unreadable import UNREADABLE

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
_INDEXES = (OCI_INDEX, DOCKER_INDEX)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "s390x": "s390x"}
D = TypeVar("D")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How the image wants to be run. Empty and zero mean that the image does not say."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    exposed_ports: tuple[str, ...] = ()
    os: str = ""
    architecture: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of the store, as it is now; `size` is of manifest, config and compressed layers, in bytes.

    `id` is the digest of the config. `repo_tags` and `repo_digests` are canonical references, sorted.
    `chain_ids` name its snapshots, lowest first; there are none where the image has no layers.
    `created` is as the image says, RFC 3339, or empty.
    """

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    config: ImageConfig
    chain_ids: tuple[str, ...]
    created: str
    pinned: bool
    manifest_digest: str

    @property
    def top(self) -> str | None:
        """The snapshot to make a container upon, as `Snapshotter.prepare` takes it: None without layers."""
        return self.chain_ids[-1] if self.chain_ids else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An image of an archive, and the names that the archive, or who imported it, gave it: canonical references."""

    image: Image
    names: tuple[str, ...]


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename={"media_type": "mediaType"}, omit_defaults=True):
    """What a manifest or an index points at; `digest` is checked by `valid`."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename={"schema_version": "schemaVersion"}):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]


class Index(msgspec.Struct, frozen=True, kw_only=True, rename={"schema_version": "schemaVersion"}):
    schema_version: int
    manifests: list[Descriptor]


class Probe(msgspec.Struct, frozen=True, kw_only=True, rename={"media_type": "mediaType"}):
    """Enough of a document to tell what it is."""

    media_type: str = ""
    manifests: list[msgspec.Raw] | None = None
    layers: list[msgspec.Raw] | None = None


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    diff_ids: list[str]


class _Process(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    user: str = ""
    working_dir: str = ""
    volumes: dict[str, object] | None = None
    stop_signal: str = ""
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, object] | None = None


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The config of an image as it is on the wire."""

    rootfs: RootFs
    created: str | None = None
    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: _Process | None = None

    def parsed(self) -> ImageConfig:
        process = self.config or _Process()
        return ImageConfig(
            env=tuple(process.env or ()),
            entrypoint=tuple(process.entrypoint or ()),
            cmd=tuple(process.cmd or ()),
            user=process.user,
            working_dir=process.working_dir,
            volumes=tuple(sorted(process.volumes or ())),
            stop_signal=process.stop_signal,
            labels=process.labels or {},
            exposed_ports=tuple(sorted(process.exposed_ports or ())),
            os=self.os,
            architecture=self.architecture,
            variant=self.variant,
        )


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def decode(data: bytes, kind: type[D], what: str) -> D:
    """The document in `data`; raises `InvalidArgument` naming `what` and the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"{what}: not the document it should be: {error}") from error


def is_index(data: bytes, what: str) -> bool:
    """Whether the document lists manifests (True) or is one (False); `InvalidArgument` where it is neither."""
    probe = decode(data, Probe, what)
    if probe.media_type in _INDEXES or (not probe.media_type and probe.manifests is not None):
        return True
    if probe.media_type in _MANIFESTS or (not probe.media_type and probe.layers is not None):
        return False
    raise errors.InvalidArgument(f"{what}: media type {probe.media_type!r} is no image; docker v2s2 and oci images are")


def valid(descriptor: Descriptor, what: str, most: int) -> Descriptor:
    """`descriptor` with its digest and size checked, the size against `most` bytes."""
    if not is_digest(descriptor.digest):
        raise errors.InvalidArgument(f"{what}: {descriptor.digest[:100]!r} is no sha256 digest")
    if not 0 <= descriptor.size <= most:
        raise errors.InvalidArgument(f"{what}: {descriptor.digest}: {descriptor.size} bytes; the most is {most}")
    return descriptor


def parse_manifest(data: bytes, what: str, *, max_layers: int, max_layer: int, max_config: int) -> Manifest:
    """The manifest in `data`, every descriptor checked; raises `InvalidArgument`."""
    manifest = decode(data, Manifest, what)
    valid(manifest.config, f"{what}: config", max_config)
    if len(manifest.layers) > max_layers:
        raise errors.InvalidArgument(f"{what}: {len(manifest.layers)} layers; the most is {max_layers}")
    for layer in manifest.layers:
        valid(layer, f"{what}: layer", max_layer)
    return manifest


def parse_config(data: bytes, manifest: Manifest) -> ConfigDocument:
    """The config in `data`, which must have a diff ID for each layer of `manifest`; raises `InvalidArgument`."""
    what = f"image config {manifest.config.digest}"
    document = decode(data, ConfigDocument, what)
    diff_ids = document.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise errors.InvalidArgument(f"{what}: {len(diff_ids)} diff ids for {len(manifest.layers)} layers")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise errors.InvalidArgument(f"{what}: {diff_id[:100]!r} is no sha256 diff id")
    return document


def chain_ids(diff_ids: list[str]) -> tuple[str, ...]:
    """The chain ID of each layer: OCI image-spec, "Layer ChainID"."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def choose(index: Index, what: str, *, architecture: str, variant: str) -> Descriptor:
    """The manifest of `index` for Linux on this machine; an index without platforms gives its only one.

    Raises `NotFound` naming what there is.
    """
    wanted = architecture or _ARCHITECTURES.get(platform.machine(), platform.machine())
    fitting = [
        one
        for one in index.manifests
        if one.platform is not None and one.platform.os == "linux" and one.platform.architecture == wanted
    ]
    if variant:
        fitting = [one for one in fitting if one.platform is not None and one.platform.variant == variant] or fitting
    if fitting:
        return fitting[0]
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    there = sorted({f"{one.platform.os}/{one.platform.architecture}" for one in index.manifests if one.platform})
    raise errors.NotFound(f"{what}: has nothing for linux/{wanted}; it has {', '.join(there) or 'nothing'}")
