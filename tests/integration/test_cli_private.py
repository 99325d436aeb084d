"""Where no daemon answers, a private one is started, once, and ends when idle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from atoll.client import private
from tests.integration.conftest import Roots
from tests.integration.leaks import wait_until

COMMAND = [sys.executable, "-m", "atoll.cli.main"]


class Host:
    """A machine without a daemon."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self.env = {
            **os.environ,
            "ATOLL_CONFIG": str(roots.config),
            "ATOLL_SOCKET": str(roots.socket),
        }

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        running = self.spawn(*arguments)
        out, err = running.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, running.returncode, out, err)

    def pid(self) -> int:
        """The private daemon's, as its lock tells."""
        found = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal() and self._serves(entry)]
        assert len(found) == 1, found
        return found[0]

    def _serves(self, entry: str) -> bool:
        with suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            return b"serve" in words and str(self.roots.socket).encode() in words
        return False


@pytest.fixture
def host(roots: Roots) -> Iterator[Host]:
    roots.write_config(f"root = {json.dumps(str(roots.root))}\nstate = {json.dumps(str(roots.state))}")
    host = Host(roots)
    yield host
    with suppress(AssertionError):
        pid = host.pid()
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), within=20)


def test_run_works_on_a_bare_machine_and_its_daemon_outlives_the_command(host: Host) -> None:
    done = host.run("run", "--network", "none", "atoll/busybox", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    pid = host.pid()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert host.run("ps").returncode == 0
    assert host.pid() == pid


def test_commands_that_come_at_once_start_one_daemon(host: Host) -> None:
    running = [host.spawn("images", "-q") for _ in range(5)]
    for command in running:
        out, err = command.communicate(timeout=60)
        assert (command.returncode, err) == (0, "")
        assert len(out.split()) == 2
    host.pid()


def test_version_starts_none(host: Host) -> None:
    assert "none" in host.run("version").stdout
    with pytest.raises(AssertionError):
        host.pid()


def test_daemon_that_cannot_start_tells_why(host: Host) -> None:
    host.roots.config.write_text("rooot = 1\n")
    done = host.run("ps")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "unknown key 'rooot'" in done.stderr
    assert "did you mean 'root'" in done.stderr
    assert not host.roots.socket.exists()


def test_a_dead_socket_is_taken_over(host: Host) -> None:
    assert host.run("images").returncode == 0
    pid = host.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert host.roots.socket.exists()
    assert host.run("images").returncode == 0
    assert host.pid() != pid


def test_idle_daemon_ends_and_takes_its_socket_along(host: Host) -> None:
    serving = subprocess.Popen([*COMMAND, "serve", "--idle-exit", "0.3"], env=host.env, stderr=subprocess.DEVNULL)
    wait_until(host.roots.socket.exists, within=20)
    assert serving.wait(20) == 0
    assert not host.roots.socket.exists()


# --- whose place it is ---


def service(host: Host, *arguments: str) -> subprocess.Popen[bytes]:
    """`atoll serve` as an administrator starts it."""
    log = host.roots.log.open("ab")
    with log:
        return subprocess.Popen([*COMMAND, "serve", *arguments], env=host.env, stdout=log, stderr=log)


def other_places(host: Host) -> list[str]:
    """Options of a daemon whose books are not those that the configuration names."""
    return ["--root", str(host.roots.base / "other"), "--socket", str(host.roots.socket)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_place_of_another_daemon_that_is_down_is_left_to_it(host: Host, how: signal.Signals) -> None:
    roots = host.roots
    first = service(host, *other_places(host))
    wait_until(lambda: private.answers(roots.socket), within=20)
    assert host.run("run", "--network", "none", "-d", "--name", "one", "atoll/busybox", "sleep", "1000").returncode == 0
    first.send_signal(how)
    first.wait(20)
    for words in (["ps"], ["rm", "-f", "one"], ["fsck"]):
        done = host.run(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done
        for word in (f"{roots.socket} (root {roots.base / 'other'}) is down", "start it again", "atoll serve --root"):
            assert word in done.stderr
    with pytest.raises(AssertionError):
        host.pid()
    again = service(host, *other_places(host))
    wait_until(lambda: private.answers(roots.socket), within=20)
    assert "one" in host.run("ps").stdout
    done = host.run("rm", "-f", "one")
    assert (done.returncode, done.stdout) == (0, "one\n"), done
    again.terminate()
    assert again.wait(20) == 0


def test_service_takes_over_from_the_private_daemon_that_stood_in(host: Host) -> None:
    roots = host.roots
    first = service(host, "--socket", str(roots.socket))
    wait_until(lambda: private.answers(roots.socket), within=20)
    assert host.run("run", "--network", "none", "-d", "--name", "one", "atoll/busybox", "sleep", "1000").returncode == 0
    first.kill()
    first.wait()
    assert "one" in host.run("ps").stdout
    stood_in = host.pid()
    assert stood_in != first.pid
    again = service(host, "--socket", str(roots.socket))
    wait_until(lambda: not os.path.exists(f"/proc/{stood_in}"), within=30)
    done = host.run("ps")  # waits for the one that is coming up, and starts none beside it
    assert "one" in done.stdout, (done, roots.log.read_text())
    assert host.pid() == again.pid
    assert host.run("exec", "one", "echo", "still").stdout == "still\n"
    assert host.run("rm", "-f", "one").returncode == 0
    again.terminate()
    assert again.wait(20) == 0


def test_a_service_gives_way_to_no_other(host: Host) -> None:
    first = service(host)
    wait_until(lambda: private.answers(host.roots.socket), within=20)
    done = host.run("serve")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"(pid {first.pid}, socket {host.roots.socket})" in done.stderr
    assert first.poll() is None
    first.terminate()
    assert first.wait(20) == 0


def test_no_private_daemon_at_a_socket_that_is_not_its_place(host: Host) -> None:
    elsewhere = host.roots.state / "two.sock"
    assert host.run("ps").returncode == 0
    done = host.run("--socket", str(elsewhere), "ps")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"a private one belongs at {host.roots.socket}" in done.stderr
    assert not elsewhere.exists()


def test_private_daemon_that_ran_out_owns_its_place_no_longer(host: Host) -> None:
    serving = service(host, "--private", "--idle-exit", "0.3")
    owned = host.roots.socket.with_name("atoll.sock.owner")
    wait_until(owned.exists, within=20)
    assert serving.wait(20) == 0
    assert not owned.exists()
