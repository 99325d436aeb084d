"""`atoll lease`, `pool`, `snapshot`, `fork`, `rollback`, `diff` and `commit` against a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile

import pytest

from tests.integration.conftest import Daemon
from tests.integration.leaks import wait_until

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
NONE = ("--network", "none")


def told(daemon: Daemon, *arguments: str) -> str:
    done = daemon.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def completed(daemon: Daemon, line: str) -> list[str]:
    """What a shell offers at the end of a line, by the protocol of bash's completion."""
    return subprocess.run(
        [sys.executable, "-m", "atoll.cli.main"],
        env={
            **os.environ,
            "ATOLL_SOCKET": str(daemon.roots.socket),
            "_ATOLL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stdout.splitlines()


def test_pool_from_its_making_to_its_end(daemon: Daemon) -> None:
    assert told(daemon, "pool", "create", *NONE, "--size", "1", "-e", "A=b", "jobs", IMAGE, "sleep", "1000") == "jobs\n"
    assert wait_until(lambda: json.loads(told(daemon, "pool", "ls", "--json"))[0]["ready"] == 1, within=30)
    assert completed(daemon, "atoll pool acquire j") == ["jobs"]
    taken = json.loads(told(daemon, "pool", "acquire", "jobs", "--json", "--ttl", "500"))
    assert taken["start"]["rung"] == "pool"
    assert told(daemon, "exec", taken["container"], "sh", "-c", "echo $A") == "b\n"
    assert taken["name"] in told(daemon, "lease", "ls")
    assert "500 s left" in told(daemon, "lease", "renew", taken["name"])
    assert "100%" in told(daemon, "pool", "ls")
    assert told(daemon, "pool", "rm", "jobs") == "jobs\n"
    again = daemon.run("pool", "acquire", "jobs")
    assert (again.returncode, "there is none" in again.stderr) == (125, True)
    told(daemon, "rm", "-f", taken["name"])


def test_branches_from_a_snapshot_to_an_image(daemon: Daemon) -> None:
    told(daemon, "run", "-d", *NONE, "--name", "app", IMAGE, "sleep", "1000")
    told(daemon, "exec", "app", "sh", "-c", "echo good >/state; rm /etc/group; touch '/a\x1b[31mb'")
    assert told(daemon, "snapshot", "create", "app", "clean") == "clean\n"
    for line, offered in (
        ("atoll rollback app c", "clean"),
        ("atoll snapshot rm c", "clean"),
        ("atoll cp ap", "app:"),
        ("atoll pull atoll/b", "atoll/busybox"),
    ):
        assert offered in completed(daemon, line), line
    assert told(daemon, "diff", "app").splitlines() == ["A /a\\x1b[31mb", "C /etc", "D /etc/group", "A /state"]
    (fork,) = told(daemon, "fork", "clean").split()
    layer = daemon.roots.base / "layer.tar"
    told(daemon, "diff", fork, "--tar", str(layer))
    with tarfile.open(layer) as found:
        assert "etc/.wh.group" in found.getnames()
    refused = daemon.run("snapshot", "rm", "clean")
    assert (refused.returncode, "rest on it" in refused.stderr) == (125, True)
    told(daemon, "exec", "app", "sh", "-c", "echo bad >/state")
    back = told(daemon, "rollback", "-t", "0", "app/app", "clean").strip()
    image = told(daemon, "commit", "-c", 'CMD ["cat", "/state"]', back, "localhost/cli:v1").strip()
    assert told(daemon, "run", *NONE, "localhost/cli:v1") == "good\n"
    told(daemon, "rm", "-f", "app")
    assert told(daemon, "snapshot", "prune") == "clean\n"
    told(daemon, "rmi", image)
