"""What a container was asked to be: immutable, and kept as the JSON that containerd's CRI plugin writes.

{"Version":"v1","Metadata":{ID, Name, SandboxID, Config, ImageRef, LogPath, StopSignal, ProcessLabel}}
"""

from __future__ import annotations

import msgspec

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.unreadable import UNREADABLE

TYPE_URL = "github.com/containerd/cri/pkg/store/container/Metadata"
VERSION = "v1"


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """A container as it was asked for.

    `name` is `<container>_<pod>_<pod namespace>_<pod uid>_<attempt>`, `image_ref` the image's config
    digest, `stop_signal` a name (`SIGTERM`, `SIGRTMIN+1`) or empty. Present limits are not here but
    in `Status.resources`.
    """

    id: str = msgspec.field(name="ID")
    name: str = msgspec.field(name="Name", default="")
    sandbox_id: str = msgspec.field(name="SandboxID", default="")
    config: ContainerConfig | None = msgspec.field(name="Config", default=None)
    image_ref: str = msgspec.field(name="ImageRef", default="")
    log_path: str = msgspec.field(name="LogPath", default="")
    stop_signal: str = msgspec.field(name="StopSignal", default="")
    process_label: str = msgspec.field(name="ProcessLabel", default="")


class _Envelope(msgspec.Struct, frozen=True):
    version: str = msgspec.field(name="Version", default="")
    metadata: msgspec.Raw = msgspec.field(name="Metadata", default=msgspec.Raw(b"null"))


def encode_metadata(metadata: Metadata) -> bytes:
    """The versioned JSON text."""
    return msgspec.json.encode(_Envelope(version=VERSION, metadata=msgspec.Raw(msgspec.json.encode(metadata))))


def decode_metadata(text: bytes) -> Metadata:
    """The metadata in `text`; `DataLoss` for an unknown version or broken JSON."""
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
        if envelope.version != VERSION:
            raise errors.DataLoss(
                f"container metadata: unsupported version {envelope.version!r}, this atoll knows {VERSION}"
            )
        return msgspec.json.decode(envelope.metadata, type=Metadata)
    except UNREADABLE as error:
        raise errors.DataLoss(f"container metadata: cannot be read: {error}") from error
