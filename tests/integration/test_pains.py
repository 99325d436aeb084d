"""What people complain of in other runtimes and no other test shows: see docs/reliability.md."""

from __future__ import annotations

import subprocess

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, eventually
from tests.integration.leaks import read
from tests.integration.test_restart import shim_of

pytestmark = pytest.mark.shared_daemon


def test_a_tool_finds_the_network_of_a_pod_without_any_process_of_its_own(cri: CRI) -> None:
    """Mesh agents look for a process in the pod's namespace: its path and the pid that holds it are told."""
    pod = cri.run_pod(cri.pod_config(network=True))
    info = cri.pod_info(pod)
    ip = cri.pod_status(pod).network.ip
    for target in (f"--net={info['netNamespacePath']}", f"--net=/proc/{info['pid']}/ns/net"):
        seen = subprocess.run(["nsenter", target, "ip", "-o", "addr"], check=True, capture_output=True, text=True)
        assert f" {ip}/" in seen.stdout
    cri.remove_pod(pod)


def test_what_watches_a_pod_is_no_part_of_its_memory(cri: CRI) -> None:
    """A monitor in the pod's own cgroup dies with it, and its exits are lost."""
    pod = cri.run_pod()
    config = cri.container_config("/bin/sh", "-c", "tail /dev/zero")
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    container = cri.create(pod, config)
    shim = shim_of(cri, pod)
    assert pod.encode() not in read(shim, "cgroup")
    cri.start(container)
    eventually(lambda: cri.status(container).state == pb.CONTAINER_EXITED, "its memory has run out")
    assert cri.status(container).reason == "OOMKilled"
    assert read(shim, "cmdline")
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.wait(cri.script(pod, "exit 6")).code == 6
    cri.remove_pod(pod)
