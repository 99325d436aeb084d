"""Addresses of controllers, as text."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.sandbox.address import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:///run/x.sock", Address(protocol="grpc", path="/run/x.sock")),
        ("/run/x.sock", Address(protocol="grpc", path="/run/x.sock")),
        ("/run/a+b/x", Address(protocol="grpc", path="/run/a+b/x")),
        ("grpc+unix:///run/x.sock", Address(protocol="grpc", path="/run/x.sock")),
        ("grpc+/run/x.sock", Address(protocol="grpc", path="/run/x.sock")),
        ("ttrpc+unix:///run/x.sock", Address(protocol="ttrpc", path="/run/x.sock")),
        ("ttrpc+vsock://3:1024", Address(protocol="ttrpc", cid=3, port=1024)),
        ("grpc+vsock://2:4294967295", Address(protocol="grpc", cid=2, port=4294967295)),
        ("vsock://1:1", Address(protocol="grpc", cid=1, port=1)),
    ],
)
def test_every_form_is_read(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert Address.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x.sock",
        "unix://x.sock",
        "unix://@abstract",
        "unix:///run/",
        "unix:///a\0b",
        "unix:///" + "x" * 108,
        "tcp://127.0.0.1:80",
        "http+unix:///x",
        "ttrpc+vsock://3",
        "ttrpc+vsock://3:",
        "ttrpc+vsock://-1:2",
        "ttrpc+vsock://a:2",
        "ttrpc+vsock://4294967296:2",
        "ttrpc+vsock://1:4294967296",
        "ttrpc+vsock://²:1",
        "+unix:///x",
    ],
)
def test_anything_else_is_refused_and_shown(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="address"):
        Address.parse(text)
