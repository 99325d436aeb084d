"""What a shim must not carry: every page of it is paid for by every pod."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = ("grpc", "sqlite3", "atoll.engine", "atoll.database", "atoll.daemon", "atoll.cri", "typer", "rich", "http")


@pytest.mark.parametrize("module", ["atoll.shim.zygote", "atoll.shim.main"])
def test_a_shim_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in FORBIDDEN if name in loaded] == []


def test_importing_it_starts_no_thread() -> None:
    code = "import threading, atoll.shim.zygote; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
