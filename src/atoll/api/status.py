"""Errors as google.rpc.Status, and back: the form that gRPC's details and ttrpc share.

Errors joined to the first one travel as further statuses in its details, as containerd sends them.
"""

from __future__ import annotations

from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]  it ships none

from atoll import errors

MAX_TEXT = 64 << 10
"""Longest text that is sent, in characters; a longer one is cut, never refused."""
MAX_JOINED = 16
"""Most errors that are sent, or read, with a first one."""


def to_status(error: errors.AtollError) -> status_pb2.Status:
    """The status of `error`; a text that is not valid unicode is made to fit."""
    # Paths decoded with surrogateescape end up in messages; protobuf refuses lone surrogates.
    status = status_pb2.Status(code=error.code, message=str(error)[:MAX_TEXT].encode("utf-8", "replace").decode())
    for other in error.joined[:MAX_JOINED]:
        status.details.add().Pack(to_status(other))
    for url, value in error.details:
        status.details.add(type_url=url, value=value)
    return status


def from_status(status: status_pb2.Status) -> errors.AtollError:
    """The error of `status`, with those joined to it; details of other types are left out."""
    error = errors.from_status(status.code, status.message)
    joined: list[errors.AtollError] = []
    for detail in status.details[:MAX_JOINED]:
        nested = status_pb2.Status()
        if detail.TypeName() == "google.rpc.Status" and detail.Unpack(nested):
            joined.append(errors.from_status(nested.code, nested.message))
    error.joined = tuple(joined)
    return error
