"""Where a shim answers, as its `start` call told it, and the file that keeps it for reconnection.

Source of the forms: containerd's shim protocol, `start` (protobuf, JSON or a bare address).
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as wire

FILE = "bootstrap.json"
MAX_VERSION = 3


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """The Task API generation (2 or 3), the transport, and the address of a shim."""

    version: int = 2
    address: str = ""
    protocol: str = "ttrpc"

    @property
    def endpoint(self) -> str:
        """`<protocol>+<address>`, the form that sandbox controllers answer."""
        return f"{self.protocol}+{self.address}"

    @classmethod
    def parse(cls, answer: bytes) -> Bootstrap:
        """Read what a shim's `start` printed; raises `Unavailable` for nothing and `Unimplemented` for a newer API."""
        if not answer.strip():
            raise errors.Unavailable("the shim printed no address at start")
        result = _from_protobuf(answer) or _from_json(answer) or cls(address=answer.decode(errors="replace").strip())
        if result.version > MAX_VERSION:
            raise errors.Unimplemented(f"the shim speaks task API version {result.version}, newest known is {MAX_VERSION}")
        return result

    @classmethod
    def from_endpoint(cls, endpoint: str, version: int) -> Bootstrap:
        """Split `<protocol>+<address>`; raises `InvalidArgument` where the `+` is missing."""
        protocol, plus, address = endpoint.partition("+")
        if not plus:
            raise errors.InvalidArgument(f"task address {endpoint!r}: must be <protocol>+<address>, as ttrpc+unix:///path")
        return cls(version=version, address=address, protocol=protocol)

    @classmethod
    def load(cls, bundle: Path) -> Bootstrap:
        """Read the file in `bundle`; raises `NotFound` without one and `DataLoss` where it is not readable."""
        path = bundle / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise errors.NotFound(f"{path}: is not there") from None
        except msgspec.MsgspecError as error:
            raise errors.DataLoss(f"{path}: cannot be read: {error}") from error

    def store(self, bundle: Path) -> None:
        """Write the file in `bundle`, replaced atomically; it need not survive a reboot, so it is not synced."""
        path = bundle / FILE
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self))
        os.replace(temporary, path)


def _from_protobuf(answer: bytes) -> Bootstrap | None:
    message = wire.BootstrapResult()
    try:
        message.ParseFromString(answer)
    except DecodeError:
        return None
    if not message.address or not message.protocol:
        return None
    return Bootstrap(version=message.version, address=message.address, protocol=message.protocol)


def _from_json(answer: bytes) -> Bootstrap | None:
    try:
        result = msgspec.json.decode(answer.strip(), type=Bootstrap)
    except msgspec.MsgspecError:
        return None
    return result if result.version >= 2 and result.address else None
