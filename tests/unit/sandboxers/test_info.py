"""What a record tells of itself in a verbose status."""

from __future__ import annotations

import json

import msgspec
import pytest

from atoll import errors
from atoll.oci.config import LinuxContainerResources
from atoll.sandbox.controller import Runtime, Sandbox, SandboxInfo, TypedAny
from atoll.sandbox.metadata import EXTENSION
from atoll.sandboxers.info import of_record


def sandbox(metadata: bytes | None = None, options: TypedAny | None = None) -> Sandbox:
    extensions = {} if metadata is None else {EXTENSION: TypedAny(type_url="metadata", value=metadata)}
    runtime = Runtime(name="io.containerd.atoll.v1", options=options)
    return Sandbox(id="one", sandboxer="shim", runtime=runtime, labels={"a": "b"}, extensions=extensions)


def told(info: SandboxInfo, of: Sandbox) -> dict[str, object]:
    return json.loads(msgspec.structs.replace(info, **of_record(of)).encode()["info"])


def test_metadata_of_the_store_is_told_as_it_is() -> None:
    inner = {"ID": "one", "RuntimeHandler": "atoll", "CNIResult": {"Interfaces": {"eth0": {}}}}
    document = {"Version": "v1", "Metadata": inner}
    found = told(SandboxInfo(), sandbox(json.dumps(document).encode()))
    assert found["sandboxMetadata"] == document
    assert (found["cniResult"], found["runtimeHandler"]) == ({"Interfaces": {"eth0": {}}}, "atoll")
    assert (found["labels"], found["runtimeType"]) == ({"a": "b"}, "io.containerd.atoll.v1")


@pytest.mark.parametrize("metadata", [None, b"{", b"[]", b'{"Metadata": 7}'])
def test_no_metadata_and_broken_metadata_do_not_break_the_status(metadata: bytes | None) -> None:
    found = told(SandboxInfo(), sandbox(metadata))
    assert (found["cniResult"], found["runtimeHandler"]) == (None, "")


def test_options_are_told_with_their_type() -> None:
    found = told(SandboxInfo(), sandbox(options=TypedAny(type_url="some.Options", value=b"\x01\x02")))
    assert found["runtimeOptions"] == {"type_url": "some.Options", "value": "AQI="}


def test_resources_are_told_where_they_are_known() -> None:
    assert not {"overhead", "resources"} & set(told(SandboxInfo(), sandbox()))
    found = told(SandboxInfo(resources=LinuxContainerResources(cpu_shares=2)), sandbox())
    assert found["resources"] == {"cpu_shares": 2}


def test_an_info_is_read_back_as_it_was_told() -> None:
    info = SandboxInfo(pid=7, process_status="paused", runtime_spec=msgspec.Raw(b'{"a":1}'), containers=("x",))
    assert SandboxInfo.decode(info.encode()) == info
    assert SandboxInfo.decode({}) == SandboxInfo()
    with pytest.raises(errors.DataLoss):
        SandboxInfo.decode({"info": "{"})
