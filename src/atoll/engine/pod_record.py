"""What is written of a pod when it is made: its record's extensions, its folder and the files in it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator
from pathlib import Path

import msgspec

from atoll import errors
from atoll.network.model import Attachment
from atoll.network.result import to_containerd_json
from atoll.oci.config import NamespaceMode
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import TypedAny
from atoll.sandbox.metadata import EXTENSION, SandboxMetadata, encode_metadata
from atoll.shim import pod_files


def extensions(
    pod_id: str, name: str, config: PodConfig, handler_name: str, netns_path: str, attachment: Attachment | None
) -> dict[str, TypedAny]:
    """The extensions that containerd keeps of a pod too."""
    result = to_containerd_json(attachment.networks, attachment.netns_path) if attachment is not None else None
    metadata = SandboxMetadata(
        id=pod_id,
        name=name,
        config=config,
        netns_path=netns_path,
        ip=attachment.ip if attachment is not None else "",
        additional_ips=attachment.additional_ips if attachment is not None else None,
        runtime_handler=handler_name,
        cni_result=msgspec.Raw(msgspec.json.encode(result)),
    )
    return {EXTENSION: encode_metadata(metadata)}


def make_folder(path: Path) -> None:
    """The pod's folder; blocks briefly. Raises `ResourceExhausted`, `Unavailable`."""
    with _refused(path):
        path.mkdir(0o711)


def make_files(path: Path, config: PodConfig) -> None:
    """What a pod's controller makes where it is ours, and what containers mount whoever it is."""
    with _refused(path):
        pod_files.create(path, config, shm=config.namespaces.ipc is not NamespaceMode.NODE)


@contextlib.contextmanager
def _refused(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        kind = errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Unavailable
        raise kind(f"{error.filename or path}: cannot be made: {error.strerror}") from error
