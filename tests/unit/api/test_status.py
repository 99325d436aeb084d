"""Errors as google.rpc.Status and back, those joined to them too."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]  it ships none

from atoll import errors
from atoll.api.status import MAX_JOINED, from_status, to_status
from atoll.sandbox.controller import CleanupFailed


@pytest.mark.parametrize("kind", errors.KINDS.values())
def test_every_kind_round_trips(kind: type[errors.AtollError]) -> None:
    error = from_status(to_status(kind("what happened")))
    assert (type(error), str(error), error.joined) == (kind, "what happened", ())


def test_joined_errors_are_statuses_in_its_details() -> None:
    status = to_status(CleanupFailed(errors.DataLoss("first"), ("a", "b"), ("c",)))
    nested = status_pb2.Status()
    assert status.details[0].Unpack(nested)
    assert (status.code, nested.code, nested.message) == (15, 10, "torn down: c")
    assert [str(other) for other in from_status(status).joined] == [
        "torn down: c",
        "not torn down yet: a",
        "not torn down yet: b",
    ]


def test_details_of_other_types_and_too_many_are_left_out() -> None:
    status = status_pb2.Status(code=5, message="gone")
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\x00")
    assert from_status(status).joined == ()
    many = CleanupFailed(errors.NotFound("x"), tuple("y" for _ in range(MAX_JOINED * 2)))
    assert len(to_status(many).details) == MAX_JOINED


def test_messages_that_go_with_an_error_are_sent() -> None:
    error = errors.DeadlineExceeded("late")
    error.details = (("type.googleapis.com/some.Message", b"\x08\x01"),)
    (detail,) = to_status(error).details
    assert (detail.type_url, detail.value) == ("type.googleapis.com/some.Message", b"\x08\x01")


def test_a_code_that_nobody_knows_is_unknown() -> None:
    assert type(from_status(status_pb2.Status(code=77, message="?"))) is errors.Unknown
