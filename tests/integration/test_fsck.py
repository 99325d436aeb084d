"""`fsck` finds what nobody answers for, says what it is, and takes it away; what is another's it does not touch."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected, eventually, in_parallel
from tests.integration.leaks import CGROUPS, mount_points, read, wait_until
from tests.integration.test_restart import shim_of

pytestmark = pytest.mark.shared_daemon

LOST = "ab" * 32
"""An ID that no pod has."""


@pytest.fixture
def instance(cri: CRI) -> str:
    return cri.own.call("Info", own.InfoRequest(), own.InfoResponse).instance


def kinds(findings: list[own.Finding]) -> list[tuple[str, str]]:
    return sorted((one.kind, one.problem.partition(":")[0]) for one in findings)


def mended(cri: CRI, kind: str, problem: str, *, key: str = "") -> None:
    """Exactly one thing is found, explained, left alone by a look, and gone after the repair."""
    for _ in range(2):
        (finding,) = cri.fsck()
        assert (finding.kind, finding.problem.partition(":")[0]) == (kind, problem)
        assert finding.remedy
        assert not finding.repaired
        assert not key or finding.key == key
    (finding,) = cri.fsck(repair=True)
    assert finding.repaired, finding
    assert cri.fsck() == []


def test_a_whole_daemon_with_pods_is_clean(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    cri.script(pod, "sleep 1000")
    cri.create(pod, cri.container_config("true"))
    cri.wait(cri.script(pod, "exit 1"))
    stopped = cri.run_pod(cri.pod_config(network=True))
    cri.stop_pod(stopped)
    assert cri.fsck() == []
    assert cri.fsck(repair=True) == []
    assert cri.pod_status(pod).state == pb.SANDBOX_READY


def test_a_stray_network_namespace(cri: CRI, roots: Roots) -> None:
    cri.remove_pod(cri.run_pod(cri.pod_config(network=True)))
    pin = roots.state / "netns" / LOST
    pin.touch()
    subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(pin)], check=False)
    mended(cri, "network", "stray", key=LOST)
    assert not pin.exists()


def test_a_stray_mount(cri: CRI, roots: Roots) -> None:
    point = roots.state / "somewhere"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    mended(cri, "mount", "stray", key=str(point))
    assert str(point) not in mount_points()


def test_a_stray_folder_of_a_pod_with_mounts_in_it(cri: CRI, roots: Roots) -> None:
    shm = roots.state / "pods" / LOST / "shm"
    shm.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shm)], check=True)
    mended(cri, "pod-files", "stray", key=LOST)
    assert not shm.parent.exists()


def test_a_stray_bundle_and_checkpoint(cri: CRI, roots: Roots) -> None:
    (roots.state / "bundles" / LOST / "rootfs").mkdir(parents=True)
    (roots.root / "containers" / LOST).mkdir()
    assert kinds(cri.fsck()) == [("bundle", "stray"), ("checkpoint", "stray")]
    assert all(one.repaired for one in cri.fsck(repair=True))
    assert cri.fsck() == []


def test_a_stray_cgroup_with_a_process_in_it(cri: CRI, roots: Roots, instance: str) -> None:
    folders = [mount / roots.prefix / instance / LOST for mount in (CGROUPS / "memory", CGROUPS / "pids")]
    folders = [one for one in folders if one.parents[2].is_dir()] or [CGROUPS / roots.prefix / instance / LOST]
    process = subprocess.Popen(["sleep", "1000"])
    try:
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "cgroup.procs").write_text(str(process.pid))
        mended(cri, "cgroup", "stray", key=LOST)
        assert process.wait(5) == -9
        assert not any(folder.exists() for folder in folders)
    finally:
        process.kill()
        process.wait()


def test_a_snapshot_of_nobody(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    container = cri.create(cri.run_pod(), cri.container_config("true"))
    daemon.kill()
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as db:
        db.execute("DELETE FROM containers WHERE id = ?", (container,))
        db.execute("DELETE FROM ledger WHERE owner = ?", (container,))
    daemon.start()
    found = cri.fsck()
    assert ("snapshot", "stray") in kinds(found)
    assert all(one.repaired for one in cri.fsck(repair=True))
    assert cri.fsck() == []


def test_an_entry_without_its_resource(cri: CRI, roots: Roots) -> None:
    pod = cri.run_pod()
    cri.stop_pod(pod)
    subprocess.run(["umount", str(roots.state / "pods" / pod / "shm")], check=True)
    subprocess.run(["rm", "-r", str(roots.state / "pods" / pod)], check=True)
    mended(cri, "pod-files", "vanished", key=pod)
    cri.remove_pod(pod)


def test_a_killed_shim(cri: CRI) -> None:
    pod = cri.run_pod()
    os.kill(shim_of(cri, pod), 9)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
    assert cri.fsck() == []
    cri.remove_pod(pod)
    assert cri.fsck() == []


def test_a_shim_without_its_bundle(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod()
    shim = shim_of(cri, pod)
    daemon.kill()
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as db:
        db.execute("DELETE FROM sandboxes WHERE id = ?", (pod,))
        db.execute("DELETE FROM ledger WHERE kind = 'sandbox'")
    subprocess.run(["rm", "-r", str(roots.state / "shims" / pod)], check=True)
    daemon.start()
    assert wait_until(lambda: ("shim", "stray") in kinds(cri.fsck()), within=5)
    assert all(one.repaired for one in cri.fsck(repair=True))
    assert wait_until(lambda: not read(shim, "cmdline")), "the shim lives"
    cri.fsck(repair=True)  # its socket is a stray now
    assert cri.fsck() == []


def test_an_attachment_that_nobody_has(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    ip = cri.pod_status(pod).network.ip
    daemon.kill()
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as db:
        db.execute("DELETE FROM ledger WHERE kind = 'network'")
    daemon.start()
    assert ("network", "stray") in kinds(cri.fsck())
    cri.stop_pod(pod)
    assert [one.key for one in cri.fsck(repair=True) if one.kind == "network"] == [pod]
    assert cri.fsck() == []
    assert not list((roots.base / "ipam").rglob(ip))
    cri.remove_pod(pod)


def test_an_address_of_the_default_network_that_nobody_has(cri: CRI, roots: Roots) -> None:
    lease = roots.state / "network" / "ipam" / "a-bridge" / "10.89.0.99"
    lease.parent.mkdir(parents=True)
    lease.write_text(f"{LOST}\neth0")
    mended(cri, "address", "stray", key="a-bridge/10.89.0.99")
    assert not lease.exists()


def test_a_dead_socket(cri: CRI, roots: Roots) -> None:
    path = roots.state / "s" / ("0" * 32)
    subprocess.run(["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"], check=True)
    mended(cri, "socket", "stray", key=path.name)
    assert not path.exists()


@pytest.fixture
def neighbour(roots: Roots) -> Iterator[tuple[CRI, Roots]]:
    """Another daemon on the same machine, under roots of its own and with the same configuration."""
    other = Roots(prefix=roots.prefix, base=roots.base / "other", state=roots.state.with_name(f"{roots.prefix}b"))
    other.root.mkdir(parents=True)
    other.state.mkdir(mode=0o700)
    other.config.symlink_to(roots.config)
    daemon = Daemon(other)
    daemon.start()
    try:
        with connected(other) as cri:
            yield cri, other
            for pod in cri.list_pods():
                cri.remove_pod(pod.id)
            assert cri.fsck() == []
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        for line in reversed(mount_points()):
            if line.startswith(f"{other.state}/"):
                subprocess.run(["umount", "-l", line], check=False)
        subprocess.run(["rm", "-rf", str(other.state)], check=False)


def test_the_things_of_another_daemon_are_not_touched(cri: CRI, neighbour: tuple[CRI, Roots], roots: Roots) -> None:
    theirs, _ = neighbour
    config = theirs.pod_config(network=True)
    pod = theirs.run_pod(config)
    container = theirs.script(pod, "sleep 1000")
    ip = theirs.pod_status(pod).network.ip
    mine = cri.run_pod(cri.pod_config(network=True))
    assert cri.pod_status(mine).network.ip != ip
    (roots.state / "pods" / LOST).mkdir()
    assert [one.key for one in cri.fsck(repair=True)] == [LOST]
    assert theirs.pod_status(pod).state == pb.SANDBOX_READY
    assert theirs.status(container).state == pb.CONTAINER_RUNNING
    assert theirs.fsck() == []
    assert [one.id for one in cri.list_pods()] == [mine]


def test_what_is_under_way_is_not_found(cri: CRI) -> None:
    ended = time.monotonic() + 4
    findings: list[own.Finding] = []

    def look() -> None:
        while time.monotonic() < ended:
            findings.extend(cri.fsck())

    def work() -> None:
        while time.monotonic() < ended:
            pod = cri.run_pod(cri.pod_config(network=True))
            cri.script(pod, "sleep 1000")
            cri.stop_pod(pod)
            cri.remove_pod(pod)

    works: list[Callable[[], None]] = [look, work, work]
    assert in_parallel(works) == [None] * 3
    assert findings == []


def test_the_masquerade_table_of_a_network_that_has_gone_is_found_and_removed(daemon: Daemon) -> None:
    roots = daemon.roots
    assert daemon.run("run", "--rm", "atoll/busybox", "true").returncode == 0
    conflist = roots.conf_dir / "10-test.conflist"
    before = conflist.read_text()
    conflist.write_text(before.replace(f"{roots.prefix}net", f"{roots.prefix}new"))

    def tables() -> list[str]:
        rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
        return [rule for rule in rules.splitlines() if str(roots.root) in rule]

    assert wait_until(lambda: daemon.run("run", "--rm", "atoll/busybox", "true").returncode == 0 and len(tables()) == 2)
    found = daemon.run("fsck")
    assert found.returncode != 0
    assert "masquerade" in found.stdout
    assert daemon.run("fsck", "--repair").returncode == 0
    assert len(tables()) == 1
    conflist.write_text(before)
    assert daemon.run("run", "--rm", "atoll/busybox", "true").returncode == 0
    assert daemon.run("fsck", "--repair").returncode == 0
