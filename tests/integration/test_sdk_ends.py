"""Every call of the SDK that lasts, while the daemon, the shim or the container dies: each ends and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon
from tests.integration.cri_client import connected
from tests.integration.sdk_ends import BOUND_S, GOES_ON

pytestmark = pytest.mark.shared_daemon

EVENTS = {"wait", "stop", "exec_", "exec_stream", "exec_that_talks", "attach", "logs", "follow", "wait_for_process"}
PORTS = {"forward", "listen"}
MAY_SUCCEED = {"daemon": PORTS, "shim": {*EVENTS, *PORTS, "status"}, "container": {*EVENTS, *PORTS, "status"}}
"""Which may end as if nothing were wrong: what they wait for has happened."""
KINDS = {"Unavailable", "Aborted", "NotFound", "FailedPrecondition", "Unknown"}


@pytest.mark.parametrize("victim", ["daemon", "shim", "container"])
def test_every_call_that_lasts_ends(victim: str, daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(200):
        (folder / str(number)).write_bytes(bytes(10_000))
    roots = daemon.roots
    words = [str(roots.state), str(roots.socket), victim, str(daemon.pid), str(folder)]
    played = subprocess.run(
        [sys.executable, "-m", "tests.integration.sdk_ends", *words],
        capture_output=True,
        text=True,
        timeout=4 * BOUND_S,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    ends = json.loads(played.stdout)
    if victim == "daemon":
        daemon.kill()
        daemon.start()
    with connected(roots) as cri:
        for pod in cri.list_pods():
            cri.remove_pod(pod.id)
    waited = {name: end for name, end in ends.items() if name not in GOES_ON.get(victim, frozenset())}
    assert len(waited) >= 11
    late = [name for name, end in waited.items() if end is None]
    assert not late, f"did not end within {BOUND_S} s of the end of the {victim}"
    for name, (kind, text) in waited.items():
        assert kind in KINDS or (not kind and name in MAY_SUCCEED[victim]), (name, kind, text)
        assert len(text) > 20 or not kind
