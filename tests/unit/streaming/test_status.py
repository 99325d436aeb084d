"""The end of a command in both of its forms."""

from __future__ import annotations

import json

from atoll.streaming import status
from atoll.streaming.status import End


def test_success() -> None:
    assert json.loads(status.as_json(End())) == {"metadata": {}, "status": "Success"}
    assert status.as_text(End()) == b""


def test_an_exit_code_is_a_cause() -> None:
    told = json.loads(status.as_json(End(exit_code=42)))
    assert told["status"] == "Failure"
    assert told["reason"] == "NonZeroExitCode"
    assert told["details"]["causes"] == [{"reason": "ExitCode", "message": "42"}]
    assert b"42" in status.as_text(End(exit_code=42))


def test_a_fault_is_an_internal_error_of_bounded_length() -> None:
    told = json.loads(status.as_json(End(fault="no such program")))
    assert (told["reason"], told["code"]) == ("InternalError", 500)
    assert "no such program" in told["message"]
    assert b"no such program" in status.as_text(End(fault="no such program"))
    assert len(status.as_json(End(fault="x" * 100_000))) < 3 * status.MAX_MESSAGE
