"""Every kind of leak, seeded by hand: found, explained, left alone by a look, repaired; and what is another's stays.

`test_fsck.py` has those that need a pod or a restart; here is the table of the rest, and the neighbours.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux import steps
from atoll.network.default import bridge_name
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI
from tests.integration.leaks import mount_points, read, wait_until

pytestmark = pytest.mark.shared_daemon

LOST = "cd" * 32
CRUN = shutil.which("crun") or "/usr/bin/crun"


def explained(cri: CRI, finding: own.Finding, kind: str, key: str, owner: str) -> None:
    assert (finding.kind, finding.problem.partition(":")[0], finding.key) == (kind, "stray", key)
    assert finding.remedy
    assert not finding.repaired
    assert finding.owner == owner


@dataclass(frozen=True, slots=True)
class Seed:
    """How a leak is planted; what fsck is to say; whether it is there."""

    kind: str
    key: str
    owner: str
    is_there: Callable[[], bool]


def _folder(roots: Roots) -> Seed:
    path = roots.root / "images" / "snapshots" / "999983"
    (path / "fs" / "deep").mkdir(parents=True)
    (path / "fs" / "deep" / "file").write_bytes(bytes(1 << 16))
    return Seed("folder", "999983", "", path.exists)


def _blob(roots: Roots) -> Seed:
    path = roots.root / "images" / "content" / "blobs" / "sha256" / LOST
    path.write_bytes(b"of no image")
    return Seed("blob", f"sha256:{LOST}", "", path.exists)


def _ingest_file(roots: Roots) -> Seed:
    path = roots.root / "images" / "content" / "ingest" / "blob-77777"
    path.write_bytes(b"half of it")
    return Seed("blob", "ingest/blob-77777", "", path.exists)


def _ingest_folder(roots: Roots) -> Seed:
    path = roots.root / "images" / "content" / "ingest" / "tmpabcdef"
    (path / "sub").mkdir(parents=True)
    return Seed("blob", "ingest/tmpabcdef", "", path.exists)


def _netns(roots: Roots) -> Seed:
    pin = roots.state / "netns" / LOST
    pin.parent.mkdir(exist_ok=True)
    pin.touch()
    subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(pin)], check=True)
    return Seed("network", LOST, f"net.{LOST}", pin.exists)


def _mount(roots: Roots) -> Seed:
    point = roots.root / "containers-aside"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    return Seed("mount", str(point), "", lambda: str(point) in mount_points())


def _pod_files(roots: Roots) -> Seed:
    path = roots.state / "pods" / LOST
    path.mkdir()
    (path / "resolv.conf").touch()
    return Seed("pod-files", LOST, LOST, path.exists)


def _bundle(roots: Roots) -> Seed:
    path = roots.state / "bundles" / LOST
    (path / "rootfs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path / "rootfs")], check=True)
    return Seed("bundle", LOST, LOST, path.exists)


def _log(roots: Roots) -> Seed:
    """A log without a folder of its client's is in the folder of the checkpoint."""
    path = roots.root / "containers" / LOST / "log"
    path.parent.mkdir()
    path.write_text("2026-01-01T00:00:00Z stdout F lost\n")
    return Seed("checkpoint", LOST, LOST, path.exists)


def _socket(roots: Roots) -> Seed:
    path = roots.state / "s" / ("1" * 32)
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(path))
    return Seed("socket", path.name, "", path.exists)


def _address(roots: Roots) -> Seed:
    lease = roots.state / "network" / "ipam" / "a-bridge" / "10.89.0.98"
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.write_text(f"{LOST}\r\neth0")
    return Seed("address", "a-bridge/10.89.0.98", LOST, lease.exists)


def _sandbox(roots: Roots) -> Seed:
    path = roots.state / "shims" / LOST
    path.mkdir()
    (path / "log").touch()
    return Seed("sandbox", LOST, LOST, path.exists)


def _runtime_state(roots: Roots) -> Seed:
    """A container in the OCI runtime's books whose bundle is gone."""
    bundle = roots.base / "oci-bundle"
    rootfs = bundle / "rootfs"
    rootfs.mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "sleep")
    subprocess.run([CRUN, "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/sleep", "1000"]}
    spec["linux"]["cgroupsPath"] = f"/{roots.prefix}-seed"
    (bundle / "config.json").write_text(json.dumps(spec))
    root = roots.state / "oci"
    with open(os.devnull, "r+b") as null:
        subprocess.run(
            [CRUN, "--root", str(root), "create", "--bundle", str(bundle), f"{roots.prefix}-seed"],
            check=True, stdin=null, stdout=null, stderr=null, start_new_session=True,
        )  # fmt: skip
    shutil.rmtree(bundle)
    record = root / f"{roots.prefix}-seed"
    return Seed("oci", f"oci/{roots.prefix}-seed", "", record.exists)


def _link(roots: Roots) -> Seed:
    bridge = bridge_name(roots.root)
    first, second = f"{roots.prefix}a", f"{roots.prefix}b"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "add", first, "type", "veth", "peer", "name", second], check=True)
    subprocess.run(["ip", "link", "set", first, "master", bridge], check=True)
    return Seed("link", first, "", lambda: Path(f"/sys/class/net/{first}").exists())


SEEDS = (
    _folder, _blob, _ingest_file, _ingest_folder, _netns, _mount, _pod_files, _bundle, _log, _socket, _address,
    _sandbox, _runtime_state, _link,
)  # fmt: skip


@pytest.mark.parametrize("plant", SEEDS, ids=lambda plant: plant.__name__.strip("_"))
def test_what_is_seeded_is_found_explained_and_repaired(cri: CRI, roots: Roots, plant: Callable[[Roots], Seed]) -> None:
    try:
        seed = plant(roots)
        assert seed.is_there()
        for _ in range(2):
            (finding,) = cri.fsck()
            explained(cri, finding, seed.kind, seed.key, seed.owner)
        assert seed.is_there(), "a look has changed something"
        (finding,) = cri.fsck(repair=True)
        assert finding.repaired, finding
        assert wait_until(lambda: not seed.is_there())
        assert cri.fsck() == []
    finally:
        subprocess.run(["ip", "link", "delete", bridge_name(roots.root)], check=False, capture_output=True)
        for leftover in (roots.root / "containers-aside", roots.state / "network"):
            shutil.rmtree(leftover, ignore_errors=True)


def test_a_name_that_a_cut_short_run_holds_is_freed(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    config = cri.pod_config()
    pod = cri.run_pod(config)
    daemon.kill()
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as db:
        # Its record says no more that it was ever ready.
        (extensions,) = db.execute("SELECT extensions FROM sandboxes WHERE id = ?", (pod,)).fetchone()
        said = {name: value for name, value in json.loads(extensions).items() if not name.endswith(".made")}
        assert len(said) == len(json.loads(extensions)) - 1
        db.execute("UPDATE sandboxes SET extensions = ? WHERE id = ?", (json.dumps(said).encode(), pod))
    daemon.start()
    assert wait_until(lambda: cri.fsck() == [], within=20.0), cri.fsck()
    assert cri.list_pods() == []
    again = cri.run_pod(config)
    assert again != pod
    cri.remove_pod(again)


def test_a_relay_whose_pod_is_gone(cri: CRI, roots: Roots) -> None:
    """Known by its name and its working folder, which is below ours and gone; another's of that name is not touched."""
    script = "import ctypes, os, sys, time; ctypes.CDLL(None).prctl(15, b'atoll-relay'); time.sleep(1000)"
    ours, theirs = roots.state / "relays" / LOST, roots.base / "theirs"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for folder in (ours, theirs):
            folder.mkdir(parents=True)
            started.append(subprocess.Popen(["/usr/bin/python3", "-c", script], cwd=folder))
        assert wait_until(lambda: all(read(one.pid, "comm").strip() == b"atoll-relay" for one in started))
        for folder in (ours, theirs):
            folder.rmdir()
        (finding,) = cri.fsck()
        explained(cri, finding, "shim", str(started[0].pid), LOST)
        assert all(one.repaired for one in cri.fsck(repair=True))
        assert started[0].wait(5) == -9
        assert started[1].poll() is None
        assert cri.fsck() == []
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_a_holder_of_namespaces_whose_pod_is_gone(cri: CRI, roots: Roots) -> None:
    """Known by its command line; one of another daemon, and one that its pod's record names, are not touched."""
    kept = cri.run_pod(cri.pod_config(network=True))
    held = int(str(cri.pod_info(kept)["pid"]))
    places = (roots.state / "shims" / LOST, roots.base / "shims" / LOST)
    pids = [steps.spawn(steps.program((), 2), (), (str(place),)) for place in places]
    try:
        (finding,) = cri.fsck()
        explained(cri, finding, "shim", str(pids[0]), LOST)
        assert all(one.repaired for one in cri.fsck(repair=True))
        assert os.waitpid(pids[0], 0)[1] == 9
        assert os.waitpid(pids[1], os.WNOHANG) == (0, 0)
        assert cri.fsck() == []
        assert Path(f"/proc/{held}/ns/net").exists()
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    cri.remove_pod(kept)


def test_after_a_kill_fsck_is_clean_at_once(cri: CRI, daemon: Daemon) -> None:
    """What a removal had taken already is struck off before anybody is told of it."""
    pods = [cri.run_pod() for _ in range(4)]
    requests = [pb.RemovePodSandboxRequest(pod_sandbox_id=pod) for pod in pods]
    calls = [cri.runtime.future("RemovePodSandbox", one, pb.RemovePodSandboxResponse) for one in requests]
    time.sleep(0.01)
    daemon.kill()
    for call in calls:
        with suppress(grpc.RpcError):
            call.result()
    daemon.start()
    assert [one for one in cri.fsck() if "vanished" in one.problem] == []
    for pod in cri.list_pods():
        cri.remove_pod(pod.id)


# --- neighbours ---

CTR = shutil.which("ctr")
CONTAINERD = shutil.which("containerd")


@contextmanager
def containerd(roots: Roots) -> Iterator[list[str]]:
    """A containerd of its own below the test's folders; `ctr` for it."""
    base = roots.base / "containerd"
    base.mkdir()
    config = base / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{base}/root"\nstate = "{base}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\n  address = "{base}/sock"\n[ttrpc]\n  address = "{base}/ttrpc"\n'
    )
    assert CONTAINERD is not None
    with (base / "log").open("wb") as log:
        process = subprocess.Popen([CONTAINERD, "-c", str(config)], stdout=log, stderr=log)
    try:
        ctr = [str(CTR), "-a", f"{base}/sock", "-n", roots.prefix]
        assert wait_until(lambda: subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode == 0)
        yield ctr
    finally:
        process.terminate()
        process.wait()


def test_the_containers_of_a_containerd_and_what_is_named_like_dockers_stay(cri: CRI, roots: Roots) -> None:
    rootfs = roots.base / "theirs-root"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "sleep")
    docker = [roots.base / "docker" / name for name in ("containers", "overlay2")]
    for folder in docker:
        (folder / LOST).mkdir(parents=True)
    pin = roots.base / "docker-netns"
    pin.touch()
    link = f"{roots.prefix}d"
    with containerd(roots) as ctr:
        name = f"{roots.prefix}-theirs"
        run = [*ctr, "run", "--detach", "--rootfs", "--cgroup", f"/{roots.prefix}-theirs", str(rootfs), name]
        try:
            subprocess.run([*run, "/bin/sleep", "1000"], check=True)
            subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(pin)], check=True)
            subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
            mine = cri.run_pod()
            before = subprocess.run([*ctr, "tasks", "ls"], check=True, capture_output=True, text=True).stdout
            assert "RUNNING" in before
            (roots.state / "pods" / LOST).mkdir()
            assert [one.key for one in cri.fsck(repair=True)] == [LOST]
            assert subprocess.run([*ctr, "tasks", "ls"], check=True, capture_output=True, text=True).stdout == before
            assert all((folder / LOST).is_dir() for folder in docker)
            assert str(pin) in mount_points()
            assert Path(f"/sys/class/net/{link}").exists()
            cri.remove_pod(mine)
        finally:
            subprocess.run([*ctr, "tasks", "kill", "-s", "KILL", name], check=False, capture_output=True)
            wait_until(
                lambda: subprocess.run([*ctr, "tasks", "rm", name], check=False, capture_output=True).returncode == 0
            )
            subprocess.run([*ctr, "containers", "rm", name], check=False, capture_output=True)
            subprocess.run(["umount", str(pin)], check=False)
            subprocess.run(["ip", "link", "delete", link], check=False)
    for line in reversed(mount_points()):
        if line.startswith(f"{roots.base}/containerd"):
            subprocess.run(["umount", "-l", line], check=False)
    shutil.rmtree(roots.base / "containerd")
    shutil.rmtree(roots.base / "docker")
    shutil.rmtree(rootfs)
    pin.unlink()
