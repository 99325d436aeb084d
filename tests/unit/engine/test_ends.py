"""The note of a pod's end in its record: read as it was written, and never in the way."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from atoll.engine import ends
from atoll.sandbox.controller import ExitStatus, Runtime, Sandbox, TypedAny

END = ExitStatus(exit_status=137, exited_at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))


def sandbox(value: bytes | None) -> Sandbox:
    extensions = {} if value is None else {ends.EXTENSION: TypedAny(type_url=ends.EXTENSION, value=value)}
    return Sandbox(id="pod", sandboxer="shim", runtime=Runtime(name="r"), extensions=extensions)


def test_a_noted_end_is_read_as_it_was() -> None:
    assert ends.noted(sandbox(msgspec.json.encode(END))) == END


@pytest.mark.parametrize("value", [None, b"", b"{}", b"\xff", b'{"exit_status": "x"}'])
def test_what_cannot_be_read_is_no_note(value: bytes | None) -> None:
    assert ends.noted(sandbox(value)) is None
