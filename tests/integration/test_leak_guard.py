"""The guard finds a leak of every kind, blames nobody else for it, and takes it away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Roots
from tests.integration.leaks import CGROUPS, Footprint, Machine, own_fds, wait_until
from tests.integration.shared import Shared


@pytest.fixture
def mine(leak_guard: Footprint) -> Footprint:
    """A footprint inside the guarded one, so that what a test leaks on purpose has gone when the guard looks."""
    prefix = f"{leak_guard.prefix}x"
    return Footprint(prefix=prefix, folders=(), fds_before=own_fds())


def gone(footprint: Footprint) -> bool:
    footprint.remove()
    return wait_until(lambda: not footprint.leaks())


def test_clean_test_has_no_leak(mine: Footprint) -> None:
    assert mine.leaks() == []


def test_orphan_is_found_by_its_environment(mine: Footprint) -> None:
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(300)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "X": mine.prefix})
    assert [leak.split()[0] for leak in mine.leaks()] == ["process"]
    assert gone(mine)


def test_orphan_is_found_by_its_root(mine: Footprint) -> None:
    folder = Path("/var/tmp", mine.prefix)
    folder.mkdir()
    shutil.copy("/bin/busybox", folder / "sleep")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    shell = subprocess.Popen(["/bin/busybox", "sh"], stdin=subprocess.PIPE, env={})
    try:
        assert shell.stdin is not None
        shell.stdin.write(f"exec chroot {folder} /sleep 300\n".encode())
        shell.stdin.close()
        assert wait_until(lambda: Path(f"/proc/{shell.pid}/cmdline").read_bytes() == b"/sleep\x00300\x00")
        assert mine.processes() == [shell.pid]
    finally:
        shell.kill()
        shell.wait()
    assert gone(mine)


def test_mount_and_stray_folder_are_found(mine: Footprint) -> None:
    folder = Path("/var/tmp", mine.prefix)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    assert mine.leaks() == [f"mount {folder}", f"file {folder}"]
    assert gone(mine)
    assert not folder.exists()


def test_named_network_namespace_is_found(mine: Footprint) -> None:
    subprocess.run(["ip", "netns", "add", mine.prefix], check=True)
    assert f"mount /run/netns/{mine.prefix}" in mine.leaks()
    assert gone(mine)


def test_bridge_and_what_hangs_on_it_are_found(mine: Footprint) -> None:
    bridge, port = f"{mine.prefix}b", f"p{os.getpid()}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "add", port, "type", "veth", "peer", f"{mine.prefix}v"], check=True)
    subprocess.run(["ip", "link", "set", port, "master", bridge], check=True)
    assert mine.leaks() == [f"link {bridge}", f"link {mine.prefix}v", f"link {port}"]
    assert gone(mine)


def test_cgroup_is_found(mine: Footprint) -> None:
    hierarchy = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
    inner = hierarchy / mine.prefix / "pod"
    inner.mkdir(parents=True)
    assert mine.leaks() == [f"cgroup {inner}", f"cgroup {inner.parent}"]
    assert gone(mine)


def test_firewall_table_is_found(mine: Footprint) -> None:
    subprocess.run(["nft", "add", "table", "inet", mine.prefix], check=True)
    subprocess.run(["nft", "add", "chain", "inet", mine.prefix, "pods"], check=True)
    try:
        assert f"firewall: table inet {mine.prefix}: chain pods {{" in mine.leaks()
    finally:
        subprocess.run(["nft", "delete", "table", "inet", mine.prefix], check=True)
    assert mine.leaks() == []


def test_own_descriptor_is_found(mine: Footprint) -> None:
    reader, writer = os.pipe()
    assert [leak.split()[:2] for leak in mine.leaks()] == [["file", "descriptor"]] * 2
    os.close(reader)
    os.close(writer)
    assert mine.leaks() == []


def test_machine_sees_what_no_prefix_tells(mine: Footprint) -> None:
    before = Machine.now()
    subprocess.run(["ip", "link", "add", f"q{os.getpid()}", "type", "bridge"], check=True)
    try:
        assert f"link q{os.getpid()}" in Machine.now().leaks_since(before)
    finally:
        subprocess.run(["ip", "link", "delete", f"q{os.getpid()}"], check=True)


def test_roots_are_private_and_short_enough_for_a_socket(roots: Roots) -> None:
    assert roots.base.stat().st_mode & 0o777 == 0o700
    assert roots.state.stat().st_mode & 0o777 == 0o711  # as the daemon makes it: users of pods pass through it
    assert len(str(roots.socket)) < 60
    assert len(roots.bridge) <= 15


@pytest.fixture
def kept() -> Iterator[Shared]:
    """One of this test's own."""
    kept = Shared()
    yield kept
    kept.retire()


def test_a_shared_daemon_goes_on_where_it_is_as_it_was(request: pytest.FixtureRequest, kept: Shared) -> None:
    footprint, pid = kept.take(request.node), kept.daemon.pid
    assert kept.daemon.run("run", "--network", "none", "atoll/busybox", "true").returncode == 0
    (kept.roots.base / "a file of a test").write_text("")
    kept.judge(request.node, failed=False)
    assert (kept.take(request.node), kept.daemon.pid) == (footprint, pid)
    assert not (kept.roots.base / "a file of a test").exists()
    with kept.roots.config.open("a") as file:
        file.write("# changed\n")
    kept.judge(request.node, failed=False)
    assert not Path(f"/proc/{pid}").exists()
    assert kept.take(request.node) != footprint


def test_a_shared_daemon_is_judged_after_each_test(request: pytest.FixtureRequest, kept: Shared) -> None:
    kept.take(request.node)
    assert kept.daemon.run("run", "-d", "--network", "none", "atoll/busybox", "sleep", "1000").returncode == 0
    with pytest.raises(pytest.fail.Exception, match="pods are left"):
        kept.judge(request.node, failed=False)
    kept.take(request.node)
    leaf = CGROUPS / "memory" / kept.roots.prefix / "leaf"
    leaf = leaf if leaf.parent.parent.is_dir() else CGROUPS / kept.roots.prefix / "leaf"
    leaf.mkdir(parents=True)
    with pytest.raises(pytest.fail.Exception, match=r"cgroup .*leaf"):
        kept.judge(request.node, failed=False)
    kept.take(request.node)
    point = kept.roots.base / "point"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    with pytest.raises(pytest.fail.Exception, match=r"mount .*point"):
        kept.judge(request.node, failed=False)
    kept.take(request.node)
    with pytest.raises(pytest.fail.Exception, match="file descriptor"), open("/dev/null", "rb"):
        kept.judge(request.node, failed=False)
