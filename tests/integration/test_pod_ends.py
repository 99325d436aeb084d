"""Pods that end while containers are made and started in them, and pods that can be told little about."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually, in_parallel
from tests.integration.leaks import wait_until
from tests.integration.test_restart import shim_of

RUNTIMES = """
[runtimes.atoll]

[runtimes.other]
sandboxer = "shim"
oci_runtime = "runc"
"""


def clean(cri: CRI) -> None:
    wait_until(lambda: cri.fsck() == [], within=20.0)
    assert cri.fsck() == []


@pytest.mark.parametrize("end", ["stop", "remove"])
def test_an_end_beside_creations_and_starts_leaves_nothing_running_and_no_orphan(cri: CRI, end: str) -> None:
    pod = cri.run_pod()
    made = [cri.create(pod, cri.container_config("/bin/sleep", "1000")) for _ in range(4)]
    works: list[Callable[[], object]] = [partial(cri.start, one) for one in made]
    works += [partial(cri.create, pod, cri.container_config("/bin/sleep", "1000")) for _ in range(4)]
    works.insert(3, partial(cri.stop_pod if end == "stop" else cri.remove_pod, pod))
    ended = in_parallel(works)[3]
    assert ended is None, ended
    assert all(one.state != pb.CONTAINER_RUNNING for one in cri.list())
    if end == "remove":
        assert cri.list() == []
    cri.remove_pod(pod)
    assert cri.list() == []
    clean(cri)


def test_a_pod_whose_runtime_handler_left_the_config_is_stopped_and_removed(cri: CRI, daemon: Daemon) -> None:
    roots = daemon.roots
    before = roots.config.read_text()
    daemon.stop()
    roots.config.write_text(before + RUNTIMES)
    daemon.start()
    pod = cri.run_pod(handler="other")
    container = cri.script(pod, "sleep 1000")
    daemon.stop()
    roots.config.write_text(before)
    daemon.start()

    cri.stop_pod(pod)
    assert cri.status(container).state == pb.CONTAINER_EXITED
    cri.remove_pod(pod)
    assert cri.list_pods() == []
    assert cri.list() == []
    assert "'other' is not configured any more" in daemon.log_tail()

    daemon.stop()
    roots.config.write_text(before + RUNTIMES)
    daemon.start()
    clean(cri)


def test_a_damaged_network_entry_stops_neither_the_daemon_nor_a_removal(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod, sound = cri.run_pod(), cri.run_pod()
    daemon.kill()
    damage(roots.root, pod)
    daemon.start()
    assert cri.pod_status(sound).state == pb.SANDBOX_READY
    info = cri.pod_info(pod)
    assert "attachment cannot be read" in str(info["reason"]), info
    cri.remove_pod(pod)
    cri.remove_pod(sound)
    clean(cri)


def damage(root: Path, pod: str) -> None:
    with sqlite3.connect(root / "state.db") as db:
        text = json.dumps({"attachment": "{damaged"}).encode()
        found = db.execute("UPDATE ledger SET data = ? WHERE kind = 'network' AND key = ?", (text, pod))
        assert found.rowcount == 1
    db.close()


@pytest.mark.slow
def test_a_shim_that_does_not_answer_at_the_start_is_asked_again(cri: CRI, daemon: Daemon) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    pid = shim_of(cri, pod)
    daemon.kill()
    os.kill(pid, signal.SIGSTOP)
    try:
        daemon.start()
        assert cri.pod_info(pod)["state"] == "SANDBOX_UNKNOWN"
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_READY, "the pod is READY", within=20.0)
    eventually(lambda: cri.status(container).state == pb.CONTAINER_RUNNING, "the container runs", within=20.0)
    assert cri.pod_info(pod)["reason"] == ""
    cri.stop(container)
    assert cri.status(container).exit_code == 137
