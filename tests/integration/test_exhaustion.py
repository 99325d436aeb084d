"""What runs out, is slow or jumps: disks, descriptors, pids, memory, the clock.

What cannot be done is refused in words, what runs goes on, and once there is room again everything works and the books
are clean.

A slow disk and a clock that jumps are made for the daemon alone, by a library in front of the C library's: nothing else
on the machine may be touched. Loss of power is `tests/powerloss`, a daemon that starts on a full disk
`test_full_disk_restart.py`, the database alone `test_database_full.py`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected, eventually, refused
from tests.integration.leaks import CGROUPS, wait_until
from tests.integration.test_full_disk_restart import Disk
from tests.integration.test_pods import Plugin

NO_SPACE = "No space left on device"
REFUSED = tuple(code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN))


@contextmanager
def small(folder: Path, size: str) -> Iterator[Disk]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def served(roots: Roots, *wrapper: str) -> Iterator[tuple[Daemon, CRI]]:
    """A daemon of the test's own; after it nothing may be left."""
    daemon = Daemon(roots)
    daemon.wrapper = wrapper
    daemon.start()
    try:
        with connected(roots) as cri:
            try:
                yield daemon, cri
            finally:
                for pod in cri.list_pods():
                    cri.remove_pod(pod.id)
            assert wait_until(lambda: cri.fsck() == [], within=30.0), cri.fsck()
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


def works(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    assert cri.wait(cri.script(pod, "exit 4")).code == 4
    cri.remove_pod(pod)


@pytest.mark.parametrize(("where", "words"), [("root", "the disk is full"), ("state", NO_SPACE)])
def test_a_disk_that_is_full_refuses_what_is_new_and_keeps_what_runs(roots: Roots, where: str, words: str) -> None:
    folder = roots.root if where == "root" else roots.state
    with small(folder, "24m") as disk, served(roots) as (_, cri):
        pod = cri.run_pod()
        container = cri.script(pod, "sleep 1000")
        disk.fill()
        try:
            with refused(REFUSED, words):
                cri.run_pod()
        except BaseException:
            disk.free()
            raise
        assert cri.pod_status(pod).state == pb.SANDBOX_READY
        assert cri.status(container).state == pb.CONTAINER_RUNNING
        if where == "root":
            assert cri.sh(container, "echo well") == "well"
        else:  # the OCI runtime writes the pid of an exec there
            with refused(grpc.StatusCode.UNKNOWN, "crun exec", NO_SPACE):
                cri.exec(container, "true")
        disk.free()
        assert cri.sh(container, "echo well") == "well"
        works(cri)


def test_images_on_a_disk_that_is_full_are_not_pulled_in_part(roots: Roots) -> None:
    images = roots.root / "images"
    images.mkdir()
    archive = roots.base / "one.tar"
    with small(images, "16m") as disk, served(roots) as (daemon, cri):
        saved = daemon.run("save", "atoll/busybox", "-o", str(archive))
        assert saved.returncode == 0, saved.stderr
        assert daemon.run("rmi", "atoll/busybox").returncode == 0
        before = {image.id for image in cri.list_images()}
        disk.fill()
        loaded = daemon.run("load", str(archive))
        assert loaded.returncode != 0
        assert "no space left" in loaded.stderr, loaded.stderr
        assert {image.id for image in cri.list_images()} == before
        disk.free()
        assert daemon.run("load", str(archive)).returncode == 0
        works(cri)


def test_a_disk_that_turns_read_only_refuses_and_heals(roots: Roots) -> None:
    images = roots.root / "images"
    images.mkdir()
    with small(images, "24m"), served(roots) as (_, cri):
        pod = cri.run_pod()
        container = cri.script(pod, "sleep 1000")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(images)], check=True)
        try:
            with refused(REFUSED, "Read-only file system"):
                cri.create(pod, cri.container_config("true"))
            assert cri.sh(container, "echo well") == "well"
        finally:
            subprocess.run(["mount", "-o", "remount,bind,rw", str(images)], check=True)
        works(cri)


def test_descriptors_that_run_out(roots: Roots) -> None:
    with served(roots, "prlimit", "--nofile=192:192") as (daemon, cri):
        pod = cri.run_pod()
        container = cri.script(pod, "sleep 1000")
        with ExitStack() as stack:
            held = 0
            while held < 400 and len(os.listdir(f"/proc/{daemon.pid}/fd")) < 190:
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.settimeout(0.5)
                try:
                    one.connect(str(roots.socket))
                except OSError:
                    break
                held += 1
            assert held > 20
            with refused(REFUSED):
                for _ in range(20):
                    cri.run_pod(cri.pod_config(network=True))
            assert cri.pod_status(pod).state == pb.SANDBOX_READY
            assert cri.status(container).state == pb.CONTAINER_RUNNING
        eventually(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < 120, "the descriptors are closed", within=30.0)
        assert cri.sh(container, "echo well") == "well"
        works(cri)


def test_pids_that_run_out(roots: Roots) -> None:
    top = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
    tight = top / f"{roots.prefix}-tight"
    tight.mkdir()
    try:
        with served(roots) as (daemon, cri):
            pod = cri.run_pod()
            container = cri.script(pod, "sleep 1000")
            family = [daemon.pid, *children(daemon.pid)]
            for pid in family:
                (tight / "cgroup.procs").write_text(str(pid))
            (tight / "pids.max").write_text((tight / "pids.current").read_text())
            with refused(REFUSED):
                for _ in range(3):
                    cri.run_pod(cri.pod_config(network=True))
            assert cri.status(container).state == pb.CONTAINER_RUNNING
            assert cri.pod_status(pod).state == pb.SANDBOX_READY
            (tight / "pids.max").write_text("max")
            eventually(lambda: cri.sh(container, "echo well") == "well", "execs work again")
            works(cri)
    finally:
        for pid in (tight / "cgroup.procs").read_text().split():
            (top / "cgroup.procs").write_text(pid)
        wait_until(lambda: not (tight / "cgroup.procs").read_text())
        tight.rmdir()


def children(pid: int) -> list[int]:
    """Every descendant of a process."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
            some = [int(one) for one in (task / "children").read_text().split()]
            found += some
            waiting += some
    return found


def test_a_cgroup_at_its_memory_limit_is_the_pods_own_trouble(roots: Roots) -> None:
    with served(roots) as (_, cri):
        pod, other = cri.run_pod(), cri.run_pod()
        probe = cri.script(other, "sleep 1000")
        config = cri.container_config("/bin/sh", "-c", "while :; do tail /dev/zero; done")
        config.linux.resources.memory_limit_in_bytes = 16 << 20
        hungry = cri.create(pod, config)
        cri.start(hungry)
        took: list[float] = []
        for _ in range(10):
            begun = time.monotonic()
            assert cri.sh(probe, "echo well") == "well"
            took.append(time.monotonic() - begun)
        assert max(took) < 5.0, took
        cri.remove_pod(pod)


# --- made for the daemon alone ---

PRELOAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double told(const char *name) {
  char path[4096], text[64];
  const char *folder = getenv("ATOLL_TEST_PRELOAD");
  if (!folder || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  if (size <= 0) return 0;
  text[size] = 0;
  return atof(text);
}

int clock_gettime(clockid_t id, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(id, at);
  if (done == 0 && id == CLOCK_REALTIME) at->tv_sec += (time_t)told("clock");
  return done;
}

#define SLOW(name) int name(int fd) { \
  static int (*real)(int); \
  if (!real) real = dlsym(RTLD_NEXT, #name); \
  usleep((useconds_t)(told("disk") * 1000000)); \
  return real(fd); }
SLOW(fsync)
SLOW(fdatasync)
SLOW(syncfs)
"""

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the library in front")


@pytest.fixture
def preloaded(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files `clock` and `disk` say, in seconds, how far off the clock and how slow the disk is."""
    folder = roots.base / "preload"
    folder.mkdir()
    source = folder / "preload.c"
    source.write_text(PRELOAD)
    library = folder / "preload.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    monkeypatch.setenv("ATOLL_TEST_PRELOAD", str(folder))
    return folder


def under(folder: Path) -> tuple[str, str]:
    return "env", f"LD_PRELOAD={folder}/preload.so"


@needs_compiler
def test_a_disk_that_takes_seconds_holds_up_only_who_writes(roots: Roots, preloaded: Path) -> None:
    with served(roots, *under(preloaded)) as (_, cri):
        container = cri.script(cri.run_pod(), "sleep 1000")
        (preloaded / "disk").write_text("1.0")
        begun = time.monotonic()
        asked = [pb.RunPodSandboxRequest(config=cri.pod_config()) for _ in range(4)]
        calls = [cri.runtime.future("RunPodSandbox", one, pb.RunPodSandboxResponse) for one in asked]
        took: list[float] = []
        while not all(call.done() for call in calls):
            at = time.monotonic()
            assert cri.sh(container, "echo well") == "well"
            took.append(time.monotonic() - at)
        slow_s = time.monotonic() - begun
        assert slow_s > 1.0, "the disk was not slow"
        assert max(took) < 3.0, took
        assert all(call.result().pod_sandbox_id for call in calls)
        (preloaded / "disk").unlink()


@needs_compiler
def test_a_clock_that_jumps_delays_no_debt_and_ends_nothing(roots: Roots, preloaded: Path) -> None:
    plugin = Plugin(roots)
    with served(roots, *under(preloaded)) as (_, cri):
        kept = cri.script(cri.run_pod(), "sleep 1000")
        for jump_s in (-86400, 86400):
            pod = cri.run_pod(cri.pod_config(network=True))
            plugin.fail("DEL")
            cri.remove_pod(pod)
            eventually(lambda: any("owed" in one.problem for one in cri.fsck()), "its network is owed")
            (preloaded / "clock").write_text(str(jump_s))
            plugin.work()
            eventually(lambda: cri.fsck() == [], "the debt is paid", within=20.0)
            assert cri.status(kept).state == pb.CONTAINER_RUNNING
            outcome = cri.exec(kept, "sleep", "0.2", timeout=5)
            assert outcome.code == 0, "an exec's time is no wall clock's"
        works(cri)
