"""The SDK without an event loop, against a fake daemon whose loop is on another thread."""

from __future__ import annotations

import gc
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import atoll
from atoll import errors
from atoll.client import sync
from atoll.client.background import BackgroundProcess
from atoll.client.branches import Snapshot
from atoll.client.client import Client
from atoll.client.container import Container
from atoll.client.files import Files
from atoll.client.forwarding import Forward
from atoll.client.leases import Lease
from atoll.client.pod import Pod
from atoll.client.portal import Portal
from atoll.client.process import AttachedProcess, ExecProcess, Output
from atoll.client.registries import Registries
from atoll.testing.fake_daemon import FakeDaemon

IMAGE = "atoll/busybox"

FACES = [
    (Client, sync.SyncClient),
    (Pod, sync.SyncPod),
    (Container, sync.SyncContainer),
    (Files, sync.SyncFiles),
    (Forward, sync.SyncForward),
    (Lease, sync.SyncLease),
    (Snapshot, sync.SyncSnapshot),
    (BackgroundProcess, sync.SyncBackgroundProcess),
    (ExecProcess, sync.SyncExecProcess),
    (AttachedProcess, sync.SyncAttachedProcess),
    (Output, sync.SyncOutput),
    (Registries, sync.SyncRegistries),
]
ONLY_INSIDE = {"aclose", "put", "take", "name", "size"}
"""`aclose` is `close`; the rest of `Output` is for whoever fills it."""

ONLY_HERE = {"close", "cost", "id", "name", "pod_id", "container_id"}
"""Attributes of the asynchronous objects are properties here."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    portal = Portal()
    try:
        yield portal.enter(FakeDaemon(tmp_path / "atoll.sock", registry=("docker.io/library/web:1",)))
    finally:
        portal.close()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[atoll.SyncClient]:
    with atoll.connect_sync(daemon.socket, start=False) as client:
        yield client


def public(kind: type) -> dict[str, object]:
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("own", "face"), FACES, ids=lambda kind: kind.__name__)
def test_every_method_is_there_with_the_same_arguments_and_words(own: type, face: type) -> None:
    here = public(face)
    for name, method in public(own).items():
        if name in ONLY_INSIDE:
            continue
        assert name in here, f"{face.__name__} lacks {name}"
        assert getattr(here[name], "__doc__", None) == getattr(method, "__doc__", None)
        if callable(method):
            assert callable(here[name])
            wanted, found = inspect.signature(method), inspect.signature(here[name])
            assert list(wanted.parameters.values())[1:] == list(found.parameters.values())[1:], name
            assert not inspect.iscoroutinefunction(here[name])
    assert {name for name in here if name not in public(own)} <= ONLY_HERE


def test_pod_with_a_container_from_start_to_end(client: atoll.SyncClient, daemon: FakeDaemon) -> None:
    with client.run_pod("web", ports={8080: 80}, labels={"a": "b"}) as pod:
        container = pod.run(IMAGE, ["echo", "hello", "there"], name="main", cpus=0.5, memory="64MiB")
        assert container.wait().code == 0
        assert [line.text for line in container.logs(follow=True)] == ["hello there"]
        assert [one.name for one in pod.containers()] == ["main"]
        assert pod.status().ip == "10.0.0.2"
        assert client.container("web/main").id == client.container_by_id(client.containers()[0]).id == container.id
        assert client.pod_by_id(pod.id, "web").details()[0].name == client.pod("web").name == "web"
        assert repr(pod).startswith("<SyncPod of <Pod web ")
    assert not daemon.pods


def test_exec_gives_its_output_or_its_error(client: atoll.SyncClient) -> None:
    with client.run_pod() as pod:
        container = pod.run(IMAGE, ["sleep", "1000"])
        assert container.exec(["echo", "a"]).text == "a\n"
        assert container.exec(["cat"], stdin=b"b").stdout == b"b"
        with pytest.raises(atoll.CommandFailed, match="nope"):
            container.exec(["nope"])


def test_stream_is_a_conversation(client: atoll.SyncClient) -> None:
    with client.run_pod() as pod:
        container = pod.run(IMAGE, ["sleep", "1000"])
        with container.exec_stream(["cat"], stdin=True, tty=True, size=(80, 24)) as process:
            assert process.started() > 0
            process.write(b"one")
            assert process.stdout.read() == b"one"
            process.resize(132, 40)
            assert next(process.stdout) == b"132x40\n"
            process.signal(15)
            assert process.wait().code == 143
            assert list(process.stdout) == []
            assert process.stderr.read_all() == b""
        with container.exec_stream(["cat"], stdin=True) as process:
            process.write(b"two")
            process.close_stdin()
            assert process.collect().stdout == b"two"


def test_a_log_that_is_not_read_to_its_end_lets_go(client: atoll.SyncClient) -> None:
    with client.run_pod() as pod:
        container = pod.run(IMAGE, ["sleep", "1000"])
        lines = container.logs(follow=True)
        lines.close()
        talker = pod.run(IMAGE, ["echo", "a\nb"])
        lines = talker.logs(follow=True)
        assert next(lines).text == "a"
        lines.close()
        with pytest.raises(StopIteration):
            next(lines)


def test_many_threads_share_one_client(client: atoll.SyncClient) -> None:
    with client.run_pod() as pod, ThreadPoolExecutor(8) as threads:
        container = pod.run(IMAGE, ["sleep", "1000"])
        said = threads.map(lambda n: container.exec(["echo", str(n)]).text, range(32))
        assert list(said) == [f"{n}\n" for n in range(32)]


def test_progress_is_told_on_the_way_and_a_callback_may_not_wait_for_its_own_client(
    client: atoll.SyncClient,
) -> None:
    seen: list[str] = []
    client.pull("web:1", lambda layers: seen.extend(one.phase for one in layers))
    assert seen == ["pulling", "done"]

    def ask(_: object) -> None:
        client.images()

    with pytest.raises(errors.FailedPrecondition, match="its own callback"):
        client.pull("web:1", ask)


def test_an_interrupt_ends_the_call_and_takes_back_what_it_made(client: atoll.SyncClient, daemon: FakeDaemon) -> None:
    with client.run_pod() as pod:
        container = pod.run(IMAGE, ["sleep", "1000"])
        timer = threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            container.wait()
        timer.join()
        assert container.exec(["echo", "still"]).ok
    assert not daemon.pods


def test_after_its_end_every_call_says_so(daemon: FakeDaemon) -> None:
    client = atoll.connect_sync(daemon.socket, start=False)
    pod = client.run_pod()
    container = pod.run(IMAGE, ["sleep", "1000"])
    lines = container.logs(follow=True)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(container.wait)
        process = container.exec_stream(["cat"], stdin=True)
        process.started()
        client.close()
        with pytest.raises(errors.Unavailable, match="closed"):
            waiting.result(10)
    client.close()
    for ask in (client.pods, container.status, process.wait, lambda: next(lines)):
        with pytest.raises(errors.Unavailable, match="closed"):
            ask()
    assert not [thread for thread in threading.enumerate() if thread is client.portal._thread]


def test_a_daemon_that_is_not_there_is_told_and_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(errors.Unavailable, match="no daemon answers"):
        atoll.connect_sync(tmp_path / "none.sock", start=False)
    assert threading.active_count() == before


def test_a_client_that_nobody_closes_ends_when_it_is_collected(daemon: FakeDaemon) -> None:
    client = atoll.connect_sync(daemon.socket, start=False)
    pod = client.run_pod()
    thread = client.portal._thread
    del client
    gc.collect()
    assert pod.status().state == "ready", "what was made by it still needs its loop"
    del pod
    gc.collect()
    assert not thread.is_alive()


def test_a_program_that_closes_nothing_ends(daemon: FakeDaemon) -> None:
    script = f"""
import atoll
client = atoll.connect_sync({str(daemon.socket)!r}, start=False)
container = client.run_pod().run({IMAGE!r}, ["sleep", "1000"])
print(container.exec(["echo", "done"]).text, end="")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
