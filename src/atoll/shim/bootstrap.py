"""The forms of the `start` call: what a daemon says on stdin, in flags and in the environment, and how it is answered.

    daemon        stdin                          answer
    2.3 or newer  BootstrapParams                BootstrapResult (protobuf)
    1.7 to 2.2    Any of the runtime options     JSON   (MAX_SHIM_VERSION is set)
    1.6           Any of the runtime options     the address alone; it speaks version 2

An Any also parses as BootstrapParams (both begin with two strings), so those count only if they carry the id of
the flags. Source: containerd's shim protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as pb
from atoll.shim import runtimes, wire

STDIN_LIMIT_BYTES = 10 << 20
TASK_API_VERSION = 3
DEFAULT_SOCKET_DIR = "/run/containerd/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The command line, in the style of Go's flag package."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    debug: bool = False
    action: str = ""


_FLAGS = {
    "namespace": "namespace",
    "id": "id",
    "address": "address",
    "publish-binary": "publish_binary",
    "bundle": "bundle",
}
_SWITCHES = {"debug": "", "v": "version", "version": "version", "info": "info"}


def parse_flags(arguments: list[str]) -> Flags:
    """`-name value`, `-name=value`, `-switch`, and one action; two dashes count as one. Raises `InvalidArgument`."""
    values: dict[str, str] = {}
    action, debug, rest = "", False, list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if action:
                raise errors.InvalidArgument(f"unexpected argument {word!r}: one of start, delete")
            action = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            debug = debug or (name == "debug" and value != "false")
            action = _SWITCHES[name] or action
        elif name not in _FLAGS:
            raise errors.InvalidArgument(f"unknown flag {word!r}")
        elif not equals and not rest:
            raise errors.InvalidArgument(f"flag {word!r}: needs a value")
        else:
            values[_FLAGS[name]] = value if equals else rest.pop(0)
    return Flags(**values, debug=debug, action=action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What `start` was told. `form`: protobuf, json or address."""

    options: runc_pb2.Options
    ttrpc_address: str
    grpc_address: str
    socket_dir: str
    debug: bool
    form: str


def read(flags: Flags, stdin: bytes, environment: Mapping[str, str]) -> Bootstrap:
    """Understand a `start` call; raises `InvalidArgument` for runtime options that do not decode."""
    params = pb.BootstrapParams()
    try:
        params.ParseFromString(stdin)
    except DecodeError:
        params.Clear()
    if params.instance_id and params.instance_id == flags.id:
        found = runc_pb2.Options()
        for extension in params.extensions:
            found.MergeFrom(runtimes.options(extension.value))
        return Bootstrap(
            options=found,
            ttrpc_address=params.containerd_ttrpc_address,
            grpc_address=params.containerd_grpc_address,
            socket_dir=params.socket_dir or DEFAULT_SOCKET_DIR,
            debug=params.log_level < 0 or flags.debug,
            form="protobuf",
        )
    return Bootstrap(
        options=_old_options(stdin),
        ttrpc_address=environment.get("TTRPC_ADDRESS", ""),
        grpc_address=environment.get("GRPC_ADDRESS") or flags.address,
        socket_dir=DEFAULT_SOCKET_DIR,
        debug=flags.debug,
        form="json" if environment.get("MAX_SHIM_VERSION") else "address",
    )


def _old_options(stdin: bytes) -> runc_pb2.Options:
    value = AnyMessage()
    try:
        value.ParseFromString(stdin)
    except DecodeError as error:
        raise errors.InvalidArgument(f"stdin: neither BootstrapParams nor an Any: {error}") from error
    return runtimes.options(value)


def answer(form: str, address: str) -> bytes:
    """What `start` prints, and nothing else."""
    if form == "protobuf":
        return pb.BootstrapResult(version=TASK_API_VERSION, address=address, protocol="ttrpc").SerializeToString()
    if form == "json":
        return msgspec.json.encode({"version": TASK_API_VERSION, "address": address, "protocol": "ttrpc"})
    return address.encode()


def check(flags: Flags) -> None:
    """Raise `InvalidArgument` unless id and namespace are identifiers."""
    wire.identifier(flags.namespace, "namespace")
    wire.identifier(flags.id, "id")
