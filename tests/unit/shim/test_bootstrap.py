"""The `start` call of every generation of containerd."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as pb
from atoll.shim import bootstrap
from atoll.shim.bootstrap import Flags

OPTIONS = runc_pb2.Options(binary_name="crun", systemd_cgroup=True)
FLAGS = Flags(namespace="k8s.io", id="abc", address="/run/containerd/containerd.sock", action="start")


def packed(prefix: str = "") -> AnyMessage:
    return AnyMessage(type_url=f"{prefix}containerd.runc.v1.Options", value=OPTIONS.SerializeToString())


def test_go_style_flags() -> None:
    words = ["-namespace", "n", "--id=x", "-address", "/a", "-publish-binary", "/b", "-debug", "start"]
    assert bootstrap.parse_flags(words) == Flags(
        namespace="n", id="x", address="/a", publish_binary="/b", debug=True, action="start"
    )
    assert bootstrap.parse_flags(["-v"]).action == "version"
    assert bootstrap.parse_flags(["-debug=false", "-info"]) == Flags(action="info")


@pytest.mark.parametrize("words", [["-id"], ["-what", "x"], ["start", "delete"]])
def test_bad_flags(words: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        bootstrap.parse_flags(words)


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_bootstrap_params(prefix: str) -> None:
    params = pb.BootstrapParams(
        instance_id="abc",
        namespace="k8s.io",
        log_level=pb.LOG_LEVEL_DEBUG,
        containerd_ttrpc_address="/t",
        containerd_grpc_address="/g",
        socket_dir="/s",
        extensions=[pb.Extension(value=packed(prefix))],
    )
    told = bootstrap.read(FLAGS, params.SerializeToString(), {})
    assert (told.form, told.ttrpc_address, told.grpc_address, told.socket_dir) == ("protobuf", "/t", "/g", "/s")
    assert told.options == OPTIONS
    assert told.debug


def test_an_old_any_is_not_taken_for_params() -> None:
    stdin = packed().SerializeToString()
    assert pb.BootstrapParams.FromString(stdin).instance_id, "the trap: it parses"
    environment = {"TTRPC_ADDRESS": "/t", "GRPC_ADDRESS": "/g", "MAX_SHIM_VERSION": "2"}
    told = bootstrap.read(FLAGS, stdin, environment)
    assert (told.form, told.ttrpc_address, told.grpc_address) == ("json", "/t", "/g")
    assert told.options == OPTIONS


def test_the_oldest_daemon_says_nothing() -> None:
    told = bootstrap.read(FLAGS, b"", {})
    assert (told.form, told.grpc_address, told.options) == ("address", FLAGS.address, runc_pb2.Options())


@pytest.mark.parametrize("stdin", [b"\xff\xff\xff", b"\x0a\xff"])
def test_garbage_is_refused(stdin: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        bootstrap.read(FLAGS, stdin, {})


def test_foreign_options_are_ignored() -> None:
    stdin = AnyMessage(type_url="example.v1.Options", value=b"\xff").SerializeToString()
    assert bootstrap.read(FLAGS, stdin, {}).options == runc_pb2.Options()


def test_answers() -> None:
    assert bootstrap.answer("address", "unix:///s") == b"unix:///s"
    assert json.loads(bootstrap.answer("json", "unix:///s")) == {
        "version": 3,
        "address": "unix:///s",
        "protocol": "ttrpc",
    }
    result = pb.BootstrapResult.FromString(bootstrap.answer("protobuf", "unix:///s"))
    assert (result.version, result.address, result.protocol) == (3, "unix:///s", "ttrpc")
