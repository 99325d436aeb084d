"""Where a controller is served, as text.

unix:///path            gRPC, as containerd speaks to a proxy plugin; a bare /path is the same
grpc+unix:///path       the same
ttrpc+unix:///path      ttrpc
grpc+vsock://cid:port   gRPC or ttrpc between a virtual machine and its host (vsock(7))
ttrpc+vsock://cid:port
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.ttrpc import address as addresses

GRPC, TTRPC = "grpc", "ttrpc"
VSOCK_LIMIT = 1 << 32
FORMS = "unix:///path, ttrpc+unix:///path, grpc+vsock://cid:port or ttrpc+vsock://cid:port"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A protocol, and a socket's path or, where that is empty, a vsock context ID and port."""

    protocol: str
    path: str = ""
    cid: int = 0
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read one of the forms above; raises `InvalidArgument` for anything else."""
        protocol, plus, rest = text.partition("+")
        if not plus or "/" in protocol:
            protocol, rest = GRPC, text
        scheme, colon, name = rest.partition("://")
        if not colon:
            scheme, name = "unix", rest
        if protocol not in (GRPC, TTRPC) or scheme not in ("unix", "vsock"):
            raise errors.InvalidArgument(f"address {text!r}: must be {FORMS}")
        if scheme == "vsock":
            cid, _, port = name.partition(":")
            return cls(protocol=protocol, cid=_number(cid, text), port=_number(port, text))
        if not name.startswith("/") or "\0" in name or name.endswith("/"):
            raise errors.InvalidArgument(f"address {text!r}: must name a socket by its absolute path")
        if len(os.fsencode(name)) > addresses.MAX_NAME_BYTES:
            raise errors.InvalidArgument(
                f"address {text!r}: is longer than the {addresses.MAX_NAME_BYTES} bytes of a unix socket"
            )
        return cls(protocol=protocol, path=name)

    def __str__(self) -> str:
        where = f"unix://{self.path}" if self.path else f"vsock://{self.cid}:{self.port}"
        return f"{self.protocol}+{where}"

    @property
    def target(self) -> str:
        """What gRPC's core calls it."""
        return f"unix:{self.path}" if self.path else f"vsock:{self.cid}:{self.port}"

    async def connect(self, *, timeout_s: float) -> socket.socket:
        """A connected socket, for ttrpc; raises `Unavailable` at once where nobody listens. The caller closes it."""
        if self.path:
            return await addresses.connect(f"unix://{self.path}", timeout_s=timeout_s)
        connection = _vsock(self)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(connection, (self.cid, self.port))
        except TimeoutError:
            connection.close()
            raise errors.Unavailable(f"{self}: not connected within {timeout_s:g} s") from None
        except OSError as error:
            connection.close()
            raise errors.Unavailable(f"{self}: cannot connect: {error.strerror}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def bind(self) -> socket.socket | Path:
        """What a ttrpc server serves on: the path, or a bound vsock socket."""
        if self.path:
            return Path(self.path)
        listener = _vsock(self)
        try:
            listener.bind((self.cid, self.port))
        except OSError as error:
            listener.close()
            raise errors.FailedPrecondition(f"{self}: cannot be listened on: {error.strerror}") from error
        return listener


def _number(text: str, address: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(VSOCK_LIMIT))) or int(text) >= VSOCK_LIMIT:
        raise errors.InvalidArgument(f"address {address!r}: must be {FORMS}, with numbers below 2^32")
    return int(text)


def _vsock(address: Address) -> socket.socket:
    try:
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise errors.Unimplemented(f"{address}: this kernel has no vsock: {error.strerror}") from error
