"""Pods of pause containers, by our own shim and by containerd's, in whichever cgroup layout this kernel has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from atoll.testing.conformance import LinuxHost
from tests.guest.conftest import Host
from tests.guest.test_cgroups import MIB, SLEEP, limited, pod_cgroup
from tests.integration.cri_client import eventually
from tests.integration.sandbox_client import sandbox_api

GO_SHIM = "containerd-shim-runc-v2"


@pytest.fixture(params=["pause", "pause-go"])
def handler(request: pytest.FixtureRequest) -> str:
    if request.param == "pause-go" and shutil.which(GO_SHIM) is None:
        pytest.skip(f"needs {GO_SHIM}: apt install containerd")
    return request.param


@pytest.fixture
def pod(host: Host, handler: str) -> Iterator[str]:
    """A pod without network; it goes with everything in it, and with its cgroup."""
    pod = host.cri.run_pod(handler=handler)
    group = pod_cgroup(host, pod)
    yield pod
    host.cri.remove_pod(pod)
    assert not any(folder.exists() for folder in group.folders)


def test_its_containers_have_limits_figures_and_execs(host: Host, pod: str) -> None:
    container = limited(host, pod, SLEEP, memory_limit_in_bytes=64 * MIB)
    assert host.cri.sh(container, "echo out") == "out"
    assert 0 < host.cri.stats(container).memory.usage_bytes.value < 64 * MIB
    greedy = limited(host, pod, "tail /dev/zero", memory_limit_in_bytes=16 * MIB)
    assert host.cri.wait(greedy).code == 137
    assert host.cri.status(greedy).reason == "OOMKilled"


async def test_a_pause_holds_it_and_a_stop_ends_it_all_the_same(host: Host, handler: str) -> None:
    """A sandbox of the sandbox API, which has pauses."""
    with sandbox_api(host.roots.socket) as client:
        api = client.by(handler)
        made = api.run()
        pid = api.status(made).pid
        for _ in range(2):
            api.own_call("Pause", made)
            assert await LinuxHost().is_frozen(pid)
            api.own_call("Resume", made)
            assert not await LinuxHost().is_frozen(pid)
        api.own_call("Pause", made)
        api.stop(made)
        assert api.wait(made).exit_status == 137
        api.shutdown(made)
    assert not os.path.exists(f"/proc/{pid}")


def test_it_is_found_again_by_a_restarted_daemon(host: Host, pod: str) -> None:
    container = limited(host, pod, SLEEP, memory_limit_in_bytes=64 * MIB)
    host.daemon.kill()
    host.daemon.start()
    eventually(lambda: host.cri.exec(container, "/bin/true").code == 0, "exec works again")
    assert host.cri.stats(container).memory.usage_bytes.value > 0
