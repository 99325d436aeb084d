"""`make run` after its set-up: the tour shows a real pod, judges what it shows, and leaves nothing, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.leaks import Footprint

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.sh"
WITHIN_S = 100.0
COMMANDS = (
    "atoll serve",
    "python examples/web_pod.py",
    "atoll ps",
    "atoll logs web/client",
    "timeout 5 busybox wget -q -O - http://127.0.0.1:",
    "atoll exec web/server",
    "atoll phases web",
    "atoll stop",
    "atoll rm web",
    "atoll fsck",
)


@pytest.fixture
def folder(leak_guard: Footprint) -> Path:
    """Where the demo makes its folder; the leak guard looks for everything with this path in it."""
    folder = leak_guard.folders[0]
    folder.mkdir(mode=0o700)
    return folder


@contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [str(DEMO)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_demo_shows_a_real_pod_and_leaves_nothing(folder: Path) -> None:
    with demo(folder) as process:
        told, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, told
    shown = [line.removeprefix("$ ") for line in told.splitlines() if line.startswith("$ ")]
    begun = 0
    for command in COMMANDS:  # in this order
        begun = next(at for at, line in enumerate(shown) if at >= begun and line.startswith(command))
    assert "\x1b" not in told, "colours are for terminals"
    lines = told.splitlines()
    assert lines.count("hello from web") >= 3, "from the client, the published port and the pod's address"
    assert "67108864" in lines
    assert re.search(r"^run +[0-9a-f]{13} +network +[0-9.]+ m?s +CNI plugin ", told, re.MULTILINE)
    checks = [line for line in lines if line.startswith("clean: ")]
    assert len(checks) == 2
    assert int(checks[0].split()[1]) >= 12, "a pod of two containers holds a dozen resources"
    assert checks[1] == "clean: nothing is held"
    assert not list(folder.iterdir())


def test_demo_cut_short_takes_its_pod_away(folder: Path) -> None:
    with demo(folder) as process:
        assert process.stdout is not None
        assert any(line.startswith("$ atoll ps") for line in process.stdout), "the pod runs by then"
        process.terminate()
        process.stdout.read()
        assert process.wait(WITHIN_S) == 128 + signal.SIGTERM
    assert not list(folder.iterdir())


def test_demo_that_fails_says_why(folder: Path) -> None:
    too_long = folder / ("x" * 100)
    too_long.mkdir()
    with demo(too_long) as process:
        told, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "demo failed: the daemon did not start" in told
    assert "choose a shorter path" in told, "the daemon's own words are shown"
    assert not list(too_long.iterdir())
