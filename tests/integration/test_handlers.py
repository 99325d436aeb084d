"""Runtime handlers: the same pods through every sandboxer and OCI runtime that a configuration can name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected

RUNTIMES = """
[runtimes.atoll]
[runtimes.pause]
sandboxer = "podsandbox"
[runtimes.runc]
oci_runtime = "runc"
[runtimes.pause-runc]
sandboxer = "podsandbox"
oci_runtime = "runc"
"""


@pytest.fixture
def both(roots: Roots) -> Iterator[tuple[CRI, Daemon]]:
    roots.write_config()
    with roots.config.open("a") as file:
        file.write(RUNTIMES)
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            yield cri, daemon
            for pod in cri.list_pods():
                cri.remove_pod(pod.id)
            assert cri.fsck() == []
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


@pytest.mark.parametrize("handler", ["pause", "runc", "pause-runc"])
def test_a_pod_lives_its_life_and_survives_a_killed_daemon(both: tuple[CRI, Daemon], handler: str) -> None:
    cri, daemon = both
    config = cri.pod_config(network=True, hostname="held")
    pod = cri.run_pod(config, handler)
    assert cri.run_pod(config, handler) == pod
    status = cri.pod_status(pod)
    assert (status.state, status.runtime_handler) == (pb.SANDBOX_READY, handler)
    container = cri.script(pod, "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done")
    assert cri.sh(container, "hostname") == "held"
    assert cri.fsck() == []
    daemon.kill()
    daemon.start()
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.pod_status(pod).network.ip == status.network.ip
    assert cri.sh(container, "echo again") == "again"
    cri.stop(container, timeout=10)
    assert cri.status(container).exit_code == 4
    assert cri.output(container) == b"up\n"
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.fsck() == []
    cri.remove_pod(pod)
    assert cri.list_pods() == []


def test_a_shared_pid_namespace_is_the_pause_containers(both: tuple[CRI, Daemon]) -> None:
    cri, _ = both
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=pb.POD)), "pause")
    container = cri.script(pod, "sleep 1000")
    assert "sleep 1000" not in cri.sh(container, "cat /proc/1/cmdline | tr '\\0' ' '")
    assert cri.sh(container, "readlink /proc/self/ns/pid") == os.readlink(f"/proc/{cri.pod_info(pod)['pid']}/ns/pid")
    cri.remove_pod(pod)
