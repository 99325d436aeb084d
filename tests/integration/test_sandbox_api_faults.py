"""The sandbox API under clients that vanish, deadlines that pass, and a daemon that is killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from atoll.api import containerd_events_pb2 as events_pb2
from atoll.api import containerd_types_pb2 as types
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected, eventually, refused
from tests.integration.leaks import wait_until
from tests.integration.sandbox_client import (
    NOTREADY,
    READY,
    SandboxAPI,
    new_id,
    sandbox_api,
)

CODE = grpc.StatusCode
CLEAN_WITHIN_S = 20.0
WAITERS = 1000
KILLS = 8


@pytest.fixture
def api(daemon: Daemon, roots: Roots) -> Iterator[SandboxAPI]:
    with sandbox_api(roots.socket) as client:
        yield client


def fds(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def is_clean(daemon: Daemon) -> None:
    """The books agree with the machine within a bound, with nobody's help."""
    wait_until(lambda: daemon.run("fsck").returncode == 0, within=CLEAN_WITHIN_S)
    check = daemon.run("fsck")
    assert check.returncode == 0, check.stdout


def state_of(api: SandboxAPI, sandbox_id: str) -> str:
    """Its state, or NOT_FOUND."""
    try:
        return api.status(sandbox_id).state
    except grpc.RpcError as error:
        if error.code() is not CODE.NOT_FOUND:
            raise
        return CODE.NOT_FOUND.name


def test_a_thousand_waiters_get_one_answer(api: SandboxAPI, daemon: Daemon) -> None:
    made = api.run()
    before = fds(daemon)
    waiters = [api.later("Wait", sandbox_id=made) for _ in range(WAITERS)]
    begun = time.monotonic()
    while api.status(made).state == READY and time.monotonic() - begun < 1.0:
        pass
    for waiter in waiters[: WAITERS // 10]:
        waiter.cancel()
    assert fds(daemon) - before < 5
    api.stop(made)
    answers = {waiter.result().SerializeToString() for waiter in waiters[WAITERS // 10 :]}
    assert answers == {api.wait(made).SerializeToString()}
    api.shutdown(made)
    is_clean(daemon)


def test_callers_that_leave_get_nothing_and_leave_nothing(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    api.shutdown(api.run())
    is_clean(daemon)
    before = fds(daemon)
    ids: list[str] = []
    delays = [0.0, 0.001, 0.003, 0.005, 0.008, 0.012, 0.02, 0.04] * 3
    for at, delay in enumerate(delays):
        made = new_id()
        ids.append(made)
        with sandbox_api(roots.socket) as client:
            if at % 2:
                client.create(made)
                call = client.later("Start", sandbox_id=made)
            else:
                call = client.later("Create", sandbox_id=made)
            time.sleep(delay)
            if at % 3:
                call.cancel()
            # else the connection goes under it
    for made in ids:
        api.shutdown(made)  # those that were answered before their caller left, and nobody knows which
    eventually(lambda: all(state_of(api, made) == "NOT_FOUND" for made in ids), "all are gone")
    is_clean(daemon)
    assert not list((roots.state / "shims").iterdir())
    eventually(lambda: fds(daemon) <= before + 3, f"descriptors are given back: {before} before, {fds(daemon)} now")


def test_deadlines_that_pass_undo_what_was_begun(api: SandboxAPI, daemon: Daemon) -> None:
    late: list[str] = []
    done: list[str] = []
    for timeout_s in (1e-9, 0.0005, 0.002, 0.004, 0.006, 0.01, 0.02) * 2:
        made = new_id()
        try:
            api.create(made, timeout=timeout_s)
            api.start(made, timeout=timeout_s)
            done.append(made)
        except grpc.RpcError as error:
            if error.code() is not CODE.DEADLINE_EXCEEDED:
                raise
            late.append(made)
    assert late
    # A deadline that passed between two calls leaves one that is created, and is not started within its time.
    settled = {"NOT_FOUND", NOTREADY}
    eventually(lambda: all(state_of(api, made) in settled for made in late), "no late start is left running")
    for made in (*late, *done):
        api.shutdown(made)
    is_clean(daemon)
    with refused(CODE.DEADLINE_EXCEEDED):
        running = api.run()
        api.later("Wait", sandbox_id=running, timeout=0.2).result()
    assert api.status(running).state == READY
    api.shutdown(running)


def test_a_killed_daemon_finds_its_sandboxes_again(api: SandboxAPI, daemon: Daemon) -> None:
    running, gone, ended, created = api.run(), api.run(), api.run(), api.create()
    space = api.inside("moby")
    elsewhere = space.run()
    api.stop(ended)
    told = api.wait(ended)
    before = api.status(running)
    holder = api.status(gone).pid
    waiting = api.later("Wait", sandbox_id=running)
    daemon.kill()
    with refused(CODE.UNAVAILABLE):
        waiting.result()
    os.kill(holder, signal.SIGKILL)
    time.sleep(0.3)
    between = time.time()
    time.sleep(0.3)
    daemon.start()
    assert api.status(running) == before
    assert space.status(elsewhere).state == READY
    assert api.wait(ended) == told
    lost = api.wait(gone)
    assert lost.exit_status == 137
    assert lost.exited_at.seconds + lost.exited_at.nanos / 1e9 <= between
    assert api.status(created).state == NOTREADY
    assert api.start(created).pid
    again = api.later("Wait", sandbox_id=running)
    api.stop(running)
    assert again.result() == api.wait(running)
    is_clean(daemon)
    for made in (running, gone, ended, created):
        api.shutdown(made)
    space.shutdown(elsewhere)
    is_clean(daemon)


def exits(api: SandboxAPI) -> list[tuple[str, int]]:
    """Sandbox and status of every exit that a new subscriber is told of by itself."""
    with api.subscribed() as stream:
        api.publish("/end/of/it")
        told: list[types.Envelope] = []
        while (envelope := next(stream)).topic != "/end/of/it":
            told.append(envelope)
    found = [events_pb2.SandboxExit.FromString(one.event.value) for one in told if one.topic == "/sandboxes/exit"]
    return sorted((one.sandbox_id, one.exit_status) for one in found)


def test_an_end_that_no_daemon_saw_is_told_once_as_an_event(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    running, gone, stopped = api.run(), api.run(), api.run()
    with connected(roots) as cri:
        pod, stopped_pod = cri.run_pod(), cri.run_pod()
        cri.stop_pod(stopped_pod)
        pids = [api.status(one).pid for one in (gone, pod)]
    api.stop(stopped)
    assert exits(api) == []
    daemon.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    assert api.status(running).state == READY
    assert exits(api) == sorted([(gone, 137), (pod, 137)])
    daemon.kill()
    daemon.start()
    assert (api.status(gone).state, api.wait(pod).exit_status) == (NOTREADY, 137)
    assert exits(api) == []
    for made in (running, gone, stopped):
        api.shutdown(made)
    with connected(roots) as cri:
        for made in (pod, stopped_pod):
            cri.remove_pod(made)
    is_clean(daemon)


def test_a_daemon_that_is_stopped_lets_waiters_ask_again(api: SandboxAPI, daemon: Daemon) -> None:
    made = api.run()
    waiting = api.later("Wait", sandbox_id=made)
    api.status(made)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 1.8, "open waits do not hold the end up"
    with refused(CODE.UNAVAILABLE):
        waiting.result()
    daemon.start()
    assert api.status(made).state == READY
    api.shutdown(made)


@pytest.mark.slow
def test_a_daemon_killed_at_any_moment_leaves_clean_books(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    dice = random.Random(7)
    alive = api.run()
    for _ in range(KILLS):
        asked: list[str] = []
        started: list[str] = []
        stop = threading.Event()

        def work(asked: list[str] = asked, started: list[str] = started, stop: threading.Event = stop) -> None:
            with sandbox_api(roots.socket) as client:
                while not stop.is_set():
                    made = new_id()
                    asked.append(made)
                    try:
                        client.create(made, timeout=5)
                        client.start(made, timeout=5)
                        started.append(made)
                    except grpc.RpcError:
                        return

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        time.sleep(dice.uniform(0.01, 0.12))
        daemon.kill()
        stop.set()
        for worker in workers:
            worker.join()
        daemon.start()
        eventually(lambda: state_of(api, alive) == READY, "the one that ran runs")
        is_clean(daemon)
        states = {made: state_of(api, made) for made in asked}
        assert all(states[made] == READY for made in started), states
        for made, state in states.items():
            if state == NOTREADY:
                api.start(made)  # created, and its caller never got to know
            if state != "NOT_FOUND":
                api.shutdown(made)
        is_clean(daemon)
        assert [path.name for path in (roots.state / "shims").iterdir()] == [alive]
    api.shutdown(alive)


def test_what_a_reboot_takes_has_ended(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    made = api.run()
    pid = api.status(made).pid
    daemon.kill()
    # A shim and its bundle that are gone, as after a reboot.
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            shim = int(line.split()[1])
            if shim > 1:
                os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    daemon.start()
    ended = api.wait(made)
    assert ended.exit_status in (137, 255)
    assert api.status(made).state == NOTREADY
    api.shutdown(made)
    is_clean(daemon)


def test_a_damaged_record_is_kept_aside_and_told(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    made, whole = api.run(), api.run()
    daemon.stop()
    with sqlite3.connect(roots.root / "state.db") as db:
        row = tuple(db.execute("SELECT * FROM hosted WHERE id = ?", (made,)).fetchone())
        db.execute("UPDATE hosted SET state = '{' WHERE id = ?", (made,))
    daemon.start()
    assert state_of(api, whole) == READY
    assert state_of(api, made) == "NOT_FOUND"
    check = daemon.run("fsck")
    assert check.returncode != 0
    assert "damaged" in check.stdout
    assert made[:13] in check.stdout
    daemon.run("fsck", "--repair")
    assert Path(f"/run/{roots.prefix}/shims/{made}").exists(), "what is a damaged record's is left alone"
    daemon.stop()
    with sqlite3.connect(roots.root / "state.db") as db:
        assert made in db.execute("SELECT content FROM quarantine WHERE source = 'hosted'").fetchone()[0]
        db.execute("DELETE FROM quarantine")
        db.execute("INSERT INTO hosted VALUES (?, ?, ?, ?, ?)", row)
    daemon.start()
    assert state_of(api, made) == READY
    for one in (made, whole):
        api.shutdown(one)


# --- remote handlers ---


@pytest.fixture
def far(roots: Roots) -> Iterator[Daemon]:
    """Another daemon, with roots inside the test's own."""
    base, state = roots.base / "far", roots.state / "far"
    base.mkdir()
    state.mkdir()
    other = replace(roots, base=base, state=state)
    other.root.mkdir(mode=0o700)
    other.config.write_text(
        f'cgroup_parent = "/{roots.prefix}far"\n[network]\nconf_dir = "{base}/none"\npool_size = 0\n'
    )
    daemon = Daemon(other)
    daemon.start()
    try:
        yield daemon
        check = daemon.run("fsck")
        assert check.returncode == 0, check.stdout
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def remote_config(roots: Roots, far: Daemon) -> None:
    handlers = f'[runtimes.atoll]\n[runtimes.far]\nsandboxer = "remote"\naddress = "{far.roots.socket}"\n'
    roots.write_config(f'{handlers}remote_sandboxer = "atoll"\n')


def test_pods_of_a_remote_handler_are_made_there(
    far: Daemon, daemon: Daemon, roots: Roots, cri: CRI, api: SandboxAPI
) -> None:
    daemon.stop()
    remote_config(roots, far)
    daemon.start()
    pod = cri.run_pod(cri.pod_config(network=True, hostname="far-away"), handler="far")
    with sandbox_api(far.roots.socket) as there, connected(far.roots) as far_cri:
        assert there.status(pod).state == READY
        assert far_cri.list_pods() == []
        container = cri.script(pod, "sleep 1000")
        assert cri.sh(container, "hostname") == "far-away"
        assert cri.sh(container, "cat /etc/hostname") == "far-away"
        assert cri.pod_status(pod).network.ip in cri.sh(container, "ip -4 addr show eth0")
        assert cri.pod_info(pod)["pid"] == there.status(pod).pid
        daemon.kill()
        daemon.start()
        assert cri.sh(container, "echo still") == "still"
        far.kill()
        assert cri.sh(container, "echo here") == "here"
        assert cri.list_pods()[0].state == 0
        far.start()
        is_clean(daemon)
        os.kill(there.status(pod).pid, signal.SIGKILL)
        eventually(lambda: cri.pod_status(pod).state == 1, "the end is seen through the remote controller")
        cri.remove_pod(pod)
        assert state_of(there, pod) == "NOT_FOUND"
    is_clean(daemon)


def test_the_front_passes_a_remote_handlers_sandboxes_on(
    far: Daemon, daemon: Daemon, roots: Roots, api: SandboxAPI
) -> None:
    daemon.stop()
    remote_config(roots, far)
    daemon.start()
    near = api.by("far").inside("moby")
    made = near.run()
    with sandbox_api(far.roots.socket) as there:
        assert there.inside("moby").status(made).pid == near.status(made).pid
        daemon.kill()
        daemon.start()
        waiting = near.later("Wait", sandbox_id=made)
        there.inside("moby").stop(made)
        assert waiting.result().exit_status == 137
        with refused(CODE.INVALID_ARGUMENT):
            near.create(netns_path="relative")
        near.shutdown(made)
        assert state_of(there.inside("moby"), made) == "NOT_FOUND"
        made = near.run()
        far.kill()
        assert near.status(made).state == READY
        with refused(CODE.UNAVAILABLE):
            near.shutdown(made)
        with refused(CODE.UNAVAILABLE):
            near.run()
        far.start()
        near.shutdown(made)
    is_clean(daemon)
