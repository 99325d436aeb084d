"""A daemon that was killed under many pods: the next one serves at once and soon knows how each of them is."""

from __future__ import annotations

import time
from functools import partial

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon
from tests.integration.cri_client import CRI, in_parallel

PODS = 20
KNOWN_WITHIN_S = 10.0
"""Of 200 pods it is a fraction of a second on an idle machine (`python -m bench.recovery`); a busy one has its time."""


def test_twenty_pods_are_known_soon_after_a_kill(cri: CRI, daemon: Daemon) -> None:
    pods = in_parallel([cri.run_pod for _ in range(PODS)])
    containers = set(in_parallel([partial(cri.run, str(pod), "/bin/sleep", "1000") for pod in pods]))
    daemon.kill()
    daemon.start()
    served = time.monotonic()
    version = cri.runtime.call("Version", pb.VersionRequest(), pb.VersionResponse)
    assert version.runtime_name == "atoll"
    found = cri.list_pods()
    took = time.monotonic() - served
    assert {pod.id for pod in found} == set(pods)
    assert {pod.state for pod in found} == {pb.SANDBOX_READY}
    assert {one.id for one in cri.list() if one.state == pb.CONTAINER_RUNNING} == containers
    assert took < KNOWN_WITHIN_S, f"{PODS} pods were known after {took:.1f} s"
