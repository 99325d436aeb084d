"""What a pause container is asked to be, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atoll import errors
from atoll.api.codec import to_message
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.oci.config import NamespaceMode, NamespaceOption
from atoll.sandbox.annotations import CGROUP as CGROUP_ANNOTATION
from atoll.sandbox.annotations import FILES as FILES_ANNOTATION
from atoll.sandbox.config import LinuxPodConfig, LinuxSandboxSecurityContext, PodConfig, PodMetadata
from atoll.sandbox.controller import CreateOptions, Runtime, Sandbox, TypedAny
from atoll.sandboxers import pause
from atoll.shim import records
from atoll.shim.records import SandboxExit
from atoll.snapshot.mount import Mount

FILES = Path("/run/pods/one/files")


def sandbox(extensions: dict[str, TypedAny] | None = None) -> Sandbox:
    return Sandbox(id="one", sandboxer="podsandbox", runtime=Runtime(name="io.test.v1"), extensions=extensions or {})


def config(network: NamespaceMode = NamespaceMode.NODE, ipc: NamespaceMode = NamespaceMode.POD) -> PodConfig:
    security = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(network=network, ipc=ipc))
    return PodConfig(
        metadata=PodMetadata(name="web", uid="u", namespace="shop"), linux=LinuxPodConfig(security_context=security)
    )


def options(
    pod: PodConfig,
    *,
    netns_path: str = "",
    annotations: dict[str, str] | None = None,
    rootfs: tuple[Mount, ...] = (),
) -> CreateOptions:
    value = TypedAny(
        type_url="runtime.v1.PodSandboxConfig", value=to_message(pod, PodSandboxConfig()).SerializeToString()
    )
    return CreateOptions(options=value, netns_path=netns_path, annotations=annotations or {}, rootfs=rootfs)


def record(pod: PodConfig | None = None, **changes: object) -> pause.PauseRecord:
    made = pause.record_of(sandbox(), options(pod or config()), FILES)
    return msgspec.structs.replace(made, **changes)


def test_a_record_is_what_was_asked_for() -> None:
    made = pause.record_of(sandbox(), options(config()), FILES)
    assert (made.config, made.netns, made.files, made.runtime) == (config(), "", str(FILES), "io.test.v1")
    assert (made.process, made.created_at, made.ended) == (None, None, None)


def test_annotations_name_the_folder_and_the_cgroup() -> None:
    asked = options(config(), annotations={FILES_ANNOTATION: "/run/f", CGROUP_ANNOTATION: "/pods/one"})
    made = pause.record_of(sandbox(), asked, FILES)
    assert (made.files, made.cgroup_parent) == ("/run/f", "/pods/one")


def test_the_cgroup_of_the_config_goes_before_that_of_the_annotation() -> None:
    pod = msgspec.structs.replace(config(), linux=LinuxPodConfig(cgroup_parent="/kubepods/x"))
    asked = options(pod, netns_path="/run/netns/x", annotations={CGROUP_ANNOTATION: "/pods/one"})
    assert pause.record_of(sandbox(), asked, FILES).cgroup_parent == "/kubepods/x"


@pytest.mark.parametrize(
    "asked",
    [
        CreateOptions(options=TypedAny(type_url="some.Thing", value=b"")),
        CreateOptions(options=TypedAny(type_url="runtime.v1.PodSandboxConfig", value=b"\xff")),
        options(config(), netns_path="/run/netns/x"),
        options(config(NamespaceMode.POD)),
        options(config(NamespaceMode.POD), netns_path="relative"),
        options(config(NamespaceMode.POD), netns_path="/run/../etc/x"),
        options(config(), annotations={FILES_ANNOTATION: "/run/../../etc"}),
        options(config(), rootfs=(Mount(type="bind", source="/"),)),
    ],
    ids=["another type", "no protobuf", "netns of a host pod", "no netns", "relative", "dots", "files", "rootfs"],
)
def test_what_cannot_be_is_refused(asked: CreateOptions) -> None:
    with pytest.raises(errors.InvalidArgument):
        pause.record_of(sandbox(), asked, FILES)


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("", "/k8s.io/one"),
        ("/pods/one", "/pods/one/one"),
        ("/pods/one/", "/pods/one/one"),
        ("/kubepods.slice/kubepods-pod7.slice", "kubepods-pod7.slice:atoll:one"),
    ],
)
def test_the_pause_container_has_a_cgroup_of_its_own(parent: str, path: str) -> None:
    assert pause.cgroups_path("one", record(cgroup_parent=parent), "k8s.io") == path


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    made = record(
        pid=7, start_ticks=8, boot_id="b", created_at_ns=10**18, exit=SandboxExit(exit_status=1, exited_at_ns=5)
    )
    records.write(tmp_path / "pause.json", made)
    assert records.read(tmp_path / "pause.json", pause.PauseRecord) == made
