"""A daemon that is killed and comes back while its disk is full: what runs stays usable, and all of it heals."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.container.checkpoint import FILE
from atoll.container.status import decode_status
from tests.integration.conftest import BIN, Daemon, Roots
from tests.integration.leaks import wait_until

SERVER = ("sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.05; done")
HEALED_WITHIN_S = 30.0


class Disk:
    """The small disk of a root folder."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(roots: Roots) -> Iterator[Disk]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(roots.root)], check=True)
    roots.write_config()
    with roots.config.open("a") as config:
        config.write("pool_size = 0\n")
    yield Disk(roots.root)
    subprocess.run(["umount", "-l", str(roots.root)], check=True)


@pytest.fixture
def started(roots: Roots, disk: Disk) -> Iterator[Daemon]:
    daemon = Daemon(roots)
    try:
        daemon.start()
        yield daemon
        if daemon.is_running():
            assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


def told(daemon: Daemon) -> dict[str, tuple[str, int, str]]:
    """State, exit code and reason of each container, by name."""
    pods = json.loads(daemon.run("ps", "--all", "--json").stdout)
    return {one["name"]: (one["state"], one["exit_code"], one["reason"]) for pod in pods for one in pod["containers"]}


def codes_on_disk(daemon: Daemon) -> list[int]:
    """The exit codes in the checkpoints of what has ended."""
    files = (daemon.roots.root / "containers").glob(f"*/{FILE}")
    found = [decode_status(file.read_bytes()) for file in files]
    return sorted(status.exit_code for status in found if status.finished_at)


def has_record(daemon: Daemon) -> bool:
    """Whether a pod is in the database, READY or not."""
    with sqlite3.connect(f"file:{daemon.roots.root}/state.db?mode=ro", uri=True) as connection:
        return connection.execute("SELECT count(*) FROM sandboxes").fetchone()[0] > 0


@pytest.mark.parametrize("options", [("--network", "none"), ()], ids=["no network", "bridge"])
def test_what_runs_stays_usable_and_its_exit_is_told(started: Daemon, disk: Disk, options: tuple[str, ...]) -> None:
    for name in ("a", "b"):
        done = started.run("run", "-d", "--name", name, *options, "atoll/busybox", *SERVER)
        assert done.returncode == 0, done.stderr
    disk.fill()
    started.kill()
    started.start()
    assert told(started) == {"a": ("running", 0, ""), "b": ("running", 0, "")}
    done = started.run("exec", "a", "echo", "here")
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
    assert started.run("exec", "a", "kill", "1").returncode == 0
    assert wait_until(lambda: told(started)["a"][0] == "exited", within=HEALED_WITHIN_S)
    known = told(started)["a"]
    assert known[1] == 6
    assert known[2] != "Unknown"
    started.kill()
    started.start()  # the exit is not on disk, and known all the same
    assert wait_until(lambda: told(started) == {"a": known, "b": ("running", 0, "")}, within=HEALED_WITHIN_S)
    assert codes_on_disk(started) == []
    disk.free()
    assert wait_until(lambda: codes_on_disk(started) == [6], within=HEALED_WITHIN_S)
    assert started.run("rm", "-f", "a", "b").returncode == 0
    assert wait_until(lambda: started.run("fsck").returncode == 0, within=HEALED_WITHIN_S)


@pytest.mark.parametrize("heal", ["wait", "run", "repair"])
def test_a_run_that_was_cut_short_is_freed(started: Daemon, disk: Disk, heal: str) -> None:
    plugin = started.roots.base / "bin" / "bridge"
    plugin.parent.mkdir()
    plugin.write_text("#!/bin/sh\nexec sleep 60\n")
    plugin.chmod(0o755)
    with subprocess.Popen(
        [str(BIN / "atoll"), "run", "--name", "u", "atoll/busybox", "true"],
        env={"ATOLL_SOCKET": str(started.roots.socket), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    ):
        assert wait_until(lambda: has_record(started), within=HEALED_WITHIN_S)
        started.kill()
    plugin.unlink()
    disk.fill()
    started.start()
    assert json.loads(started.run("ps", "--all", "--json").stdout) == []
    assert wait_until(lambda: "not freed yet, will be retried" in started.log_tail(), within=HEALED_WITHIN_S)
    assert "then its record and its name" in started.run("fsck").stdout
    refused = started.run("run", "--name", "u", "atoll/busybox", "true")
    assert refused.returncode != 0
    assert "stop and remove it first" not in refused.stderr
    disk.free()
    if heal == "repair":
        done = started.run("fsck", "--repair")
        assert done.returncode == 0, done.stdout
    elif heal == "wait":
        assert wait_until(lambda: not has_record(started), within=HEALED_WITHIN_S)
    done = started.run("run", "--rm", "--name", "u", "atoll/busybox", "echo", "again")
    assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
    assert wait_until(lambda: started.run("fsck").returncode == 0, within=HEALED_WITHIN_S)
