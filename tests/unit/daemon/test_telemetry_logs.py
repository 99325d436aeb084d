"""One JSON object a line, one line an operation."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from atoll.daemon import telemetry_logs
from atoll.engine.phases import TOLD, Stories

POD = "ab" * 32


def line(record: logging.LogRecord) -> dict[str, object]:
    text = telemetry_logs.JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_each_operation_is_one_line_with_its_ids_and_its_outcome(caplog: pytest.LogCaptureFixture) -> None:
    stories = Stories()
    stories.tap(telemetry_logs.write)
    with caplog.at_level(logging.INFO, "atoll.operations"):
        with stories.passing(POD, "exec", "c" * 64) as story:
            story.outcome = "timed out"
        with pytest.raises(OSError, match="no registry"), stories.passing("", "pull", "registry.example/image"):
            raise OSError("no registry")
    ran, pulled = (line(one) for one in caplog.records)
    assert {key: ran[key] for key in ("operation", "pod", "container", "outcome", "level")} == {
        "operation": "exec",
        "pod": POD,
        "container": "c" * 64,
        "outcome": "timed out",
        "level": "info",
    }
    assert isinstance(ran["duration_ms"], float)
    assert (pulled["image"], pulled["outcome"], pulled["error"]) == ("registry.example/image", "failed", "no registry")
    assert (pulled["level"], "pod" in pulled) == ("warning", False)


def test_what_an_operation_tells_is_not_told_again() -> None:
    told = logging.makeLogRecord({"msg": "pod run", **TOLD})
    assert [telemetry_logs.is_news(one) for one in (told, logging.makeLogRecord({"msg": "news"}))] == [False, True]


def test_a_record_has_its_message_and_its_traceback() -> None:
    try:
        raise ValueError("of its own\nwith lines")
    except ValueError:
        record = logging.LogRecord("atoll.x", logging.ERROR, "x.py", 1, "failed: %s", ("why",), sys.exc_info())
    found = line(record)
    assert (found["message"], found["level"], found["logger"]) == ("failed: why", "error", "atoll.x")
    assert "ValueError: of its own" in str(found["traceback"])
    assert str(found["time"]).endswith("+00:00")
