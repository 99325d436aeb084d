"""The keys that detach."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.cli.options import DETACH_KEYS
from atoll.cli.terminal import DetachKeys, detach_sequence

SEQUENCE = detach_sequence(DETACH_KEYS)


def typed(*chunks: bytes, sequence: bytes = SEQUENCE) -> tuple[bytes, bool]:
    keys, passed = DetachKeys(sequence), b""
    for chunk in chunks:
        part, is_over = keys.pass_on(chunk)
        passed += part
        if is_over:
            return passed, True
    return passed, False


def test_keys_have_the_bytes_that_a_terminal_sends() -> None:
    assert SEQUENCE == b"\x10\x11"
    assert detach_sequence("ctrl-a,d") == b"\x01d"
    assert detach_sequence("ctrl-@,ctrl-_,~") == b"\x00\x1f~"
    assert detach_sequence("") == b""


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pq", "ab", "ctrl-é", "é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="detach keys"):
        detach_sequence(text)


@pytest.mark.parametrize("chunks", [(b"ls\x10\x11rest",), (b"ls\x10", b"\x11rest"), (b"l", b"s", b"\x10", b"\x11")])
def test_the_keys_are_found_however_they_come(chunks: tuple[bytes, ...]) -> None:
    assert typed(*chunks) == (b"ls", True)


def test_what_only_begins_like_the_keys_is_passed_on_with_the_next_key() -> None:
    assert typed(b"a\x10") == (b"a", False)
    assert typed(b"a\x10", b"b") == (b"a\x10b", False)
    assert typed(b"\x10\x10\x11") == (b"\x10", True)


def test_without_keys_everything_is_passed_on() -> None:
    assert typed(b"\x10\x11", sequence=b"") == (b"\x10\x11", False)
