"""Shims that are gone, hang, are old, or whose pid is a stranger's: what is told of their pods, and how they go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import msgspec
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux import process
from atoll.shim import records
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually
from tests.integration.leaks import pids, read, wait_until
from tests.integration.sandbox_client import NOTREADY, SandboxAPI
from tests.integration.test_restart import init_of, shim_of

REMOVED_WITHIN_S = 15.0
"""The watch looks after 2 s, asks for 3 s; the rest is a busy machine."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process hangs as a process does under a debugger."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def is_clean(cri: CRI) -> None:
    wait_until(lambda: cri.fsck() == [], within=20.0)
    assert cri.fsck() == []


def processes_of(container: str) -> list[int]:
    return [pid for pid in pids() if container.encode() in read(pid, "cgroup") and read(pid, "cmdline")]


def shim_record(roots: Roots, pod: str) -> records.ShimRecord:
    found = records.read(roots.state / "shims" / pod / records.SHIM, records.ShimRecord)
    assert found is not None
    return found


@pytest.mark.shared_daemon
@pytest.mark.parametrize("call", ["stop", "remove"])
def test_a_pod_with_a_hung_shim_ends_in_bounded_time_and_its_process_is_killed(
    cri: CRI, daemon: Daemon, call: str
) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    container = cri.script(pod, "sleep 1000")
    pid, init = shim_of(cri, pod), init_of(container)
    with stopped(pid):
        begun = time.monotonic()
        if call == "stop":
            cri.stop_pod(pod)
            assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
            assert cri.status(container).state == pb.CONTAINER_EXITED
        else:
            cri.remove_pod(pod)
        assert time.monotonic() - begun < REMOVED_WITHIN_S
        assert not processes_of(container)
        assert not read(init, "cmdline")
    assert wait_until(lambda: not read(pid, "cmdline")), "it served nobody else and lives on"
    assert f"process {pid}, stopped by a signal" in daemon.log_tail()
    cri.remove_pod(pod)
    is_clean(cri)


@pytest.mark.shared_daemon
@pytest.mark.parametrize("call", ["stop", "shutdown"])
def test_a_sandbox_of_a_client_with_a_hung_shim_ends_in_bounded_time(
    cri: CRI, daemon: Daemon, roots: Roots, call: str
) -> None:
    api = SandboxAPI(channel=cri.runtime.channel)
    made = api.run()
    pid = shim_record(roots, made).pid
    with stopped(pid):
        begun = time.monotonic()
        if call == "stop":
            api.stop(made)
            assert api.status(made).state == NOTREADY
        else:
            api.shutdown(made)
        assert time.monotonic() - begun < REMOVED_WITHIN_S
    assert wait_until(lambda: not read(pid, "cmdline")), "it served nobody else and lives on"
    assert f"process {pid}, stopped by a signal" in daemon.log_tail()
    api.shutdown(made)
    is_clean(cri)


@pytest.mark.shared_daemon
def test_a_hung_process_of_two_pods_loses_one_of_them_and_pays_when_it_wakes(cri: CRI, roots: Roots) -> None:
    pod, other = cri.run_pod(cri.pod_config(network=True)), cri.run_pod()
    container, neighbour = cri.script(pod, "sleep 1000"), cri.script(other, "sleep 1000")
    pid = shim_of(cri, pod)
    assert shim_of(cri, other) == pid
    kept = init_of(neighbour)
    with stopped(pid):
        begun = time.monotonic()
        cri.remove_pod(pod)
        assert time.monotonic() - begun < REMOVED_WITHIN_S
        assert not processes_of(container)
        assert [one.id for one in cri.list_pods()] == [other]
        assert processes_of(neighbour) == [kept], "the neighbour's container is untouched"

        def owed() -> bool:
            return [(one.kind, str(pid) in f"{one.problem} {one.remedy}") for one in cri.fsck()] == [("shim", True)]

        eventually(owed, "the shim is owed, and its process named", within=20.0)
        new = cri.run_pod()
        assert shim_of(cri, new) != pid, "nobody new is handed to a process that hangs"
        assert cri.sh(cri.script(new, "sleep 1000"), "echo well") == "well"
    assert cri.sh(neighbour, "echo well") == "well"
    is_clean(cri)
    assert list((roots.state / "s").glob("*.aside")) == []
    assert read(pid, "cmdline")
    for one in (other, new):
        cri.remove_pod(one)


@pytest.mark.slow
@pytest.mark.shared_daemon
def test_what_a_hung_shim_is_asked_fails_with_its_name_and_others_do_not_notice(cri: CRI) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    pid = shim_of(cri, pod)
    with stopped(pid):
        new = cri.run_pod()
        probe = cri.script(new, "sleep 1000")
        asked = pb.StatusRequest(verbose=True)
        call = cri.runtime.future(
            "ReopenContainerLog",
            pb.ReopenContainerLogRequest(container_id=container),
            pb.ReopenContainerLogResponse,
        )
        for _ in range(5):
            begun = time.monotonic()
            assert cri.sh(probe, "echo well") == "well"
            cri.runtime.call("Status", asked, pb.StatusResponse)
            assert time.monotonic() - begun < 2.0
        cri.remove_pod(new)
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
        assert f"process {pid}, stopped by a signal" in (raised.value.details() or "")
    cri.remove_pod(pod)


@pytest.mark.slow
@pytest.mark.shared_daemon
def test_a_hung_shim_that_a_new_daemon_finds_can_be_removed(cri: CRI, daemon: Daemon) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    pid = shim_of(cri, pod)
    daemon.kill()
    with stopped(pid):
        daemon.start()
        assert cri.pod_info(pod)["state"] == "SANDBOX_UNKNOWN"
        begun = time.monotonic()
        cri.remove_pod(pod)
        assert time.monotonic() - begun < REMOVED_WITHIN_S
        assert not processes_of(container)
    is_clean(cri)


@pytest.mark.shared_daemon
def test_a_killed_shim_leaves_a_pod_that_is_told_of_and_removable(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    container = cri.script(pod, "sleep 1000")
    init = init_of(container)
    os.kill(shim_of(cri, pod), signal.SIGKILL)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod has ended")
    eventually(lambda: cri.status(container).state == pb.CONTAINER_EXITED, "its container was ended by its cgroup")
    assert (cri.status(container).exit_code, cri.status(container).reason) == (255, "Unknown"), "nobody can know how"
    assert not read(init, "cmdline")
    assert "shim is gone" in str(cri.pod_info(pod)["reason"]) or cri.pod_info(pod)["state"] == "SANDBOX_NOTREADY"
    is_clean(cri)
    cri.remove_pod(pod)
    is_clean(cri)


@pytest.mark.shared_daemon
def test_a_recycled_pid_is_nobodys_shim(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    """The record's pid belongs to another process now: it is told by its start time, and is not touched."""
    pod = cri.run_pod()
    cri.script(pod, "sleep 1000")
    pid = shim_of(cri, pod)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            path = roots.state / "shims" / pod / records.SHIM
            record = msgspec.structs.replace(shim_record(roots, pod), pid=stranger.pid, alone=True)
            records.write(path, record)
            daemon.start()
            eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod has ended")
            cri.remove_pod(pod)
            is_clean(cri)
            assert stranger.poll() is None, "a stranger was killed"
        finally:
            stranger.kill()


@pytest.mark.shared_daemon
def test_a_record_of_another_boot_is_nobodys_shim(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod()
    pid = shim_of(cri, pod)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            seen = process.identify(stranger.pid)
            assert seen is not None
            record = msgspec.structs.replace(
                shim_record(roots, pod), pid=seen.pid, start_ticks=seen.start_ticks, boot_id="0" * 8, alone=True
            )
            records.write(roots.state / "shims" / pod / records.SHIM, record)
            daemon.start()
            cri.remove_pod(pod)
            is_clean(cri)
            assert stranger.poll() is None, "a stranger was killed"
        finally:
            stranger.kill()


@pytest.mark.shared_daemon
def test_a_shim_of_an_older_version_is_served_by_a_newer_daemon(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    """Its record lacks what newer ones say, and says what newer ones do not: both are taken."""
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    daemon.kill()
    path = roots.state / "shims" / pod / records.SHIM
    old = msgspec.json.decode(path.read_bytes())
    kept = {name: old[name] for name in ("pid", "start_ticks", "boot_id", "alone")}
    path.write_bytes(msgspec.json.encode({**kept, "version": "0.0.1", "of_old": [1, 2]}))
    daemon.start()
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.sh(container, "echo well") == "well"
    cri.remove_pod(pod)
    is_clean(cri)


@pytest.mark.shared_daemon
def test_a_stale_socket_is_a_shim_that_is_gone(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    """Somebody else's socket where the shim listened: nobody behind it answers, and the pod can go all the same."""
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    pid = shim_of(cri, pod)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not read(pid, "cmdline"))
    (socket,) = (roots.state / "s").iterdir()
    assert socket.is_socket()
    daemon.start()
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod has ended")
    eventually(lambda: cri.status(container).state == pb.CONTAINER_EXITED, "its container has ended")
    cri.remove_pod(pod)
    assert not socket.exists()
    is_clean(cri)


@pytest.mark.shared_daemon
@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "alive"])
def test_records_of_a_shim_that_cannot_be_read_keep_nothing(
    cri: CRI, daemon: Daemon, roots: Roots, is_gone: bool
) -> None:
    """Its pod goes all the same: containers are known by their specs and by the OCI runtime's books."""
    pod = cri.run_pod(cri.pod_config(network=True))
    containers = [cri.script(pod, "sleep 1000") for _ in range(3)]
    pid = shim_of(cri, pod)
    daemon.kill()
    if is_gone:
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not read(pid, "cmdline"))
    for name in (records.TASK, records.EXIT):
        for container in containers[name == records.EXIT :]:  # one of them lacks one, one both
            (roots.state / "bundles" / container / name).write_bytes(b'{"id":')
    for name in (records.SHIM, records.BOOTSTRAP, records.SANDBOX):
        (roots.state / "shims" / pod / name).write_bytes(b"")
    daemon.start()
    if is_gone:
        eventually(
            lambda: all(cri.status(one).state == pb.CONTAINER_EXITED for one in containers), "the containers have ended"
        )
        assert {cri.status(one).exit_code for one in containers} == {255}
    else:
        assert cri.sh(containers[0], "echo well") == "well"
    begun = time.monotonic()
    cri.remove_pod(pod)
    assert time.monotonic() - begun < REMOVED_WITHIN_S
    assert not any(map(processes_of, containers))
    is_clean(cri)


@pytest.mark.shared_daemon
def test_the_folder_of_sockets_is_made_anew_where_something_took_it(cri: CRI, roots: Roots) -> None:
    """As whatever cleans volatile folders up may; a pod that was there goes by its connection."""
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    shutil.rmtree(roots.state / "s")
    assert cri.sh(container, "echo well") == "well"
    other = cri.run_pod()
    assert cri.sh(cri.script(other, "sleep 1000"), "echo well") == "well"
    for one in (pod, other):
        cri.remove_pod(one)
    is_clean(cri)
