"""Pods on the real kernel, through the CRI of a real daemon."""

from __future__ import annotations

import pytest
from collections.abc import Iterator

from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected


def test_smoke(cri: CRI) -> None:
    pod = cri.run_pod()
    print(cri.pod_status(pod))
    c = cri.script(pod, "echo hello; exit 3")
    print(cri.wait(c))
    print(cri.log(c))
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.list_pods() == []
