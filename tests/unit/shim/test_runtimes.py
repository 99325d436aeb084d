"""The runtime options of a handler, in both forms that containerd has for them."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as pb
from atoll.api import containerd_runtimeoptions_v1_pb2 as runtimeoptions_pb2
from atoll.shim import bootstrap, runtimes
from atoll.shim.bootstrap import Flags

TABLE = b"BinaryName = 'crun'\nRoot = '/run/x'\nSystemdCgroup = true\n"
WANTED = runc_pb2.Options(binary_name="crun", root="/run/x", systemd_cgroup=True)


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def table(text: bytes) -> AnyMessage:
    return packed(runtimeoptions_pb2.Options(config_body=text))


def test_both_forms_say_the_same() -> None:
    assert runtimes.options(packed(WANTED)) == WANTED
    assert runtimes.options(table(TABLE)) == WANTED
    assert runtimes.options(table(b"")) == runc_pb2.Options()
    assert runtimes.options(AnyMessage()) == runc_pb2.Options()


def test_a_table_comes_with_the_start_call_too() -> None:
    params = pb.BootstrapParams(instance_id="i", extensions=[pb.Extension(value=table(TABLE))])
    told = bootstrap.read(Flags(namespace="n", id="i"), params.SerializeToString(), {})
    assert told.options == WANTED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"BinaryNam = 'x'", "unknown key 'BinaryNam'.*binaryname"),
        (b"BinaryName = 7", "runtime options"),
        (b"SystemdCgroup = 'yes'", "runtime options"),
        (b"BinaryName =", "runtime options"),
        (b"\xff", "runtime options"),
    ],
)
def test_a_table_that_says_nothing_known_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=words):
        runtimes.options(table(text))
