"""What is done to running containers from the command line: signals, pauses, limits, files, ports, events."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon
from tests.integration.leaks import wait_until

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
NONE = ("--network", "none")
COUNT = "n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.05; done"


def command(daemon: Daemon, *words: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket), "NO_COLOR": "1"}
    return [sys.executable, "-m", "atoll.cli.main", *words], environment


def test_a_paused_container_stands_still_and_goes_on(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", COUNT)
    assert wait_until(lambda: daemon.run("exec", "x", "cat", "/tmp/n").stdout != "")
    assert daemon.run("pause", "x").stdout == "x\n"
    states = {one["state"] for one in json.loads(daemon.run("top", "--json", "x").stdout)}
    assert states == {"D"}
    assert "(paused)" in daemon.run("ps").stdout
    assert daemon.run("pause", "x").returncode == 125
    assert daemon.run("resume", "x").returncode == 0
    assert "(paused)" not in daemon.run("ps").stdout
    before = daemon.run("exec", "x", "cat", "/tmp/n").stdout
    assert wait_until(lambda: daemon.run("exec", "x", "cat", "/tmp/n").stdout != before)
    daemon.run("rm", "-f", "x")


def test_signals_ends_and_events(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
    words, environment = command(daemon, "wait", "x")
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert daemon.run("kill", "-s", "NOPE", "x").returncode == 125
        assert daemon.run("kill", "-s", "TERM", "x").stdout == "x\n"
        assert waiting.communicate(timeout=30)[0] == "9\n"
    assert "does not run" in daemon.run("kill", "x").stderr
    told = [
        json.loads(line)
        for line in daemon.run("events", "--since", "1h", "--until", "0s", "--json").stdout.splitlines()
    ]
    mine = [(one["type"], one["container_name"]) for one in told if one["pod_name"] == "x"][-5:]
    assert mine == [("created", ""), ("started", ""), ("created", "x"), ("started", "x"), ("stopped", "x")]
    daemon.run("rm", "-f", "x")
    only = daemon.run("events", "--since", "1h", "--until", "0s", "-f", "pod=x", "-f", "type=deleted").stdout
    assert [line.split()[1] for line in only.splitlines()][-1] == "deleted"
    assert daemon.run("events", "-f", "nope=1").returncode == 125


def test_limits_change_while_it_runs(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", "-m", "64m", IMAGE, "sleep", "1000")
    assert daemon.run("update", "x").returncode == 2
    assert daemon.run("update", "-m", "32m", "--cpus", "0.25", "--pids", "20", "x").returncode == 0
    script = """
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
    cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max
    cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max
    """
    assert daemon.run("exec", "x", "sh", "-c", script).stdout.split() == [str(32 << 20), "25000", "20"]
    daemon.run("rm", "-f", "x")


def test_options_of_run_beyond_the_limits(daemon: Daemon, tmp_path: Path) -> None:
    variables = tmp_path / "env"
    variables.write_text("# a comment\nA=file\nB=file too\n\n")
    script = "echo $A; echo $B; ulimit -n; grep ' /x ' /proc/mounts; grep CapEff /proc/self/status | cut -f2"
    options = ("--env-file", str(variables), "-e", "A=option", "--ulimit", "nofile=77", "--tmpfs", "/x:size=1m")
    done = daemon.run("run", *NONE, *options, "--cap-drop", "ALL", "--cap-add", "NET_RAW", IMAGE, "sh", "-c", script)
    lines = done.stdout.splitlines()
    assert (lines[:3], lines[-1]) == (["option", "file too", "77"], f"{1 << 13:016x}")
    assert "size=1024k" in lines[3]
    assert "nodev" in lines[3]


def test_an_init_reaps_what_its_command_leaves(daemon: Daemon) -> None:
    """A command that never waits for anybody; without an init it is the first process, and its orphans stay."""
    command = ("sh", "-c", "(sleep 0.2; true) & exec sleep 1000")
    daemon.run("run", "-d", *NONE, "--name", "without", IMAGE, *command)
    daemon.run(
        "run", "-d", *NONE, "--name", "with", "--init", IMAGE, "sh", "-c", "(sh -c 'sleep 0.2 &'); exec sleep 1000"
    )

    def states(name: str) -> list[str]:
        return daemon.run("exec", name, "ps", "-o", "stat,comm").stdout.splitlines()[1:]

    assert wait_until(lambda: any(line.startswith("Z") for line in states("without")), within=30)
    assert wait_until(lambda: [line.split()[1] for line in states("with")] == ["pause", "sleep", "ps"], within=30)
    assert daemon.run("exec", "with", "sh", "-c", "cat /proc/1/comm").stdout == "pause\n"
    daemon.run("rm", "-f", "with", "without")


def test_files_go_in_and_out_and_through_pipes(daemon: Daemon, tmp_path: Path) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("hello\n")
    assert daemon.run("cp", str(folder), "x:/tmp").returncode == 0
    assert daemon.run("exec", "x", "cat", "/tmp/folder/inner/file").stdout == "hello\n"
    assert daemon.run("cp", "x:/tmp/folder", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "inner" / "file").read_text() == "hello\n"
    words, environment = command(daemon, "cp", "x:/tmp/folder", "-")
    out = subprocess.run(words, env=environment, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert "folder/inner/file" in archive.getnames()
    words, environment = command(daemon, "cp", "-", "x:/root")
    assert subprocess.run(words, env=environment, input=out, check=False).returncode == 0
    assert daemon.run("exec", "x", "cat", "/root/folder/inner/file").stdout == "hello\n"
    assert daemon.run("cp", "x:/nope", str(tmp_path)).returncode == 125
    assert daemon.run("cp", "here", "there").returncode == 125
    daemon.run("rm", "-f", "x")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "link/out"])
def test_a_tar_on_stdin_stays_in_its_folder(daemon: Daemon, name: str) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/var/tmp"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo(name))
    words, environment = command(daemon, "cp", "-", "x:/root")
    done = subprocess.run(words, env=environment, input=made.getvalue(), capture_output=True, check=False)
    assert done.returncode == 125
    assert b"leads out of the archive" in done.stderr
    assert not Path("/var/tmp/out").exists()
    daemon.run("rm", "-f", "x")


def test_a_local_port_leads_to_the_pod(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "httpd", "-f", "-h", "/etc")
    words, environment = command(daemon, "port-forward", "x", ":80")
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as led:
        assert led.stdout is not None
        address = led.stdout.readline().split()[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://{address}/hostname", timeout=20) as answer:
                assert answer.read() == b"x\n"
        led.terminate()
        assert led.wait(30) == 143
    assert daemon.run("port-forward", "x", "nope").returncode == 125
    daemon.run("rm", "-f", "x")


# --- restarts, and ends that the daemon sees to ---


def test_a_restart_keeps_files_and_log_and_begins_the_command_anew(daemon: Daemon) -> None:
    script = "echo life >> /lives; cat /lives; exec sleep 1000"
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", script)
    assert wait_until(lambda: daemon.run("logs", "x").stdout == "life\n")
    assert daemon.run("restart", "-t", "0", "x").stdout == "x\n"
    assert wait_until(lambda: daemon.run("logs", "x").stdout == "life\n" * 3)
    daemon.run("stop", "-t", "0", "x")
    done = daemon.run("restart", "x", "none-such")
    assert (done.returncode, done.stdout) == (125, "")
    assert "atoll ps -a" in done.stderr
    daemon.run("rm", "-f", "x")


def test_a_detached_run_with_rm_goes_with_its_end_but_not_with_a_restart(daemon: Daemon) -> None:
    script = "trap 'exit 3' TERM; touch /up; while :; do sleep 0.05; done"
    assert daemon.run("run", "-d", "--rm", *NONE, "--name", "x", IMAGE, "sh", "-c", script).returncode == 0
    assert wait_until(lambda: daemon.run("exec", "x", "test", "-e", "/up").returncode == 0)
    assert daemon.run("restart", "x").returncode == 0
    assert daemon.run("exec", "x", "true").returncode == 0, "a restart is no end"
    assert daemon.run("kill", "x").returncode == 0
    assert wait_until(lambda: daemon.run("ps", "-aq").stdout == "")


def test_a_detached_exec_is_kept_with_what_it_wrote(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    kept = daemon.run("exec", "-d", "x", "sh", "-c", "echo out; echo err >&2; exit 4").stdout.strip()
    assert wait_until(lambda: "exited (4)" in daemon.run("process", "ls", "x").stdout)
    told = daemon.run("process", "logs", "-f", "x", kept)
    assert (told.returncode, told.stdout, told.stderr) == (0, "out\n", "err\n")
    assert "has no terminal" in daemon.run("process", "attach", "x", kept).stderr
    assert daemon.run("exec", "-d", "x", "none-such").returncode == 127
    assert daemon.run("process", "rm", "x", kept).returncode == 0
    assert daemon.run("process", "logs", "x", kept).returncode == 125
    daemon.run("rm", "-f", "x")


def test_a_run_with_a_time_to_live_goes_when_it_is_over(daemon: Daemon) -> None:
    assert daemon.run("run", "-d", "--ttl", "0.5", *NONE, "--name", "x", IMAGE, "sleep", "1000").returncode == 0
    assert daemon.run("run", "-d", "--idle", "100", *NONE, "--name", "y", IMAGE, "sleep", "1000").returncode == 0
    assert wait_until(lambda: daemon.run("inspect", "x").returncode == 125)
    leases = {one["pod_name"]: one for one in json.loads(daemon.run("lease", "ls", "--json").stdout)}
    assert leases["y"]["idle_s"] == 100
    assert "must be 0" in daemon.run("run", "--ttl", "-1", IMAGE).stderr
    daemon.run("rm", "-f", "y")
