"""Requests to upgrade: what is chosen, and how each wrong one is answered."""

from __future__ import annotations

import pytest

from atoll.streaming import command, forward, handshake
from atoll.streaming.handshake import Head, Refused


def head(method: str = "POST", **headers: str) -> Head:
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Head(method=method, path="/exec/x", headers=fields, rest=b"")


def spdy(protocols: str, **headers: str) -> Head:
    return head(connection="keep-alive, Upgrade", upgrade="SPDY/3.1", x_stream_protocol_version=protocols, **headers)


def websocket(protocols: str = "", **changes: str) -> Head:
    fields = {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==", "sec_websocket_version": "13", **changes}
    if protocols:
        fields["sec_websocket_protocol"] = protocols
    return head("GET", connection="Upgrade", upgrade="websocket", **fields)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("v4.channel.k8s.io, v3.channel.k8s.io", "v4.channel.k8s.io"),
        ("v9.channel.k8s.io,v2.channel.k8s.io", "v2.channel.k8s.io"),
        ("v5.channel.k8s.io", "v5.channel.k8s.io"),
        ("channel.k8s.io", "channel.k8s.io"),
    ],
)
def test_the_first_protocol_of_the_client_that_is_known_is_spoken(asked: str, chosen: str) -> None:
    assert handshake.spdy_protocol(spdy(asked), command.SPDY_PROTOCOLS) == chosen


def test_a_client_that_names_none_speaks_the_first_version() -> None:
    asked = head(connection="Upgrade", upgrade="SPDY/3.1")
    assert handshake.spdy_protocol(asked, command.SPDY_PROTOCOLS) == "channel.k8s.io"
    assert handshake.spdy_protocol(asked, forward.SPDY_PROTOCOLS) == "portforward.k8s.io"


def test_unknown_protocols_are_forbidden_and_told_what_is_known() -> None:
    with pytest.raises(Refused) as refusal:
        handshake.spdy_protocol(spdy("v9.channel.k8s.io"), command.SPDY_PROTOCOLS)
    assert refusal.value.status == 403
    assert ("X-Accepted-Stream-Protocol-Versions", "v4.channel.k8s.io") in refusal.value.headers


@pytest.mark.parametrize("fields", [{}, {"upgrade": "SPDY/3.1"}, {"connection": "Upgrade", "upgrade": "SPDY/2"}])
def test_without_the_headers_of_an_upgrade_it_is_a_bad_request(fields: dict[str, str]) -> None:
    with pytest.raises(Refused) as refusal:
        handshake.spdy_protocol(head(**fields), command.SPDY_PROTOCOLS)
    assert refusal.value.status == 400


def test_a_websocket_without_a_subprotocol_is_accepted() -> None:
    assert handshake.websocket_protocol(websocket(), command.WEBSOCKET_PROTOCOLS) == ""
    assert handshake.websocket_protocol(websocket("x, v5.channel.k8s.io"), command.WEBSOCKET_PROTOCOLS).startswith("v5")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (websocket("chat"), 403),
        (websocket(sec_websocket_version="8"), 426),
        (websocket(sec_websocket_key=""), 400),
        (head("POST", connection="Upgrade", upgrade="websocket", sec_websocket_key="x"), 400),
    ],
)
def test_a_wrong_websocket_is_refused(asked: Head, status: int) -> None:
    with pytest.raises(Refused) as refusal:
        handshake.websocket_protocol(asked, command.WEBSOCKET_PROTOCOLS)
    assert refusal.value.status == status
