"""Containers under AppArmor: the default profile, none, one by name; needs a kernel that was booted with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.oci import apparmor
from tests.guest.conftest import Host
from tests.integration.cri_client import refused

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
SLEEP = ("/bin/sh", "-c", "sleep 1000")
RUNTIME_DEFAULT = pb.SecurityProfile.RuntimeDefault
UNCONFINED = pb.SecurityProfile.Unconfined
LOCALHOST = pb.SecurityProfile.Localhost

pytestmark = pytest.mark.skipif(
    not ENABLED.exists() or ENABLED.read_text().strip() != "Y", reason="needs the kernel's AppArmor: this host has none"
)


def started(
    host: Host, asked: pb.SecurityProfile | None = None, *capabilities: str, legacy: str = "", privileged: bool = False
) -> str:
    pod_config = host.cri.pod_config(namespaces=pb.NamespaceOption(pid=pb.CONTAINER))
    pod_config.linux.security_context.privileged = privileged
    config = host.cri.container_config(*SLEEP)
    security = config.linux.security_context
    security.privileged = privileged
    security.apparmor_profile = legacy
    security.capabilities.add_capabilities.extend(capabilities)
    if asked is not None:
        security.apparmor.CopyFrom(asked)
    container = host.cri.create(host.cri.run_pod(pod_config), config)
    host.cri.start(container)
    return container


def label(host: Host, container: str) -> str:
    """The profile of the container's first process and of one that was executed in it, which must agree."""
    first = host.cri.sh(container, "cat /proc/1/attr/current")
    assert host.cri.sh(container, "cat /proc/self/attr/current") == first
    return first


@pytest.mark.parametrize(
    ("asked", "legacy"),
    [(None, ""), (pb.SecurityProfile(profile_type=RUNTIME_DEFAULT), ""), (None, "runtime/default")],
    ids=["unset", "RuntimeDefault", "runtime/default"],
)
def test_the_default_profile_confines(host: Host, asked: pb.SecurityProfile | None, legacy: str) -> None:
    container = started(host, asked, "SYS_ADMIN", legacy=legacy)
    assert label(host, container) == f"{apparmor.NAME} (enforce)"
    assert host.cri.exec(container, "mount", "-t", "tmpfs", "tmpfs", "/tmp").code != 0
    assert host.cri.sh(container, "echo written > /tmp/file; cat /tmp/file") == "written"
    host.cri.sh(container, "sleep 900 & kill $!")
    host.cri.stop(container)
    assert host.cri.status(container).exit_code == 137


@pytest.mark.parametrize(
    ("asked", "privileged"),
    [(pb.SecurityProfile(profile_type=UNCONFINED), False), (None, True)],
    ids=["Unconfined", "privileged"],
)
def test_unconfined_and_privileged_are_not_confined(
    host: Host, asked: pb.SecurityProfile | None, privileged: bool
) -> None:
    container = started(host, asked, "SYS_ADMIN", privileged=privileged)
    assert label(host, container) == "unconfined"
    host.cri.sh(container, "mount -t tmpfs tmpfs /tmp")


def test_a_profile_by_name_is_taken(host: Host) -> None:
    profile = f"profile {host.roots.prefix} {{ file, network, capability, signal, deny /tmp/secret r, }}"
    subprocess.run([apparmor.PARSER, "--replace", "--skip-cache"], input=profile, text=True, check=True)
    container = started(host, pb.SecurityProfile(profile_type=LOCALHOST, localhost_ref=host.roots.prefix))
    assert label(host, container) == f"{host.roots.prefix} (enforce)"
    host.cri.sh(container, "echo x > /tmp/secret")
    assert host.cri.exec(container, "cat", "/tmp/secret").code != 0


def test_a_profile_that_is_not_loaded_is_named(host: Host) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no-such-profile"):
        started(host, pb.SecurityProfile(profile_type=LOCALHOST, localhost_ref="no-such-profile"))
