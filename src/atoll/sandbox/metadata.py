"""What the engine knows of a pod beyond the record's own fields: kept in the record's extensions.

The extension `metadata` has the JSON that containerd's CRI plugin writes, so that either can read the
other's records:

    {"Version":"v1","Metadata":{ID, Name, Config, NetNSPath, IP, AdditionalIPs, RuntimeHandler,
                                CNIResult, ProcessLabel}}
"""

from __future__ import annotations

import msgspec

from atoll import errors
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import TypedAny
from atoll.unreadable import UNREADABLE

EXTENSION = "metadata"
"""The key in `Sandbox.extensions`."""

TYPE_URL = "github.com/containerd/cri/pkg/store/sandbox/Metadata"
VERSION = "v1"


class SandboxMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as it was asked for and what its network gave it; never changed, only replaced.

    `name` is `<name>_<namespace>_<uid>_<attempt>`. `netns_path` and `ip` are empty with the host's
    network. `cni_result` is the JSON text of the CNI result, `null` where there is none.
    """

    id: str = msgspec.field(name="ID")
    name: str = msgspec.field(name="Name", default="")
    config: PodConfig | None = msgspec.field(name="Config", default=None)
    netns_path: str = msgspec.field(name="NetNSPath", default="")
    ip: str = msgspec.field(name="IP", default="")
    additional_ips: tuple[str, ...] | None = msgspec.field(name="AdditionalIPs", default=None)
    runtime_handler: str = msgspec.field(name="RuntimeHandler", default="")
    cni_result: msgspec.Raw = msgspec.field(name="CNIResult", default=msgspec.Raw(b"null"))
    process_label: str = msgspec.field(name="ProcessLabel", default="")


class _Envelope(msgspec.Struct, frozen=True):
    version: str = msgspec.field(name="Version", default="")
    metadata: msgspec.Raw = msgspec.field(name="Metadata", default=msgspec.Raw(b"null"))


def encode_metadata(metadata: SandboxMetadata) -> TypedAny:
    """The extension that holds `metadata`."""
    envelope = _Envelope(version=VERSION, metadata=msgspec.Raw(msgspec.json.encode(metadata)))
    return TypedAny(type_url=TYPE_URL, value=msgspec.json.encode(envelope))


def decode_metadata(extension: TypedAny) -> SandboxMetadata:
    """The metadata in `extension`; `DataLoss` for another type, an unknown version or broken JSON."""
    if extension.type_url != TYPE_URL:
        raise errors.DataLoss(f"sandbox metadata: has type {extension.type_url!r}, not {TYPE_URL}")
    try:
        envelope = msgspec.json.decode(extension.value, type=_Envelope)
        if envelope.version != VERSION:
            raise errors.DataLoss(
                f"sandbox metadata: unsupported version {envelope.version!r}, this atoll knows {VERSION}"
            )
        metadata = msgspec.json.decode(envelope.metadata, type=SandboxMetadata)
    except UNREADABLE as error:
        raise errors.DataLoss(f"sandbox metadata: cannot be read: {error}") from error
    return msgspec.structs.replace(metadata, cni_result=metadata.cni_result.copy())
