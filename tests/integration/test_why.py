"""`atoll why` of pods that are held up: by a CNI plugin, by an OCI runtime, by one another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Daemon, Roots
from tests.integration.leaks import wait_until

RUNTIME = """
[runtimes.atoll]
oci_runtime = "{folder}/crun"
"""
WITHIN_S = 30.0


@pytest.fixture
def held_up(roots: Roots) -> Iterator[Daemon]:
    """A daemon whose bridge plugin and OCI runtime wait for as long as a file says so."""
    folder = roots.base / "bin"
    folder.mkdir()
    for name, real, when in (
        ("bridge", "/usr/lib/cni/bridge", '[ "$CNI_COMMAND" = ADD ]'),
        ("crun", "/usr/bin/crun", 'case " $* " in *" create "*) true;; *) false;; esac'),
    ):
        script = folder / name
        gate = folder / f"{name}.gate"
        script.write_text(f'#!/bin/sh\nif {when} && [ -p {gate} ]; then : < {gate}; fi\nexec {real} "$@"\n')
        script.chmod(0o755)
    with roots.config.open("a") as config:
        config.write(RUNTIME.format(folder=folder))
    daemon = Daemon(roots)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@contextmanager
def gate(roots: Roots, name: str) -> Iterator[Callable[[], None]]:
    """Holds a program up; what is given lets it go, as does the end."""
    path = roots.base / "bin" / f"{name}.gate"
    os.mkfifo(path)

    def let_go() -> None:
        if path.exists():
            writer = os.open(path, os.O_RDWR)
            path.unlink()
            os.close(writer)

    try:
        yield let_go
    finally:
        let_go()


@contextmanager
def command(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "atoll.cli.main", *arguments],
        env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def why(daemon: Daemon, name: str) -> dict[str, Any]:
    done = daemon.run("why", "--json", name)
    return json.loads(done.stdout) if done.returncode == 0 else {"waiting": [], "processes": []}


def held(daemon: Daemon, name: str, phase: str) -> dict[str, Any]:
    """What is told once the pod is in that phase."""
    told: dict[str, Any] = {}

    def is_there() -> bool:
        told.update(why(daemon, name))
        return any(step["name"] == phase for step in told["waiting"]) and bool(told["processes"])

    assert wait_until(is_there, within=WITHIN_S), told
    return told


def blocker(told: dict[str, Any], role: str) -> dict[str, Any]:
    return next(one for one in told["processes"] if one["role"] == role)


def test_a_plugin_that_hangs_is_named_with_its_process_while_the_pod_is_being_made(held_up: Daemon) -> None:
    words = ("run", "-d", "--name", "held", "atoll/busybox", "true")
    with gate(held_up.roots, "bridge") as let_go, command(held_up, *words) as running:
        told = held(held_up, "held", "network")
        assert (told["name"], told["state"]) == ("held", "being made")
        step = next(one for one in told["waiting"] if one["name"] == "network")
        assert (step["operation"], step["waits_on"], step["duration_s"]) == ("run", "CNI ADD", None)
        assert any("network/" in frame for frame in step["frames"])
        plugin = blocker(told, "CNI plugin")
        assert plugin["command"] == f"/bin/sh {held_up.roots.base}/bin/bridge"
        assert Path(f"/proc/{plugin['pid']}").exists()
        assert plugin["wait_channel"] not in ("", "0")
        text = held_up.run("why", "held").stdout
        assert f"CNI plugin {plugin['pid']} sleeps in {plugin['wait_channel']}" in text
        assert "run is in 'network' for" in text
        let_go()
        assert running.wait(WITHIN_S) == 0
    assert wait_until(lambda: "nothing is under way" in held_up.run("why", "held").stdout, within=WITHIN_S)
    held_up.run("rm", "-fa")


def test_a_runtime_that_hangs_is_named_and_who_waits_behind_it_says_so(held_up: Daemon) -> None:
    words = ("run", "-d", "--network", "none", "--name", "held", "atoll/busybox", "true")
    with gate(held_up.roots, "crun") as let_go, command(held_up, *words) as running:
        told = held(held_up, "held", "create task")
        runtime = blocker(told, "OCI runtime")
        container = next(one["subject"] for one in told["waiting"] if one["name"] == "create task")
        assert container in runtime["command"]
        assert any("ttrpc/client.py" in frame for frame in told["waiting"][0]["frames"])
        with command(held_up, "stop", "held") as stopping:
            waiting = held(held_up, "held", "drain")["waiting"]
            assert {"start", "stop"} <= {step["operation"] for step in waiting}
            let_go()
            assert stopping.wait(WITHIN_S) == 0
        running.wait(WITHIN_S)
    held_up.run("rm", "-fa")
    assert held_up.run("ps", "-aq").stdout == ""


def test_a_pod_that_is_gone_has_its_story_and_an_unknown_one_has_none(held_up: Daemon) -> None:
    held_up.run("run", "--network", "none", "--name", "gone", "atoll/busybox", "true")
    told = why(held_up, "gone")
    assert (told["state"], told["waiting"]) == ("gone", [])
    assert {step["operation"] for step in told["steps"]} >= {"run", "create", "start", "remove"}
    done = held_up.run("why", "nobody")
    assert done.returncode == 125
    assert "`atoll ps -a`" in done.stderr
