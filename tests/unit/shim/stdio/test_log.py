"""CRI log lines: the format, by table and by property."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.shim.stdio.log import UNLIMITED_PIECE_BYTES, Clock, LineFormatter, LogFile, LogSink

STAMP = b"2016-10-06T00:17:09.669794202Z"


def entries(lines: bytes, stream: bytes = b"stdout") -> list[tuple[bytes, bytes]]:
    """Tag and content of every line."""
    found: list[tuple[bytes, bytes]] = []
    assert not lines or lines.endswith(b"\n")
    for line in lines.split(b"\n")[:-1]:
        stamp, name, tag, content = line.split(b" ", 3)
        assert (stamp, name) == (STAMP, stream)
        found.append((tag, content))
    return found


def formatted(chunks: list[bytes], max_line: int, *, crlf: bool = False) -> list[tuple[bytes, bytes]]:
    formatter = LineFormatter("stdout", max_line, crlf=crlf)
    written = b"".join(formatter.feed(chunk, STAMP) for chunk in chunks)
    return entries(written + formatter.finish(STAMP))


A, B = b"a" * 8, b"b" * 8


@pytest.mark.parametrize(
    ("text", "max_line", "expected"),
    [
        (b"", 8, []),
        (b"\n", 8, [(b"F", b"")]),
        (b"\n\n", 8, [(b"F", b""), (b"F", b"")]),
        (b"one\ntwo\n", 8, [(b"F", b"one"), (b"F", b"two")]),
        (b"one\ntwo", 8, [(b"F", b"one"), (b"P", b"two")]),
        (A + b"\n", 8, [(b"F", A)]),
        (A, 8, [(b"P", A)]),
        (A + b"b\n", 8, [(b"P", A), (b"F", b"b")]),
        (A + b"b", 8, [(b"P", A), (b"P", b"b")]),
        (A + B + b"\n", 8, [(b"P", A), (b"F", B)]),
        (A + B + b"c\n", 8, [(b"P", A), (b"P", B), (b"F", b"c")]),
        (A + B, 8, [(b"P", A), (b"P", B)]),
        (b"x\n" + A + B + b"\ny\n", 8, [(b"F", b"x"), (b"P", A), (b"F", B), (b"F", b"y")]),
        (b"dos\r\n\r\n", 8, [(b"F", b"dos\r"), (b"F", b"\r")]),
        (A + b"\r\n", 8, [(b"P", A), (b"F", b"\r")]),
        (A + b"\r", 8, [(b"P", A), (b"P", b"\r")]),
        (A + B + b"\n", 0, [(b"F", A + B)]),
        (A + B + b"\n", -1, [(b"F", A + B)]),
        (b"a\0\xff b\n", 8, [(b"F", b"a\0\xff b")]),
    ],
)
def test_output_becomes_lines(text: bytes, max_line: int, expected: list[tuple[bytes, bytes]]) -> None:
    assert formatted([text], max_line) == expected
    assert formatted([bytes([byte]) for byte in text], max_line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"dos\r\n\r\n", [(b"F", b"dos"), (b"F", b"")]),
        (A + b"\r\n", [(b"F", A)]),
        (A + b"\r", [(b"P", A), (b"P", b"\r")]),
        (A + b"\rb\n", [(b"P", A), (b"F", b"\rb")]),
        (b"a\r\r\n", [(b"F", b"a\r")]),
        (b"a\rb\n", [(b"F", b"a\rb")]),
    ],
)
def test_a_terminals_line_ends_are_no_content(text: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert formatted([text], 8, crlf=True) == expected
    assert formatted([bytes([byte]) for byte in text], 8, crlf=True) == expected


def test_a_line_without_limit_is_held_in_bounded_pieces() -> None:
    formatter = LineFormatter("stdout", 0)
    piece = b"x" * (UNLIMITED_PIECE_BYTES // 4)
    written = b"".join(formatter.feed(piece, STAMP) for _ in range(10))
    assert formatter.carried_bytes <= UNLIMITED_PIECE_BYTES
    assert {tag for tag, _ in entries(written)} == {b"P"}


@st.composite
def cut_output(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    pieces = st.one_of(
        st.sampled_from([b"\n", b"\r", b"\r\n", b" F ", b"stdout P "]),
        st.binary(max_size=6),
        st.integers(0, 40).map(lambda n: b"z" * n),
    )
    text = b"".join(draw(st.lists(pieces, max_size=30)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_output(), st.integers(-1, 20), st.booleans())
def test_contents_are_the_input_however_it_is_cut(cut: tuple[bytes, list[bytes]], max_line: int, crlf: bool) -> None:
    text, chunks = cut
    found = formatted(chunks, max_line, crlf=crlf)
    assert found == formatted([text], max_line, crlf=crlf)
    joined = b"".join(content + (b"\n" if tag == b"F" else b"") for tag, content in found)
    assert joined == (text.replace(b"\r\n", b"\n") if crlf else text)
    limit = max_line if max_line > 0 else UNLIMITED_PIECE_BYTES
    assert all(len(content) <= limit for _, content in found)
    # A piece before the rest of its line is full.
    assert all(len(content) == limit for tag, content in found[:-1] if tag == b"P")


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "now_ns", "expected"),
    [
        ("UTC0", 1475713029_669794202, b"2016-10-06T00:17:09.669794202Z"),
        ("UTC0", 1475713029_500000000, b"2016-10-06T00:17:09.5Z"),
        ("UTC0", 1475713029_000000000, b"2016-10-06T00:17:09Z"),
        ("UTC0", 1475713029_000000001, b"2016-10-06T00:17:09.000000001Z"),
        ("IST-5:30", 1475713029_100000000, b"2016-10-06T05:47:09.1+05:30"),
        ("NST3:30", 1475713029_100000000, b"2016-10-05T20:47:09.1-03:30"),
        ("EST5", 1475713029_100000000, b"2016-10-05T19:17:09.1-05:00"),
    ],
)
def test_time_is_local_with_offset_as_go_prints_it(
    zone: pytest.MonkeyPatch, name: str, now_ns: int, expected: bytes
) -> None:
    zone.setenv("TZ", name)
    time.tzset()
    clock = Clock(lambda: now_ns)
    assert clock.stamp() == expected
    assert clock.stamp() == expected


def test_time_goes_on_across_seconds(zone: pytest.MonkeyPatch) -> None:
    zone.setenv("TZ", "UTC0")
    time.tzset()
    moments = iter([59_999999999, 60_000000000, 59_999999999])
    clock = Clock(lambda: next(moments))
    stamps = [clock.stamp() for _ in range(3)]
    assert stamps == [b"1970-01-01T00:00:59.999999999Z", b"1970-01-01T00:01:00Z", b"1970-01-01T00:00:59.999999999Z"]


def test_log_file_is_appended_to_with_its_modes(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "container" / "0.log"
    first = LogFile(path)
    first.write(b"one\n")
    first.close()
    second = LogFile(path)
    second.write(b"two\n")
    second.close()
    second.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert path.parent.stat().st_mode & 0o7777 == 0o755


def test_reopen_after_a_rename_splits_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = LogFile(path)
    sink = LogSink(log, "stdout", 16384, Clock())
    sink.write(b"one\nhalf")
    path.rename(tmp_path / "0.log.old")
    sink.write(b" way\n")
    log.reopen()
    sink.write(b"three\nfo")
    log.reopen(tmp_path / "other.log")
    sink.write(b"ur\n")
    sink.end()
    log.close()
    contents = [
        [line.split(b" ", 3)[3] for line in (tmp_path / name).read_bytes().splitlines()]
        for name in ("0.log.old", "0.log", "other.log")
    ]
    assert contents == [[b"one", b"half way"], [b"three"], [b"four"]]


def test_reopen_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "0.log")
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.FailedPrecondition, match="folder"):
        log.reopen(tmp_path / "folder")
    log.write(b"still here\n")
    log.close()
    assert (tmp_path / "0.log").read_bytes() == b"still here\n"
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        log.reopen()


def test_log_path_must_be_a_regular_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("link", "symbolic link"), ("fifo", "not a regular|No such device"), ("victim/x", "victim")):
        with pytest.raises(errors.FailedPrecondition, match=reason):
            LogFile(tmp_path / name)
    assert victim.read_bytes() == b""


def test_a_refused_write_is_dropped_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "0.log"
    log = LogFile(path)
    broken = os.open(path, os.O_RDONLY)
    os.dup2(broken, log._fd or -1)  # writes fail with EBADF from now on
    os.close(broken)
    log.write(b"lost\n")
    log.write(b"lost too\n")
    assert log.dropped_bytes == 14
    assert len([record for record in caplog.records if os.strerror(errno.EBADF) in record.message]) == 1
    log._retry_at = 0.0
    log.write(b"back\n")
    log.close()
    mark, back = path.read_bytes().splitlines()
    assert mark.split(b" ", 1)[1] == b"stderr F atoll: 2 lines were lost: bad file descriptor"
    assert back == b"back"
    assert log.dropped_bytes == 14
    assert "2 were lost, 14 bytes in all" in caplog.text


def test_lines_lost_at_the_very_end_are_told_by_the_close(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = LogFile(path)
    broken = os.open(path, os.O_RDONLY)
    os.dup2(broken, log._fd or -1)
    os.close(broken)
    log.write(b"lost\n")
    log._retry_at = 0.0
    log.close()
    assert path.read_bytes().endswith(b" stderr F atoll: 1 lines were lost: bad file descriptor\n")


def test_no_link_is_followed_below_the_pods_folder(tmp_path: Path) -> None:
    """The folder itself may be behind one: that is the host's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pods").symlink_to(tmp_path / "elsewhere")
    file = LogFile(tmp_path / "pods/main/0.log", below=2)
    file.write(b"line\n")
    file.close()
    assert (tmp_path / "elsewhere/main/0.log").read_bytes() == b"line\n"
    (tmp_path / "target").mkdir()
    (tmp_path / "elsewhere/linked").symlink_to(tmp_path / "target")
    (tmp_path / "elsewhere/file").touch()
    for name, why in (("linked/0.log", "symbolic link"), ("linked/a/0.log", "symbolic link"), ("file/0.log", "Not a")):
        with pytest.raises(errors.FailedPrecondition, match=why):
            LogFile(tmp_path / "pods" / name, below=name.count("/") + 1)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_folder_that_became_a_link_is_not_written_below_after_a_rotation(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "main/0.log", below=2)
    (tmp_path / "target").mkdir()
    (tmp_path / "main").rename(tmp_path / "moved")
    (tmp_path / "main").symlink_to(tmp_path / "target")
    with pytest.raises(errors.FailedPrecondition, match="symbolic link"):
        file.reopen()
    file.write(b"kept\n")
    file.close()
    assert (tmp_path / "moved/0.log").read_bytes() == b"kept\n"
    assert list((tmp_path / "target").iterdir()) == []
