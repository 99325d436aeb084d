"""The one error tree.

A kind exists only where a client should act differently; its value is the status code that gRPC
and ttrpc share. `from_status` is the inverse of `AtollError.code`, used by every client.

    AtollError
      InvalidArgument      the request is wrong; the same request never works
      NotFound             the thing named is not there
      AlreadyExists        the name is taken
      PermissionDenied     not for this caller
      ResourceExhausted    a written limit is reached
      FailedPrecondition   not in this state; a change of state first
      Aborted              lost against another operation; try again
      OutOfRange           past the end
      Unimplemented        this implementation has no such operation
      Internal             a fault of ours
      Unavailable          not now; the same request may work later
      DataLoss             a record cannot be read
      Unauthenticated      who are you
      DeadlineExceeded     a bound ran out
      Cancelled            the caller went away
      Unknown              a fault of somebody else, told as they told it
"""

from __future__ import annotations

from typing import ClassVar


class AtollError(Exception):
    """Base of every error that Atoll raises on purpose.

    The message is lower case, names the thing and the path, and says what to do.
    """

    code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.joined: tuple[AtollError, ...] = ()
        """Errors that came with this one, which comes first; they cross the wires with it."""
        self.details: tuple[tuple[str, bytes], ...] = ()
        """What a protocol lets an error carry: messages, each with its type URL. They go out and are not read back."""

    def __str__(self) -> str:
        return self.message


class Cancelled(AtollError):
    code = 1


class Unknown(AtollError):
    code = 2


class InvalidArgument(AtollError):
    code = 3


class DeadlineExceeded(AtollError):
    code = 4


class NotFound(AtollError):
    code = 5


class AlreadyExists(AtollError):
    code = 6


class PermissionDenied(AtollError):
    code = 7


class ResourceExhausted(AtollError):
    code = 8


class FailedPrecondition(AtollError):
    code = 9


class Aborted(AtollError):
    code = 10


class OutOfRange(AtollError):
    code = 11


class Unimplemented(AtollError):
    code = 12


class Internal(AtollError):
    code = 13


class Unavailable(AtollError):
    code = 14


class DataLoss(AtollError):
    code = 15


class Unauthenticated(AtollError):
    code = 16


KINDS: dict[int, type[AtollError]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def from_status(code: int, message: str) -> AtollError:
    """The error that a status of `code` and `message` stands for; an unknown code gives `Unknown`."""
    return KINDS.get(code, Unknown)(message)
