"""The shim's own log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from atoll.shim import logfile
from atoll.shim.logfile import LogHandler


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, __file__, 1, text, (), None)


def test_a_record_is_one_line(tmp_path: Path) -> None:
    handler = LogHandler(str(tmp_path / "log"), "pod-1")
    handler.emit(record("two\nlines"))
    os.close(handler.fd)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("Z info pod-1 two\\nlines")


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "FILE_LIMIT_BYTES", 1000)
    handler = LogHandler(str(tmp_path / "log"), "p")
    for number in range(100):
        handler.emit(record(f"message {number}"))
    handler.emit(record("x" * 100_000))
    os.close(handler.fd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert (tmp_path / "log.1").stat().st_size <= 1000
    assert (tmp_path / "log").stat().st_size <= logfile.LINE_LIMIT_BYTES + 1


def test_a_fifo_without_a_reader_never_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    handler = LogHandler(str(path), "p")
    for _ in range(100):
        handler.emit(record("y" * 4000))
    assert os.read(handler.fd, 20)
    os.close(handler.fd)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="log"):
        LogHandler(str(tmp_path / "log"), "p")
