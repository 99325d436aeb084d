"""The examples work: the sandboxer keeps the contract, the web server answers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import ControllerInstance, CreateOptions, Runtime, Sandbox
from atoll.testing.conformance import Subject, check_controller
from tests.integration.conftest import Daemon

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def test_sandboxer_keeps_the_contract() -> None:
    async def end(instance: ControllerInstance) -> int:
        os.kill(instance.pid, signal.SIGTERM)
        return 128 + signal.SIGTERM

    async with TaskOwner("example") as owner:
        subject = Subject(
            controller=load("sandboxer").ProcessSandboxer(owner),
            sandbox=lambda made: Sandbox(id=made, sandboxer="sleep", runtime=Runtime(name="sleep")),
            options=lambda made: CreateOptions(),
            end=end,
        )
        report = await check_controller(subject)
        assert report.is_passed, report
        await asyncio.sleep(0)


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
