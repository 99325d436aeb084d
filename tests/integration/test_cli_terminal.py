"""`atoll` in a real terminal: prompts, keys, sizes, Ctrl-C, Ctrl-D, the keys that detach, colours, narrow windows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon
from tests.integration.leaks import wait_until
from tests.integration.registry import running_registry
from tests.integration.terminals import terminal

pytestmark = pytest.mark.shared_daemon

NONE = ("--network", "none")
IMAGE = "atoll/busybox"
DETACH = b"\x10\x11"
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3|4|9)\d[0-9;]*m")


def until_size(width: int, height: int) -> bytes:
    """What is typed to a shell that says `resized` once its terminal has that size."""
    return f"while test \"$(stty size)\" != '{height} {width}'; do sleep 0.05; done; echo re''sized\n".encode()


def running(daemon: Daemon, name: str) -> bool:
    pods = json.loads(daemon.run("ps", "--json").stdout)
    return any(one["name"] == name and one["state"] == "running" for pod in pods for one in pod["containers"])


def test_a_shell_in_a_terminal(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", "--network", "none", "atoll/busybox", "sh") as shell:
        shell.until(b"# ")
        shell.type(b"stty size; echo do''ne\n")
        assert b"24 80" in shell.until(b"done")
        shell.resize(132, 40)
        shell.type(until_size(132, 40))
        shell.until(b"resized")
        shell.type(b"trap 'echo c''aught' INT; sh -c 'echo re\"\"ady; exec sleep 1000'\n")
        shell.until(b"ready")
        shell.type(b"\x03")
        shell.until(b"caught")
        shell.until(b"# ")
        shell.type(b"\x04")
        assert shell.ends() in (0, 130)
    assert daemon.run("ps", "-aq").stdout == ""


def test_an_exec_in_a_terminal(daemon: Daemon) -> None:
    daemon.run("run", "-d", "--network", "none", "--name", "x", "atoll/busybox", "sleep", "1000")
    with terminal(daemon, "exec", "-it", "x", "sh") as shell:
        shell.until(b"# ")
        shell.type(b"tty; stty size; exit 5\n")
        shell.until(b"/dev/pts/")
        shell.until(b"24 80")
        assert shell.ends() == 5
    daemon.run("rm", "-f", "x")


def test_a_table_fits_a_narrow_terminal(daemon: Daemon) -> None:
    daemon.run("run", "-d", "--network", "none", "--name", "x" * 50, "atoll/busybox", "sleep", "1000")
    with terminal(daemon, "ps") as narrow:
        head = narrow.until(b"\r\n")
        row = narrow.until(b"\r\n")
        assert narrow.ends() == 0
    for line in (head, row):
        assert len(re.sub(r"\x1b\[[0-9;]*m", "", line.decode())) <= 80
    assert "…" in row.decode()
    daemon.run("rm", "-fa")


def test_a_terminal_that_is_none_is_refused(daemon: Daemon) -> None:
    done = daemon.run("run", "-t", "--network", "none", "atoll/busybox", "sh")
    assert (done.returncode, done.stdout) == (125, "")
    assert "must be a terminal" in done.stderr
    assert daemon.run("ps", "-aq").stdout == ""


# --- keys that detach ---


def test_detaching_from_a_run_leaves_it_running_and_attach_comes_back(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", *NONE, "--name", "shell", IMAGE, "sh") as shell:
        shell.until(b"# ")
        shell.type(b"A=kept; echo re''ady\n")
        shell.until(b"ready")
        shell.type(DETACH)
        shell.until(b"`atoll attach shell` comes back to it")
        assert shell.ends() == 0
    assert running(daemon, "shell")
    with terminal(daemon, "attach", "shell") as again:
        again.type(b"echo $A; stty size\n")
        again.until(b"kept")
        again.until(b"24 80")
        again.resize(100, 30)
        again.type(until_size(100, 30))
        again.until(b"resized")
        again.type(b"exit 6\n")
        assert again.ends() == 6
    daemon.run("rm", "-f", "shell")


def test_a_lone_first_key_reaches_the_process_with_the_next_one(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", *NONE, IMAGE, "sh", "-c", "stty raw -echo; echo up; od -An -tx1 -N3") as typed:
        typed.until(b"up")
        typed.type(b"\x10x")
        typed.type(b"\x11")
        typed.until(b"10 78 11")
        assert typed.ends() == 0


def test_other_keys_may_detach_and_none(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", *NONE, "--name", "keys", "--detach-keys", "ctrl-x,q", IMAGE, "sh") as shell:
        shell.until(b"# ")
        shell.type(b"\x18q")
        assert shell.ends() == 0
    with terminal(daemon, "attach", "--detach-keys", "", "keys") as shell:
        shell.type(b"\x10\x11echo st''ill\n")
        shell.until(b"still")
        shell.type(b"\x15exit\n")
        assert shell.ends() in (0, 127)
    daemon.run("rm", "-f", "keys")


def test_detaching_from_an_exec_leaves_it_running_and_it_can_be_come_back_to_and_ended(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    with terminal(daemon, "exec", "-it", "x", "sh") as shell:
        shell.until(b"# ")
        shell.type(b"A=kept; echo re''ady\n")
        shell.until(b"ready")
        shell.type(DETACH)
        shell.until(b"comes back to it")
        assert shell.ends() == 0
    [kept] = json.loads(daemon.run("process", "ls", "--json").stdout)
    assert (kept["command"], kept["exit"], kept["tty"]) == (["sh"], None, True)
    with terminal(daemon, "process", "attach", "x", kept["id"]) as again:
        again.type(b"echo $A; stty size\n")
        again.until(b"kept")
        again.until(b"24 80")
        again.resize(100, 30)
        again.type(until_size(100, 30))
        again.until(b"resized")
        again.type(b"exit 6\n")
        assert again.ends() == 6
    assert "exited (6)" in daemon.run("process", "ls", "x").stdout
    assert daemon.run("process", "rm", "x", kept["id"]).stdout == f"{kept['id']}\n"
    with terminal(daemon, "exec", "-it", "x", "sh") as shell:
        shell.until(b"# ")
        shell.type(DETACH)
        assert shell.ends() == 0
    other = daemon.run("process", "ls", "-q").stdout.strip()
    assert "runs; end it first, or use -f" in daemon.run("process", "rm", "x", other).stderr
    assert daemon.run("process", "kill", "x", other).returncode == 0
    assert wait_until(lambda: "exited (137)" in daemon.run("process", "ls").stdout)
    assert running(daemon, "x")
    daemon.run("rm", "-f", "x")


def test_a_terminal_that_hangs_up_ends_its_exec(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    with terminal(daemon, "exec", "-it", "x", "sh") as shell:
        shell.until(b"# ")
        os.kill(shell.process.pid, signal.SIGHUP)
        assert shell.ends() == 129
    assert daemon.run("process", "ls", "-q").stdout == ""
    assert len(json.loads(daemon.run("top", "--json", "x").stdout)) == 1
    daemon.run("rm", "-f", "x")


# --- signals and ends ---


def test_ctrl_d_ends_what_reads_its_input(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", *NONE, IMAGE, "cat") as cat:
        cat.type(b"one\n")
        cat.until(b"one\r\none\r\n")
        cat.type(b"\x04")
        assert cat.ends() == 0


def test_ctrl_c_ends_what_only_looks(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", "while :; do echo tick; sleep 0.2; done")
    for words, shown in ((("logs", "-f", "x"), b"tick"), (("stats",), b"CPU %"), (("attach", "x"), b"tick")):
        with terminal(daemon, *words, width=120) as looking:
            looking.until(shown)
            looking.type(b"\x03")
            assert looking.ends() == 130, words
    assert running(daemon, "x")
    daemon.run("rm", "-f", "x")


def test_a_terminal_that_hangs_up_ends_the_run_and_leaves_nothing(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", *NONE, IMAGE, "sh") as shell:
        shell.until(b"# ")
        os.kill(shell.process.pid, signal.SIGHUP)
        assert shell.ends() == 129
    assert daemon.run("ps", "-aq").stdout == ""


# --- what it looks like ---


def test_stats_are_kept_up_to_date_in_place_and_fit_the_window(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "busy", "-m", "64m", IMAGE, "sh", "-c", "while :; do :; done")
    with terminal(daemon, "stats", "--interval", "0.2", width=60) as table:
        table.until(b"busy")
        table.until(b"busy")
        table.resize(40, 24)
        table.until(b"busy")
        table.until(b"busy")
        table.type(b"\x03")
        assert table.ends() == 130
        assert b"\x1b[1A" in table.shown or b"\x1b[2A" in table.shown, "the table is written over itself"
        assert max(map(len, table.lines)) <= 60
    once = json.loads(daemon.run("stats", "--no-stream", "--json", "busy").stdout)
    assert (once["name"], once["memory_limit_bytes"]) == ("busy", 64 << 20)
    assert once["cpu_percent"] > 5
    daemon.run("rm", "-f", "busy")


def test_no_colour_where_it_is_not_wanted(daemon: Daemon) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sleep", "1000")
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        for words in (("ps",), ("--help",)):
            with terminal(daemon, *words, width=100, env=env) as shown:
                assert shown.ends() == 0
            if not coloured:
                assert COLOUR.findall(shown.shown) == [], (words, env)
            elif words == ("--help",):
                assert COLOUR.search(shown.shown), "where it is wanted there is some"
            else:
                assert shown.has_style
    daemon.run("rm", "-f", "x")


@pytest.mark.parametrize("width", [20, 40])
def test_everything_can_be_read_in_a_narrow_window(daemon: Daemon, width: int) -> None:
    daemon.run("run", "-d", *NONE, "--name", "narrow", IMAGE, "sleep", "1000")
    for words in (("ps",), ("top", "narrow"), ("why", "narrow"), ("images",), ("pod", "ls"), ("stats", "--no-stream")):
        with terminal(daemon, *words, width=width) as shown:
            assert shown.ends() == 0, words
        if words == ("ps",):
            assert any(" narr" in line for line in shown.lines), "the first columns can be read"
        tables = [line for line in shown.lines if "  " in line.strip() or words[0] == "why"]
        assert [line for line in tables if len(line.rstrip()) > width] == [], words
    daemon.run("rm", "-f", "narrow")


def test_a_pull_shows_a_bar_for_each_layer(daemon: Daemon, tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry") as registry:
        name = f"{registry.address}/tests/bars:1"
        config = daemon.roots.config
        before = config.read_text()
        config.write_text(f'{before}\n[images.registries."{registry.address}"]\nplain_http = true\n')
        try:
            assert daemon.run("reload").returncode == 0
            assert daemon.run("tag", IMAGE, name).returncode == 0
            with terminal(daemon, "push", name) as pushing:
                assert pushing.ends() == 0
                assert f"{name}@sha256:" in "".join(pushing.lines)
            assert daemon.run("rmi", name).returncode == 0
            with terminal(daemon, "pull", name) as pulling:
                assert pulling.ends() == 0
            assert re.search(rb"[0-9a-f]{12} (done|present|waiting)", pulling.shown)
            assert any(line.startswith("sha256:") for line in pulling.lines)
            assert daemon.run("rmi", name).returncode == 0
        finally:
            config.write_text(before)
            daemon.run("reload")


@pytest.mark.parametrize("words", [("logs", "-f", "x"), ("stats", "--json"), ("events", "--since", "1h")])
def test_a_pipe_whose_reader_leaves_ends_it_quietly_though_it_has_nothing_to_tell(
    daemon: Daemon, words: tuple[str, ...]
) -> None:
    daemon.run("run", "-d", *NONE, "--name", "x", IMAGE, "sh", "-c", "echo tick; exec sleep 1000")
    with subprocess.Popen(
        [sys.executable, "-m", "atoll.cli.main", *words],
        env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() != b""
        process.stdout.close()
        assert wait_until(lambda: process.poll() is not None, within=30.0)
        said = [line for line in process.stderr.read().splitlines() if not line.endswith(b"is not remembered")]
        assert (process.returncode, said) == (141, [])
    daemon.run("rm", "-f", "x")
