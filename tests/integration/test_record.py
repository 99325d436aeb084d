"""The recording in the README: its commands still work, and it is of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from scripts import record
from tests.integration.conftest import Daemon

REPOSITORY = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def require_whole(picture: Path) -> str:
    """The texts of a recording, which must be small, well formed, move by itself and run nothing."""
    data = picture.read_bytes()
    assert len(data) <= record.MAX_BYTES
    root = ET.fromstring(data)
    assert {one.tag.removeprefix(SVG) for one in root.iter()} == {
        *("svg", "title", "style", "rect", "defs", "text", "tspan", "g", "use"),
    }
    styles = root.findtext(f"{SVG}style") or ""
    assert "step-end infinite" in styles
    assert styles.count("translateY") > len(record.COMMANDS)
    return re.sub(r"\s+", " ", " ".join("".join(one.itertext()) for one in root.iter(f"{SVG}text")))


@pytest.mark.shared_daemon
def test_the_commands_of_the_recording_work(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "terminal.svg"
    options = ["--socket", str(daemon.roots.socket), "--output", str(output)]
    script = [sys.executable, str(REPOSITORY / "scripts" / "record.py"), *options]
    finished = subprocess.run(script, capture_output=True, text=True, check=False, timeout=100)
    assert finished.returncode == 0, finished.stderr
    said = require_whole(output)
    assert "clean: nothing is held" in said
    assert "create sandbox" in said


def test_the_readme_shows_these_commands() -> None:
    said = require_whole(record.OUTPUT)
    assert [command for command in record.COMMANDS if command not in said] == []
    assert record.OUTPUT.relative_to(REPOSITORY).as_posix() in (REPOSITORY / "README.md").read_text()
