"""What is inside an OCI layout or the unpacked files of `docker save`; blocking calls, off the loop.

OCI: image-spec "Image Layout". Docker: `manifest.json`, a list of {Config, RepoTags, Layers}. An archive
with both (docker 25 and later) is read as an OCI layout. Paths inside come from the archive and are
followed only where they end inside the folder.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.image.config import ImageSettings
from atoll.image.content import Content, chunks_of
from atoll.image.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    choose,
    decode,
    digest_of,
    is_index,
    parse_config,
    parse_manifest,
    valid,
)
from atoll.image.reference import Reference, is_digest

_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_DEPTH = 4
_MAX_IMAGES = 1000


class _DockerImage(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One image of an archive, its blobs now in the content store; `names` are references as parsed."""

    manifest: bytes
    config: bytes
    names: tuple[Reference, ...]
    digest: str


class Archive:
    """The folder of an archive or a layout; `name` is what errors call it."""

    def __init__(self, folder: Path, content: Content, settings: ImageSettings, name: str) -> None:
        self._name = name
        self._folder = Path(os.path.realpath(folder))
        self._content = content
        self._settings = settings
        self._limits = settings.limits
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make a running `take` end early, by `Cancelled`; from any thread."""
        self._stopped.set()

    def take(self) -> list[Found]:
        """Copy every image's blobs to the content store, checked; raises `InvalidArgument` or `DataLoss`."""
        if (self._folder / "index.json").is_file():
            return self._oci()
        if (self._folder / "manifest.json").is_file():
            return self._docker()
        raise errors.InvalidArgument(
            f"{self._name}: has neither index.json nor manifest.json; give an oci or docker archive, or an oci layout"
        )

    def _oci(self) -> list[Found]:
        index = decode(self._bytes("index.json", self._limits.max_manifest_bytes), Index, "index.json")
        if len(index.manifests) > _MAX_IMAGES:
            raise errors.InvalidArgument(f"index.json: more than {_MAX_IMAGES} images")
        return [self._oci_image(one) for one in index.manifests]

    def _oci_image(self, top: Descriptor) -> Found:
        descriptor = valid(top, "index.json", self._limits.max_manifest_bytes)
        for _ in range(_MAX_DEPTH):
            data = self._blob(descriptor)
            if not is_index(data, descriptor.digest):
                break
            self._content.put(data, descriptor.digest)
            index = decode(data, Index, descriptor.digest)
            descriptor = valid(
                choose(
                    index, descriptor.digest, architecture=self._settings.architecture, variant=self._settings.variant
                ),
                descriptor.digest,
                self._limits.max_manifest_bytes,
            )
        else:
            raise errors.InvalidArgument(f"{top.digest}: an index of indexes more than {_MAX_DEPTH} deep")
        limits = self._limits
        manifest = parse_manifest(
            data,
            descriptor.digest,
            max_layers=limits.max_layers,
            max_layer=limits.max_layer_bytes,
            max_config=limits.max_config_bytes,
        )
        config = self._blob(manifest.config)
        parse_config(config, manifest)
        for layer in manifest.layers:
            if not self._content.has(layer.digest, layer.size):
                self._copy(_blob_path(layer.digest), layer.digest, layer.size)
        self._content.put(config, manifest.config.digest)
        self._content.put(data, descriptor.digest)
        return Found(manifest=data, config=config, names=_annotated(top), digest=top.digest)

    def _docker(self) -> list[Found]:
        data = self._bytes("manifest.json", self._limits.max_manifest_bytes)
        images = decode(data, list[_DockerImage], "manifest.json")
        if len(images) > _MAX_IMAGES:
            raise errors.InvalidArgument(f"manifest.json: more than {_MAX_IMAGES} images")
        return [self._docker_image(one) for one in images]

    def _docker_image(self, image: _DockerImage) -> Found:
        """The image, with a manifest made for it: `docker save` keeps none."""
        if len(image.layers) > self._limits.max_layers:
            raise errors.InvalidArgument(f"manifest.json: {len(image.layers)} layers")
        config = self._bytes(image.config, self._limits.max_config_bytes)
        layers: list[Descriptor] = []
        for path in image.layers:
            digest, size = self._copy(path, None, None)
            layers.append(Descriptor(media_type=OCI_LAYER, digest=digest, size=size))
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(media_type=OCI_CONFIG, digest=digest_of(config), size=len(config)),
            "layers": layers,
        }
        manifest = msgspec.json.encode(document)
        self._content.put(config)
        digest = self._content.put(manifest)
        names = tuple(Reference.parse(tag) for tag in image.repo_tags or ())
        return Found(manifest=manifest, config=config, names=names, digest=digest)

    def _blob(self, descriptor: Descriptor) -> bytes:
        valid(descriptor, "layout", self._limits.max_config_bytes)
        data = self._bytes(_blob_path(descriptor.digest), self._limits.max_config_bytes)
        if digest_of(data) != descriptor.digest:
            raise errors.DataLoss(f"{descriptor.digest}: its file has another digest, {digest_of(data)}")
        return data

    def _bytes(self, path: str, most: int) -> bytes:
        descriptor = self._open(path)
        try:
            size = os.fstat(descriptor).st_size
            if size > most:
                raise errors.InvalidArgument(f"{path}: has {size} bytes; the most is {most}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(descriptor)

    def _copy(self, path: str, digest: str | None, size: int | None) -> tuple[str, int]:
        descriptor = self._open(path)
        try:
            actual = self._content.write(self._chunks(descriptor), digest, size)
            return actual, os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _chunks(self, descriptor: int) -> Callable[[], bytes]:
        read = chunks_of(descriptor)

        def next_chunk() -> bytes:
            if self._stopped.is_set():
                raise errors.Cancelled(f"{self._name}: the import was ended")
            return read()

        return next_chunk

    def _open(self, path: str) -> int:
        """The regular file `path` inside the folder, links followed only within it."""
        real = os.path.realpath(self._folder / path)
        if not real.startswith(f"{self._folder}/"):
            raise errors.InvalidArgument(f"{path!r}: leads out of the archive")
        try:
            if not stat.S_ISREG(os.lstat(real).st_mode):
                raise errors.InvalidArgument(f"{path!r}: is no file of the archive")
            return os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise errors.InvalidArgument(f"{path!r}: is missing from the archive") from error


def _blob_path(digest: str) -> str:
    assert is_digest(digest)
    return "blobs/" + digest.replace(":", "/")


def _annotated(descriptor: Descriptor) -> tuple[Reference, ...]:
    """The names that the layout gives an image; a bare tag is none without a repository."""
    annotations = descriptor.annotations or {}
    if name := annotations.get(_NAME):
        return (Reference.parse(name),)
    name = annotations.get(_REF_NAME, "")
    return (Reference.parse(name),) if "/" in name or ":" in name else ()
