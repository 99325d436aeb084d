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
from atoll.linux.plain import read_small
from atoll.unreadable import UNREADABLE

FILE = "bootstrap.json"
OLD_FILE = "address"
LIMIT_BYTES = 1 << 20
"""More than any of the two has."""
MIN_VERSION, MAX_VERSION = 2, 3
ADDRESS_LIMIT = 4096


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """The Task API generation (2 or 3), the transport, and the address of a shim."""

    version: int = MIN_VERSION
    address: str = ""
    protocol: str = "ttrpc"

    @property
    def endpoint(self) -> str:
        """`<protocol>+<address>`, the form that sandbox controllers answer."""
        return f"{self.protocol}+{self.address}"

    @classmethod
    def parse(cls, answer: bytes) -> Bootstrap:
        """Read what a shim's `start` printed: protobuf as it is, else JSON, else a bare address, both trimmed.

        JSON of a version below 2 counts as a bare address. Raises `Unavailable` for nothing, `Unimplemented` for
        a Task API that is not known, `Unknown` for text that names no address.
        """
        if not answer.strip():
            raise errors.Unavailable("the shim printed no address at start")
        result = _from_protobuf(answer) or _from_json(answer) or _from_text(answer)
        if not MIN_VERSION <= result.version <= MAX_VERSION:
            raise errors.Unimplemented(
                f"the shim speaks task API version {result.version}, known are {MIN_VERSION} to {MAX_VERSION}"
            )
        return result

    @classmethod
    def from_endpoint(cls, endpoint: str, version: int) -> Bootstrap:
        """Split `<protocol>+<address>`; raises `InvalidArgument` where one of the two is missing."""
        protocol, _, address = endpoint.partition("+")
        if not protocol or not address:
            raise errors.InvalidArgument(
                f"task address {endpoint!r}: must be <protocol>+<address>, as ttrpc+unix:///path"
            )
        return cls(version=version, address=address, protocol=protocol)

    @classmethod
    def load(cls, bundle: Path) -> Bootstrap:
        """Read the file in `bundle`, or the `address` file of old shims, which speak version 2.

        Raises `NotFound` where there is neither, and `DataLoss` where it is not readable.
        """
        path = bundle / FILE
        try:
            result = msgspec.json.decode(read_small(path, LIMIT_BYTES), type=cls)
        except FileNotFoundError:
            return _from_old_file(bundle)
        except (OSError, *UNREADABLE) as error:
            raise errors.DataLoss(f"{path}: cannot be read: {error}") from error
        if not result.address:
            raise errors.DataLoss(f"{path}: names no address")
        return result

    def store(self, bundle: Path) -> None:
        """Write the file in `bundle`, replaced atomically; it need not survive a reboot, so it is not synced."""
        path = bundle / FILE
        temporary = bundle / f".{FILE}.new"
        temporary.write_bytes(msgspec.json.encode(self))
        os.replace(temporary, path)


def _from_old_file(bundle: Path) -> Bootstrap:
    path = bundle / OLD_FILE
    try:
        return _from_text(read_small(path, LIMIT_BYTES))
    except FileNotFoundError:
        raise errors.NotFound(f"{bundle / FILE}: is not there") from None
    except (OSError, errors.Unknown) as error:
        raise errors.DataLoss(f"{path}: cannot be read: {error}") from error


def _from_text(answer: bytes) -> Bootstrap:
    text = answer.decode(errors="replace").strip()
    if not text.isprintable() or " " in text or not 0 < len(text) <= ADDRESS_LIMIT:
        raise errors.Unknown(f"the shim printed no address at start but {text[:200]!r}")
    return Bootstrap(address=text)


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
        # Whoever wrote it in Go need not have minded the case of the keys: Go's reader does not.
        said = msgspec.json.decode(answer.strip(), type=dict[str, msgspec.Raw])
        result = msgspec.convert(
            {key.lower(): msgspec.json.decode(value) for key, value in said.items()}, type=Bootstrap
        )
    except UNREADABLE:
        return None
    if "version" not in {key.lower() for key in said} or result.version < MIN_VERSION:
        return None
    if not result.address:
        raise errors.Unknown(f"the shim named no address at start but printed {answer[:200]!r}")
    return result
