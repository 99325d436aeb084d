"""The examples of the SDK work: the web server answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["hello.py", "hello_sync.py"])
def test_hello_prints_what_the_pod_serves(daemon: Daemon, name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pod-")
    assert daemon.run("ps", "-a", "-q").stdout == ""
