"""The files of a new sandboxer's project, as `string.Template`s: path and text."""

from __future__ import annotations

FILES: dict[str, str] = {}

FILES["pyproject.toml"] = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "A sandboxer for containerd and Atoll"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["atoll>=$atoll"]

[project.scripts]
$name = "$package.__main__:main"

[project.optional-dependencies]
dev = ["pytest>=8.3", "pytest-asyncio>=1.0"]

[tool.setuptools.packages.find]
where = ["src"]

[tool.pytest.ini_options]
testpaths = ["tests"]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
"""

FILES[".gitignore"] = """\
__pycache__/
*.egg-info/
.pytest_cache/
.venv/
"""

FILES["src/$package/__init__.py"] = '''\
"""A sandboxer for containerd and Atoll."""
'''

FILES["src/$package/controller.py"] = '''\
"""What a sandbox is here: one process, in PID, IPC, UTS and network namespaces that are its alone.

Begin with `start`: put your own kind of sandbox in the place of the process. `atoll.sandbox.Controller` says what
each method must do; the tests check it.
"""

from atoll import sandbox as s


class $controller(s.Controller):
    """Keeps its sandboxes in memory, and they end with it."""

    def __init__(self) -> None:
        self.lives = s.Lives()

    async def create(self, sandbox: s.Sandbox, options: s.CreateOptions) -> None:
        # What is not named here is refused: root mounts, annotations.
        self.lives.add(sandbox, options, takes=["netns_path", s.POD_CONFIG])

    async def start(self, sandbox_id: str) -> s.ControllerInstance:
        # `cat` gives the prompt back when it runs in its namespaces, and ends when this process does.
        return await self.lives.unshare(sandbox_id, "cat", prompt=b"\\n")

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self.lives.stop(sandbox_id, timeout_s)

    async def wait(self, sandbox_id: str) -> s.ExitStatus:
        return await self.lives[sandbox_id].wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> s.ControllerStatus:
        return self.lives[sandbox_id].status(verbose)

    async def shutdown(self, sandbox_id: str) -> None:
        await self.lives.shutdown(sandbox_id)
'''

FILES["src/$package/__main__.py"] = '''\
"""`$name [ADDRESS...]`: serve until SIGTERM."""

import logging
import sys

from atoll import sandbox

from $package.controller import $controller


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sandbox.run($controller, *(sys.argv[1:] or ["unix:///run/$name/$name.sock"]))


if __name__ == "__main__":
    main()
'''

FILES["tests/test_contract.py"] = '''\
"""The controller keeps the sandbox contract, through every wire: the checks of Atoll's conformance kit."""

import os
import signal
from pathlib import Path

import pytest
from atoll.sandbox import ControllerInstance, CreateOptions, Runtime, Sandbox, listening
from atoll.sandboxers.remote import RemoteController
from atoll.testing.conformance import SAFE, LinuxHost, Subject, check_controller

from $package.controller import $controller

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: its sandboxes have namespaces")


async def kill(instance: ControllerInstance) -> int:
    os.kill(instance.pid, signal.SIGKILL)
    return 128 + signal.SIGKILL


@pytest.mark.parametrize("wire", ["unix://", "ttrpc+unix://"])
async def test_the_contract_is_kept(wire: str, tmp_path: Path) -> None:
    address = f"{wire}{tmp_path}/sock"
    async with listening($controller(), address):
        controller = RemoteController(address)
        subject = Subject(
            controller=controller,
            sandbox=lambda made: Sandbox(id=made, sandboxer="$name", runtime=Runtime(name="$name")),
            options=lambda made: CreateOptions(),
            refused=lambda made: CreateOptions(netns_path="/run/netns/no-such-one"),
            end=kill,
            host=LinuxHost(),
            namespaces=frozenset({"pid", "ipc", "uts", "net"}),
        )
        report = await check_controller(subject, SAFE)
        await controller.aclose()
    assert report.is_passed, report
'''

FILES["$name.service"] = """\
[Unit]
Description=The sandboxer $name
# containerd gives up pods whose controller does not answer when it starts.
Before=containerd.service

[Service]
Type=notify
ExecStart=/usr/local/bin/$name unix:///run/$name/$name.sock
RuntimeDirectory=$name
RuntimeDirectoryMode=0700
# Only this process is told to end: sandboxes that outlive it are its own affair.
KillMode=process
Restart=always
RestartSec=100ms

[Install]
WantedBy=multi-user.target
"""

FILES["README.md"] = """\
# $name

A sandboxer: a service that makes sandboxes for containerd and Atoll, in their sandbox API.
`src/$package/controller.py` says what a sandbox is; all the rest is Atoll's.

## Try it

As root:

    python -m pip install -e '.[dev]'
    python -m pytest                                  # the conformance kit, through gRPC and ttrpc
    python -m $package unix:///run/$name.sock
    atoll conformance controller unix:///run/$name.sock   # the same kit, from outside

## Under containerd 2

    [proxy_plugins.$name]
      type = "sandbox"
      address = "/run/$name/$name.sock"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.$name]
      runtime_type = "io.containerd.runc.v2"
      sandboxer = "$name"

The service must be up before containerd: `$name.service` sees to it. Pods are made as it is; containers in them need
a Task API, whose address `start` answers.

## Under Atoll

    [runtimes.atoll]
    [runtimes.$name]
    sandboxer = "remote"
    address = "unix:///run/$name/$name.sock"
"""
