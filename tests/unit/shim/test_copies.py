"""Programs that run from sealed memory: a copy of what is there now, and of nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.shim.copies import Copies
from atoll.shim.reaper import Reaper


@pytest.fixture
def copies() -> Iterator[Copies]:
    copies = Copies()
    yield copies
    copies.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy2("/bin/true", tmp_path / "crun"))


async def test_a_copy_is_executed_until_there_is_another_version(copies: Copies, program: Path) -> None:
    path = copies.path(str(program))
    assert path.startswith("/proc/self/fd/")
    assert copies.path(str(program)) == path
    with pytest.raises(PermissionError):
        os.truncate(path, 0)
    reaper = Reaper(copies=copies)
    reaper.open()
    try:
        assert await reaper.run([str(program)], timeout_s=10) == 0
        program.unlink()
        shutil.copy2("/bin/false", program)
        assert await reaper.run([str(program)], timeout_s=10) == 1
    finally:
        reaper.close()


def test_what_is_no_binary_or_not_there_is_executed_by_its_path(copies: Copies, program: Path, tmp_path: Path) -> None:
    script = tmp_path / "below" / "crun"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    for name in (str(script), str(tmp_path / "none" / "crun"), "crun", "/bin/true"):
        assert copies.path(name) == name
    before = len(os.listdir("/proc/self/fd"))
    copies.path(str(program))
    copies.close()
    copies.close()
    assert len(os.listdir("/proc/self/fd")) == before
