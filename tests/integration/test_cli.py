"""The atoll command against a real daemon."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.integration.conftest import BIN, Daemon, Roots
from tests.integration.leaks import wait_until

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
NONE = ("--network", "none")


def spawn(daemon: Daemon, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A command that goes on while the test does something else."""
    return subprocess.Popen(
        [sys.executable, "-m", "atoll.cli.main", *arguments],
        env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket), "NO_COLOR": "1"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_in_the_foreground_shows_both_streams_ends_with_the_code_and_leaves_nothing(daemon: Daemon) -> None:
    done = daemon.run("run", *NONE, IMAGE, "sh", "-c", "echo out; echo err >&2; printf end; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\nend", "err\n")
    assert daemon.run("ps", "-aq").stdout == ""


def test_keep_keeps_the_pod_and_its_log(daemon: Daemon) -> None:
    assert daemon.run("run", *NONE, "--keep", "--name", "kept", IMAGE, "echo", "hello").returncode == 0
    assert "exited (0)" in daemon.run("ps", "-a").stdout
    assert daemon.run("logs", "kept").stdout == "hello\n"
    assert daemon.run("rm", "kept").returncode == 0


def test_life_of_a_detached_container(daemon: Daemon) -> None:
    done = daemon.run("run", "-d", "--name", "web", "-p", "18082:80", IMAGE, "httpd", "-f", "-h", "/etc")
    container = done.stdout.strip()
    assert (done.returncode, len(container)) == (0, 64)
    pod = json.loads(daemon.run("ps", "--json").stdout)[0]
    assert (pod["name"], pod["containers"][0]["id"], pod["containers"][0]["state"]) == ("web", container, "running")
    assert pod["ips"][0] in daemon.run("ps").stdout
    assert "18082->80/tcp" in daemon.run("ps").stdout
    fetch = "until wget -qO- http://127.0.0.1/hostname; do sleep 0.05; done 2>/dev/null"
    for name in ("web", container, container[:9]):
        assert daemon.run("exec", name, "sh", "-c", fetch).stdout == "web\n"
    told = json.loads(daemon.run("inspect", "--timings", "web").stdout)[0]
    assert told["state"] == "ready"
    assert {phase["operation"] for phase in told["phases"]} >= {"run", "create", "start"}
    assert "CNI" in daemon.run("phases", "web").stdout
    again = daemon.run("run", "-d", *NONE, "--name", "web", IMAGE, "sleep", "1")
    assert (again.returncode, again.stderr.partition(";")[0]) == (125, "atoll: name web: is taken by a pod")
    assert container[:13] in daemon.run("ps", "-q").stdout
    assert daemon.run("rm", "web").returncode == 125
    assert daemon.run("stop", "-t", "0", container[:12]).returncode == 0
    assert "exited (137)" in daemon.run("ps", "-a").stdout
    assert daemon.run("rm", container[:12]).returncode == 0
    assert daemon.run("ps", "-aq").stdout == ""


def test_exec_passes_streams_code_and_environment(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    done = daemon.run(
        "exec", "-i", "-e", "A=1", "-w", "/tmp", "x", "sh", "-c", "cat; echo $A; pwd >&2; exit 9", stdin="in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, "in\n1\n", "/tmp\n")
    done = daemon.run("exec", "x", "--", "echo", "--", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "-- a\n", "")
    done = daemon.run("exec", "--timeout", "0.5", "x", "sh", "-c", "echo so far; exec sleep 1000")
    assert (done.returncode, done.stdout) == (137, "so far\n")
    assert done.stderr == "atoll: exec in x: was killed, for it took longer than --timeout 0.5 s\n"
    assert daemon.run("rm", "-f", "x").returncode == 0


def test_stdin_of_run_reaches_the_container(daemon: Daemon) -> None:
    data = "x" * 100_000
    done = daemon.run("run", "-i", *NONE, IMAGE, "md5sum", stdin=data)
    assert (done.returncode, done.stdout.split()[0]) == (0, hashlib.md5(data.encode()).hexdigest())
    assert daemon.run("run", *NONE, IMAGE, "cat", stdin="not passed on").stdout == ""


def test_limits_are_kept(daemon: Daemon) -> None:
    done = daemon.run("run", *NONE, "-m", "16MiB", IMAGE, "sh", "-c", "exec tail /dev/zero")
    assert done.returncode == 137
    script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"
    assert daemon.run("run", *NONE, "--cpus", "0.25", IMAGE, "sh", "-c", script).stdout.strip() == "25000"
    script = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
    assert daemon.run("run", *NONE, "--pids-limit", "9", IMAGE, "--", "sh", "-c", script).stdout == "9\n"
    bomb = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait"
    done = daemon.run("run", *NONE, "--pids-limit", "9", IMAGE, "sh", "-c", bomb)
    assert done.returncode != 0
    assert "can't fork" in done.stderr


def test_signal_stops_a_foreground_run_and_leaves_nothing(daemon: Daemon) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    for number in (signal.SIGINT, signal.SIGTERM):
        running = spawn(daemon, "run", *NONE, IMAGE, "sh", "-c", script)
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
        assert (running.returncode, out, err) == (9, "bye\n", "")
    assert daemon.run("ps", "-aq").stdout == ""


def test_signal_before_the_container_runs_leaves_nothing(daemon: Daemon) -> None:
    for delay in (0.0, 0.02, 0.05, 0.1):
        running = spawn(daemon, "run", *NONE, IMAGE, "sleep", "1000")
        wait_until(functools.partial(catches, running.pid, signal.SIGTERM), within=20)
        time.sleep(delay)
        running.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two at once would be one signal, which asks the container politely for ten seconds
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
        # A second one that comes when all is done ends the interpreter itself.
        assert running.returncode in (130, 137, 143, -signal.SIGINT), err
        assert "Traceback" not in err
        assert daemon.run("ps", "-aq").stdout == ""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal: SigCgt of proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_output_is_what_the_container_wrote_byte_for_byte(daemon: Daemon) -> None:
    command = [str(BIN / "atoll"), "run", "--rm", *NONE, IMAGE, "cat", "/bin/busybox"]
    env = {**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)}
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=env)
    assert done.stdout == Path("/bin/busybox").read_bytes()  # which has every pair of bytes, CR LF too


def test_signals_reach_an_exec(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    script = "trap 'echo bye; exit 5' INT; echo up; while :; do sleep 0.05; done"
    running = spawn(daemon, "exec", "x", "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (5, "bye\n", "")
    daemon.run("rm", "-f", "x")


def test_broken_pipe_is_quiet_and_leaves_nothing(daemon: Daemon) -> None:
    running = spawn(daemon, "run", *NONE, IMAGE, "yes")
    assert running.stdout is not None
    assert running.stdout.readline() == "y\n"
    running.stdout.close()
    assert running.wait(30) == 141
    assert running.stderr is not None
    assert running.stderr.read() == ""
    running.stderr.close()
    assert daemon.run("ps", "-aq").stdout == ""


def test_follow_of_a_log_ends_with_the_container(daemon: Daemon) -> None:
    script = "for n in 1 2 3; do echo $n; sleep 0.1; done"
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", script)
    assert daemon.run("logs", "-f", "x").stdout == "1\n2\n3\n"
    assert daemon.run("logs", "--tail", "1", "x").stdout == "3\n"
    assert daemon.run("logs", "--since", "1h", "x").stdout == "1\n2\n3\n"
    assert daemon.run("rm", "x").returncode == 0


def test_load_run_and_remove_an_image(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    _docker_archive(archive, "local/hello:1")
    done = daemon.run("load", str(archive))
    assert (done.returncode, done.stdout) == (0, "docker.io/local/hello:1\n")
    assert "docker.io/local/hello:1" in daemon.run("images").stdout
    assert daemon.run("run", *NONE, "local/hello:1", "/bin/busybox", "echo", "hi").stdout == "hi\n"
    assert daemon.run("rmi", "local/hello:1").returncode == 0
    assert "hello" not in daemon.run("images").stdout


def _docker_archive(path: Path, name: str) -> None:
    """What `docker save` writes: a manifest, a config, one layer with the host's busybox."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
    blob = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(blob).hexdigest()}"]},
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": blob,
        "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode(),
    }
    with tarfile.open(path, "w") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


BAD_INPUT = [
    (("run", "127.0.0.1:1/no/such:image"), 125, ["127.0.0.1:1"]),
    (("run", "Bad!Ref"), 125, ["Bad!Ref", "not well formed"]),
    (("run", "Bad/Ref"), 125, ["Bad/Ref", "lower case"]),
    (("run", *NONE, "--runtime", "nope", IMAGE), 125, ["nope", "known are"]),
    (("run", *NONE, "-v", "/nope:/x", IMAGE, "true"), 125, ["/nope", "make it first"]),
    (("run", *NONE, IMAGE, "nope"), 127, ["nope"]),
    (("run", *NONE, IMAGE, "/etc/passwd"), 126, ["denied"]),
    (("exec", "nope", "ls"), 125, ["nope", "atoll ps -a"]),
    (("load", "/nope.tar"), 125, ["/nope.tar"]),
    (("load", "/etc/passwd"), 125, ["/etc/passwd"]),
    (("logs", "nope"), 125, ["nope"]),
]


def test_bad_input_is_one_line_and_leaves_nothing(daemon: Daemon) -> None:
    for arguments, code, words in BAD_INPUT:
        done = daemon.run(*arguments)
        told = (done.returncode, done.stdout, done.stderr.count("\n"), done.stderr[:7])
        assert told == (code, "", 1, "atoll: "), arguments
        assert [word for word in words if word not in done.stderr] == [], arguments
    assert daemon.run("ps", "-aq").stdout == ""
    assert not Path("/nope").exists()


def test_port_in_use_is_told_and_leaves_nothing(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    assert daemon.run("run", "-d", "--name", "one", "-p", f"{free}:80", IMAGE, "sleep", "1000").returncode == 0
    done = daemon.run("run", "-d", "--name", "two", "-p", f"{free}:80", IMAGE, "sleep", "1000")
    assert done.returncode == 125
    assert f"host port {free}/" in done.stderr.lower()
    for address in ("198.51.100.7", "2001:db8::7"):  # set aside for documents: no host has them
        done = daemon.run("run", "-d", "--name", "two", "-p", f"[{address}]:18084:80", IMAGE, "sleep", "1000")
        assert (done.returncode, f"the host has no address {address}" in done.stderr) == (125, True), done.stderr
    assert len(daemon.run("ps", "-aq").stdout.split()) == 1
    assert daemon.run("rm", "-fa").returncode == 0


def test_daemon_that_dies_under_a_command_is_told(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", "echo up; sleep 1000")
    following = spawn(daemon, "logs", "-f", "x")
    running = spawn(daemon, "exec", "x", "sh", "-c", "echo up; sleep 1000")
    for command in (following, running):
        assert command.stdout is not None
        assert command.stdout.readline() == "up\n"  # it is connected
    daemon.kill()
    for command in (following, running):
        _, err = command.communicate(timeout=30)
        assert (command.returncode, err.count("\n")) == (125, 1)
        assert "went away" in err
    daemon.start()
    wait_until(lambda: daemon.run("rm", "-f", "x").returncode == 0)


def test_two_daemons_are_independent_and_one_folder_has_one(daemon: Daemon) -> None:
    roots = daemon.roots
    done = subprocess.run(
        [sys.executable, "-m", "atoll.cli.main", "serve", "--state", str(roots.state), "--root", str(roots.root)],
        env={**os.environ, "ATOLL_SOCKET": str(roots.state / "other.sock")},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 125
    assert "another atoll daemon" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_finds_this_host_fit() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "atoll.cli.main", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    checks = json.loads(done.stdout)
    assert done.returncode == 0, checks
    assert {"kernel", "cgroups", "overlayfs", "CNI plugins", "firewall"} <= {one["name"] for one in checks}
    assert all(one["fix"] for one in checks if one["verdict"] == "missing")


def test_doctor_looks_where_it_is_told(roots: Roots) -> None:
    words = ["--root", str(roots.root), "--state", str(roots.state), "--socket", str(roots.socket)]
    done = subprocess.run(
        [sys.executable, "-m", "atoll.cli.main", "doctor", "--json", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {one["name"]: one for one in json.loads(done.stdout)}
    assert checks["daemon"]["found"] == f"none at {roots.socket}"
    assert str(roots.root) in checks["disk of the root"]["found"]
    assert not roots.socket.exists(), "it starts none"


def test_doctor_looks_at_the_disks_of_the_daemon_that_answers(daemon: Daemon) -> None:
    checks = {one["name"]: one["found"] for one in json.loads(daemon.run("doctor", "--json").stdout)}
    assert checks["daemon"] == f"answers at {daemon.roots.socket}"
    assert checks["disk of the root"].endswith(f" at {daemon.roots.root}")
    assert checks["disk of the state"].endswith(f" at {daemon.roots.state}")


def test_version_is_quick(daemon: Daemon) -> None:
    def took() -> float:
        begun = time.monotonic()
        assert daemon.run("version").returncode == 0
        return time.monotonic() - begun

    assert min(took() for _ in range(7)) < 0.4
