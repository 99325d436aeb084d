"""An image made of another and one more layer, as `docker commit` makes them.

Changes are instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and
WORKDIR. Documents are as they were but for what is changed: fields that Atoll does not use are kept.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from atoll import errors
from atoll.image.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, decode, digest_of
from atoll.unreadable import UNREADABLE

MAX_CHANGES = 1000
_LISTS = {"CMD": "Cmd", "ENTRYPOINT": "Entrypoint"}
_TEXTS = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}
_SETS = {"EXPOSE": "ExposedPorts", "VOLUME": "Volumes"}
KNOWN = ", ".join(sorted((*_LISTS, *_TEXTS, *_SETS, "ENV", "LABEL", "ONBUILD")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What is said of a new image beside its files."""

    changes: tuple[str, ...] = ()
    author: str = ""
    message: str = ""
    created: str = ""
    """RFC 3339."""
    created_by: str = ""


def config_document(base: bytes, diff_id: str, commit: Commit) -> bytes:
    """The config of the new image; raises `InvalidArgument` for a change that is none."""
    document = decode(base, dict[str, Any], "image config")
    config = dict(document.get("config") or {})
    if len(commit.changes) > MAX_CHANGES:
        raise errors.InvalidArgument(f"changes: {len(commit.changes)} are more than {MAX_CHANGES}")
    for change in commit.changes:
        apply(config, change)
    rootfs: dict[str, Any] = {"type": "layers", **(document.get("rootfs") or {})}
    rootfs["diff_ids"] = [*rootfs.get("diff_ids", ()), diff_id]
    step = {"created": commit.created, "created_by": commit.created_by, "author": commit.author}
    history = {key: value for key, value in step.items() if value}
    if commit.message:
        history["comment"] = commit.message
    made = {**document, "config": config, "rootfs": rootfs, "created": commit.created}
    made["history"] = [*document.get("history", ()), history]
    if commit.author:
        made["author"] = commit.author
    return msgspec.json.encode(made)


def manifest_document(base: bytes, config: bytes, layer: Descriptor) -> bytes:
    """The manifest of the new image: the layers of the base as they are, and `layer`."""
    document = decode(base, dict[str, Any], "image manifest")
    described = Descriptor(media_type=OCI_CONFIG, digest=digest_of(config), size=len(config))
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described,
            "layers": [*map(_oci, document.get("layers", ())), layer],
        }
    )


def layer_descriptor(digest: str, size: int) -> Descriptor:
    return Descriptor(media_type=OCI_LAYER, digest=digest, size=size)


def _oci(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer of docker's manifest in the words of OCI's, which say the same."""
    names = {
        "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{OCI_LAYER}+gzip",
        "application/vnd.docker.image.rootfs.diff.tar": OCI_LAYER,
    }
    media_type = layer.get("mediaType", "")
    return {**layer, "mediaType": names.get(media_type, media_type)}


def apply(config: dict[str, Any], change: str) -> None:
    """Change `config` by one instruction; raises `InvalidArgument`."""
    word, _, rest = change.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    if "\0" in change or not rest:
        raise errors.InvalidArgument(f'change {change[:80]!r}: must be like `CMD ["sh"]`; known are {KNOWN}')
    if word in _LISTS:
        config[_LISTS[word]] = _command(rest, change)
        if word == "ENTRYPOINT":
            config.pop("Cmd", None)  # that of the base was meant for another entrypoint
    elif word in _TEXTS:
        config[_TEXTS[word]] = _words(rest, change)[0]
    elif word in _SETS:
        values = _array(rest) or _words(rest, change)
        names = [one if word == "VOLUME" or "/" in one else f"{one}/tcp" for one in values]
        config[_SETS[word]] = {**(config.get(_SETS[word]) or {}), **{name: {} for name in names}}
    elif word == "ENV":
        new = dict(_pairs(rest, change))
        old = [one for one in config.get("Env") or () if one.partition("=")[0] not in new]
        config["Env"] = [*old, *(f"{key}={value}" for key, value in new.items())]
    elif word == "LABEL":
        config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(rest, change))}
    elif word == "ONBUILD":
        config["OnBuild"] = [*(config.get("OnBuild") or ()), rest]
    else:
        raise errors.InvalidArgument(f"change {change[:80]!r}: {word[:20]} is no instruction here; known are {KNOWN}")


def _command(text: str, change: str) -> list[str]:
    """A JSON list, or else a line for a shell."""
    found = _array(text)
    if found is None and text.startswith("["):
        raise errors.InvalidArgument(f"change {change[:80]!r}: is no JSON list of texts")
    return ["/bin/sh", "-c", text] if found is None else found


def _array(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except UNREADABLE:
        return None


def _words(text: str, change: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise errors.InvalidArgument(f"change {change[:80]!r}: {error}") from error


def _pairs(text: str, change: str) -> Sequence[tuple[str, str]]:
    """`KEY=value ...` with quotes, or the old `KEY value`."""
    words = _words(text, change)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        return [(key, value.strip())]
    pairs = [one.partition("=") for one in words]
    if wrong := [key for key, equals, _ in pairs if not equals or not key]:
        raise errors.InvalidArgument(f"change {change[:80]!r}: {wrong[0]!r} has no value; write KEY=value")
    return [(key, value) for key, _, value in pairs]
