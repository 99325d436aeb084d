from __future__ import annotations

from dataclasses import replace

import pytest

from atoll import errors
from atoll.linux.host import HostFacts
from atoll.oci.config import ProfileType, SecurityProfile, SELinuxOption
from atoll.oci.security import Labels, legacy_profile, relabel, selinux_labels


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("", None),
        ("runtime/default", SecurityProfile(profile_type=ProfileType.RUNTIME_DEFAULT)),
        ("docker/default", SecurityProfile(profile_type=ProfileType.RUNTIME_DEFAULT)),
        ("unconfined", SecurityProfile(profile_type=ProfileType.UNCONFINED)),
        ("localhost//a/b", SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="/a/b")),
    ],
)
def test_legacy_notation_of_profiles(text: str, profile: SecurityProfile | None) -> None:
    assert legacy_profile(text, field="x") == profile


@pytest.mark.parametrize("text", ["default", "localhost/", "local/x"])
def test_another_notation_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="the_field"):
        legacy_profile(text, field="the_field")


@pytest.mark.parametrize(
    ("asked", "process", "mount"),
    [
        (
            {"level": "s0:c1,c2"},
            "system_u:system_r:container_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0:c1,c2",
        ),
        (
            {"user": "u", "role": "r", "type": "spc_t"},
            "u:r:spc_t:s0",
            "system_u:object_r:container_file_t:s0",
        ),
    ],
)
def test_selinux_labels(host: HostFacts, asked: dict[str, str], process: str, mount: str) -> None:
    options = SELinuxOption(**asked)
    assert selinux_labels(options, replace(host, selinux=True)) == Labels(process=process, mount=mount)
    with pytest.raises(errors.FailedPrecondition, match="SELinux"):
        selinux_labels(options, host)
    assert selinux_labels(SELinuxOption(), host) == selinux_labels(None, host) == Labels()


@pytest.mark.parametrize("asked", [{"level": "c1"}, {"type": "a b"}, {"user": "a:b"}])
def test_a_malformed_label_is_refused(host: HostFacts, asked: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument, match="selinux_options"):
        selinux_labels(SELinuxOption(**asked), host)


@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/var"])
def test_a_folder_of_the_host_is_not_relabeled(path: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="selinux_relabel"):
        relabel(path, "x")
