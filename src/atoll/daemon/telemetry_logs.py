"""The daemon's log: lines of text, or one JSON object a line, with one line for every operation."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

from atoll.engine.phases import OK, TOLD, Story

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS = "atoll_fields"
"""The attribute of a log record with what it has beside its message."""
NS_PER_MS = 1e6

log = logging.getLogger("atoll.operations")


class JsonFormatter(logging.Formatter):
    """An object a line: `time`, `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        more: dict[str, object] = getattr(record, FIELDS, {})
        fields |= more
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line says what no operation's line does."""
    return not any(hasattr(record, mark) for mark in TOLD)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the log of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT))
    if form == "json":
        handler.addFilter(is_news)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def write(story: Story) -> None:
    """One line for an operation that has ended: a warning where it failed."""
    is_pod = story.subject == story.pod_id
    fields: dict[str, object] = {"operation": story.operation}
    if story.pod_id:
        fields["pod"] = story.pod_id
        fields |= {} if is_pod else {"container": story.subject}
    else:
        fields["image"] = story.subject
    fields |= {"duration_ms": round(story.duration_ns / NS_PER_MS, 3), "outcome": story.outcome}
    if story.error:
        fields["error"] = story.error
    if story.parent is not None:
        fields["trace_id"] = f"{story.parent.trace_id:032x}"
    told = story.subject if not story.pod_id else story.subject[:13]
    level = logging.WARNING if story.error else logging.INFO
    ending = story.outcome if story.outcome != OK else "done"
    log.log(level, "%s %s: %s", story.operation, told, ending, extra={FIELDS: fields})
