"""Every form in which shims tell where they answer, and the files that keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as wire
from atoll.runtime.bootstrap import FILE, Bootstrap

UNIX = "unix:///run/containerd/s/0123"


def protobuf(version: int, address: str, protocol: str) -> bytes:
    return wire.BootstrapResult(version=version, address=address, protocol=protocol).SerializeToString()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(b"unix:///run/s/1\n", Bootstrap(address="unix:///run/s/1"), id="an address"),
        pytest.param(b"/containerd-shim/ns/id/shim.sock\0", None, id="an address with a zero byte"),
        pytest.param(
            b"/containerd-shim/ns/id/shim.sock",
            Bootstrap(version=2, address="/containerd-shim/ns/id/shim.sock"),
            id="an abstract socket",
        ),
        pytest.param(
            b'{"version":3,"address":"unix:///x","protocol":"ttrpc"}\n',
            Bootstrap(version=3, address="unix:///x", protocol="ttrpc"),
            id="JSON",
        ),
        pytest.param(
            b'{"Version":2,"ADDRESS":"/x.sock","Protocol":"grpc"}',
            Bootstrap(version=2, address="/x.sock", protocol="grpc"),
            id="JSON in Go's capitals",
        ),
        pytest.param(b'{"version":3,"address":"/x"}', Bootstrap(version=3, address="/x"), id="no protocol"),
        pytest.param(
            b'{"address":"unix:///x","protocol":"ttrpc"}',
            Bootstrap(version=2, address='{"address":"unix:///x","protocol":"ttrpc"}'),
            id="JSON without a version is an address",
        ),
        pytest.param(
            b'{"version":1,"address":"unix:///x"}',
            Bootstrap(version=2, address='{"version":1,"address":"unix:///x"}'),
            id="JSON of version 1 is an address",
        ),
        pytest.param(
            protobuf(3, UNIX, "ttrpc"), Bootstrap(version=3, address=UNIX, protocol="ttrpc"), id="protobuf"
        ),
        pytest.param(
            protobuf(3, UNIX, "ttrpc") + b"\x2a\x08\x0a\x01a\x12\x03b\x0a\x0a",
            Bootstrap(version=3, address=UNIX, protocol="ttrpc"),
            id="protobuf that ends in a line break",
        ),
    ],
)  # fmt: skip
def test_a_shim_tells_where_it_answers(answer: bytes, expected: Bootstrap | None) -> None:
    if expected is None:
        with pytest.raises(errors.Unknown):
            Bootstrap.parse(answer)
    else:
        assert Bootstrap.parse(answer) == expected


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", errors.Unavailable),
        (b" \n", errors.Unavailable),
        (b'{"version":4,"address":"unix:///x","protocol":"ttrpc"}', errors.Unimplemented),
        (protobuf(4, UNIX, "ttrpc"), errors.Unimplemented),
        (protobuf(1, UNIX, "ttrpc"), errors.Unimplemented),
        (b'{"version":3,"protocol":"ttrpc"}', errors.Unknown),
        (b"panic: runtime error\ngoroutine 1 [running]:\n", errors.Unknown),
        (b"\xff\xfe\x00", errors.Unknown),
        (b"x" * 5000, errors.Unknown),
    ],
)
def test_what_is_no_answer_is_told(answer: bytes, kind: type[errors.AtollError]) -> None:
    with pytest.raises(kind):
        Bootstrap.parse(answer)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_address_or_one_of_our_errors(answer: bytes) -> None:
    try:
        result = Bootstrap.parse(answer)
    except errors.AtollError:
        return
    assert result.address
    assert result.version in (2, 3)


def test_an_endpoint_is_protocol_and_address() -> None:
    told = Bootstrap(version=3, address="unix:///a+b", protocol="ttrpc")
    assert told.endpoint == "ttrpc+unix:///a+b"
    assert Bootstrap.from_endpoint(told.endpoint, 3) == told


@pytest.mark.parametrize("endpoint", ["", "unix:///x", "+unix:///x", "ttrpc+"])
def test_an_endpoint_without_both_is_refused(endpoint: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        Bootstrap.from_endpoint(endpoint, 3)


def test_the_file_keeps_it(tmp_path: Path) -> None:
    told = Bootstrap(version=3, address=UNIX)
    told.store(tmp_path)
    assert Bootstrap.load(tmp_path) == told
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_of_containerd_is_understood(tmp_path: Path) -> None:
    text = '{"version":3,"address":"unix:///x","protocol":"ttrpc","capabilities":[0],"metadata":{"a":"b"}}'
    (tmp_path / FILE).write_text(text)
    assert Bootstrap.load(tmp_path) == Bootstrap(version=3, address="unix:///x")


def test_the_file_of_an_old_shim_is_understood(tmp_path: Path) -> None:
    (tmp_path / "address").write_text("unix:///old\n")
    assert Bootstrap.load(tmp_path) == Bootstrap(version=2, address="unix:///old", protocol="ttrpc")


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        Bootstrap.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version":3}', '{"version":"3","address":"x"}'])
def test_a_broken_file_is_data_loss(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(errors.DataLoss, match=FILE):
        Bootstrap.load(tmp_path)
