"""Archives of images: a tar that is made while it is read, straight from the blobs.

oci      an OCI layout (image-spec, "Image Layout") with docker's manifest.json beside it, as docker 25 and later
         writes: docker, podman, skopeo, containerd and Atoll read it
docker   manifest.json, <config>.json and <layer>/layer.tar, as docker wrote before; layers as they came
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from atoll.image.model import OCI_INDEX, OCI_MANIFEST, Probe, decode, digest_of
from atoll.image.outward import Held, Outward
from atoll.image.reference import Reference

CHUNK_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_Path = Callable[[str], str]


async def oci_archive(store: Outward, images: Sequence[Held]) -> AsyncGenerator[bytes]:
    """The images as an OCI layout; a blob that several need is there once."""
    yield _file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    yield _file("index.json", _index(images))
    contents = [
        _contents(one, lambda digest: f"blobs/sha256/{_hex(digest)}", lambda digest: f"blobs/sha256/{_hex(digest)}")
        for one in images
    ]
    yield _file("manifest.json", json.dumps(contents).encode())
    yield _header("blobs/", tarfile.DIRTYPE, 0) + _header("blobs/sha256/", tarfile.DIRTYPE, 0)
    seen: set[str] = set()
    for one in images:
        digest = digest_of(one.document)
        if digest not in seen:
            seen.add(digest)
            yield _file(f"blobs/sha256/{_hex(digest)}", one.document)
        for blob in (one.manifest.config, *one.manifest.layers):
            if blob.digest not in seen:
                seen.add(blob.digest)
                async for chunk in _blob(store, f"blobs/sha256/{_hex(blob.digest)}", blob.digest, blob.size):
                    yield chunk
    yield bytes(2 * _BLOCK)


async def docker_archive(store: Outward, images: Sequence[Held]) -> AsyncGenerator[bytes]:
    """The images as `docker save` wrote them."""
    seen: set[str] = set()
    for one in images:
        config = one.manifest.config
        blobs = [(f"{_hex(config.digest)}.json", config)]
        blobs += [(f"{_hex(layer.digest)}/layer.tar", layer) for layer in one.manifest.layers]
        for path, blob in blobs:
            if path not in seen:
                seen.add(path)
                if "/" in path:
                    yield _header(f"{_hex(blob.digest)}/", tarfile.DIRTYPE, 0)
                async for chunk in _blob(store, path, blob.digest, blob.size):
                    yield chunk
    contents = [
        _contents(one, lambda digest: f"{_hex(digest)}.json", lambda digest: f"{_hex(digest)}/layer.tar")
        for one in images
    ]
    yield _file("manifest.json", json.dumps(contents).encode())
    yield bytes(2 * _BLOCK)


def _names(held: Held) -> list[Reference]:
    """The tag that it was asked by, or all that it has."""
    asked = [held.name] if held.name and "@" not in held.name else list(held.image.repo_tags)
    return [Reference.parse(name) for name in asked]


def _index(images: Iterable[Held]) -> bytes:
    manifests: list[dict[str, object]] = []
    for one in images:
        descriptor: dict[str, object] = {
            "mediaType": decode(one.document, Probe, digest_of(one.document)).media_type or OCI_MANIFEST,
            "digest": digest_of(one.document),
            "size": len(one.document),
        }
        names: list[dict[str, object]] = [
            {
                "annotations": {
                    "io.containerd.image.name": str(name),
                    "org.opencontainers.image.ref.name": name.tag or "",
                }
            }
            for name in _names(one)
        ]
        manifests += [{**descriptor, **name} for name in names or [{}]]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


def _contents(held: Held, config: _Path, layer: _Path) -> dict[str, object]:
    return {
        "Config": config(held.manifest.config.digest),
        "RepoTags": [str(name) for name in _names(held)],
        "Layers": [layer(one.digest) for one in held.manifest.layers],
    }


async def _blob(store: Outward, path: str, digest: str, size: int) -> AsyncGenerator[bytes]:
    yield _header(path, tarfile.REGTYPE, size)
    descriptor = await store.pool.run(os.open, store.content.path(digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := await store.pool.run(os.read, descriptor, CHUNK_BYTES):
            yield chunk
    finally:
        os.close(descriptor)
    yield bytes(-size % _BLOCK)


def _file(path: str, data: bytes) -> bytes:
    return _header(path, tarfile.REGTYPE, len(data)) + data + bytes(-len(data) % _BLOCK)


def _header(path: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.type, info.size = kind, size
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
