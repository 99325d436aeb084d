"""Targets of streams: what each URI means, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import errors
from atoll.shim.stdio.request import (
    Binary,
    Cri,
    Fifo,
    File,
    Null,
    Stream,
    Target,
    cri_uri,
    parse_target,
    stream_uri,
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", Null()),
        ("/run/io/c-stdout", Fifo(Path("/run/io/c-stdout"))),
        ("/run/io/a?b#c", Fifo(Path("/run/io/a?b#c"))),
        ("fifo:///run/io/c-stdout", Fifo(Path("/run/io/c-stdout"))),
        ("file:///var/log/a%20b", File(Path("/var/log/a b"))),
        ("binary:///bin/logger", Binary(Path("/bin/logger"), (), False)),
        ("binary-v2:///bin/logger?k=v&flag=", Binary(Path("/bin/logger"), ("k", "v", "flag", ""), True)),
        ("cri:", Cri(None, 16384, "p-stdout", False)),
        ("cri:///log/main/0.log?below=2", Cri(Path("/log/main/0.log"), 16384, "p-stdout", False, 2)),
        ("cri:///l/0.log", Cri(Path("/l/0.log"), 16384, "p-stdout", False)),
        ("cri:///l/0.log?max_line=0&streaming_id=x", Cri(Path("/l/0.log"), 0, "x", False)),
        ("cri:?stdin_once=1", Cri(None, 16384, "p-stdout", True)),
        ("ttrpc+unix:///run/s.sock?streaming_id=e-stdout", Stream("e-stdout", False)),
        ("grpc+vsock://3:1024?streaming_id=e-stdout", Stream("e-stdout", False)),
    ],
)
def test_uri_names_its_target(uri: str, expected: Target) -> None:
    assert parse_target(uri, stream="stdout", process="p") == expected


@pytest.mark.parametrize(
    "uri",
    [
        "relative/path",
        "file://relative",
        "file:///var/log/../../etc/passwd",
        "file:///var/log/%2e%2e/x",
        "file:///",
        "file:///folder/",
        "cri:relative",
        "cri:///l?max_line=many",
        "cri:///l?below=0",
        "cri:///l/0.log?below=3",
        "binary:",
        "http://example.com/x",
        "ttrpc+unix:///run/s.sock",
        "/run/a\0b",
        "file:///run/a%00b",
        "file://[::1",
        "/run/../etc/shadow",
    ],
)
def test_bad_uri_is_refused_by_name(uri: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="stdout"):
        parse_target(uri, stream="stdout", process="p")


@pytest.mark.parametrize("path", ["/l/0.log", "/l/a b?c#d%41.log", "/ü/0.log"])
def test_cri_uri_round_trip(path: str) -> None:
    uri = cri_uri(Path(path), max_line=100, stdin_once=True)
    assert parse_target(uri, stream="stdin", process="p") == Cri(Path(path), 100, "p-stdin", True)


def test_uris_without_options() -> None:
    assert parse_target(cri_uri(), stream="stdin", process="p") == Cri(None, 16384, "p-stdin", False)
    for address in ("/run/a.sock", "unix:///run/a.sock"):
        assert parse_target(stream_uri(address, "e 1-stdin"), stream="stdin", process="p") == Stream("e 1-stdin", False)
