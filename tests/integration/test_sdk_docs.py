"""Every program in docs/sdk.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_runs(daemon: Daemon, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[number]],
        env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_has_programs() -> None:
    assert len(PROGRAMS) >= 4
