"""The typed methods are those of the services, and gRPC's errors become ours."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import grpc
import grpc.aio
import pytest

from atoll import api, errors
from atoll.api import cri_runtime_v1_pb2
from atoll.client import wire

SOCKET = Path("/run/x.sock")
OWN = [path.stem for path in Path(api.__file__).parent.glob("atoll_*_v1_pb2.py")] + ["atoll_v1_pb2"]
METHODS = [value for value in vars(wire).values() if isinstance(value, wire.Method)]
FILES = [cri_runtime_v1_pb2, *(import_module(f"atoll.api.{name}") for name in OWN)]
SERVICES = {service.full_name: service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path)
def test_method_is_that_of_its_service(method: wire.Method) -> None:
    described = SERVICES[method.service].methods_by_name[method.name]
    assert described.input_type is method.request.DESCRIPTOR
    assert described.output_type is method.response.DESCRIPTOR


def test_every_method_of_our_own_service_has_its_row() -> None:
    rows = {method.name for method in METHODS if method.service == "atoll.v1.Runtime"}
    assert rows == set(SERVICES["atoll.v1.Runtime"].methods_by_name)


def failed(code: grpc.StatusCode, details: str) -> errors.AtollError:
    status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    return wire.from_rpc_error(status, SOCKET, "late")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_status_keeps_kind_and_text(code: grpc.StatusCode) -> None:
    error = failed(code, "pod x: failed, connection refused, by what it asked for")
    assert (error.code, error.message) == (code.value[0], "pod x: failed, connection refused, by what it asked for")


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("Stream removed (Socket closed)", "went away during the call"),
        ("failed to connect to all addresses; last error: ...", "no daemon answers"),
        ("recvmsg:Connection reset by peer", "went away during the call"),
    ],
)
def test_broken_transport_is_unavailable_and_says_what_to_do(details: str, words: str) -> None:
    error = failed(grpc.StatusCode.UNAVAILABLE, details)
    assert isinstance(error, errors.Unavailable)
    assert words in error.message
    assert str(SOCKET) in error.message
    assert "atoll serve" in error.message


def test_own_deadline_has_the_text_of_the_caller() -> None:
    assert failed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded").message == "late"


def test_unknown_method_says_that_the_runtime_is_another() -> None:
    error = failed(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    assert isinstance(error, errors.Unimplemented)
    assert "is it an atoll" in error.message


async def test_no_socket_is_unavailable_and_nothing_hangs(tmp_path: Path) -> None:
    connection = wire.Wire(tmp_path / "none.sock")
    with pytest.raises(errors.Unavailable, match="no daemon answers"):
        await connection.call(wire.VERSION, cri_runtime_v1_pb2.VersionRequest(), timeout_s=5)
    with pytest.raises(errors.Unavailable, match=r"does not speak gRPC"):
        await connection.ready(within=0.05)
    await connection.aclose()
    with pytest.raises(errors.Unavailable, match="client is closed"):
        await connection.call(wire.VERSION, cri_runtime_v1_pb2.VersionRequest(), timeout_s=5)
