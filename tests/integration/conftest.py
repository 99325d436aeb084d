"""Life-stage fixtures of the integration tests: private roots, a daemon in them, and the guard that nothing stays.

A test that uses `roots` names its pods, networks and cgroups after `roots.prefix`; the guard finds them by it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

import atoll
from atoll.shim.stdio.null import open_null
from tests.conftest import IN_CI
from tests.integration.cri_client import CRI, connected
from tests.integration.daemons import BIN, Daemon, Roots
from tests.integration.leaks import MARKER, Footprint, Machine, fds_before, settled_leaks
from tests.integration.shared import Shared

__all__ = ["BIN", "Daemon", "Roots"]

ARTEFACTS = Path(__file__).resolve().parents[2] / "build" / "test-artefacts"


@pytest.fixture(autouse=True, scope="session")
def own_null() -> None:
    """What a process keeps from the first container stream on that goes nowhere is there before any test looks."""
    if os.geteuid() == 0:
        os.close(open_null(os.O_RDONLY))


async def _start_grpc() -> None:
    grpc.aio.init_grpc_aio()  # pyright: ignore[reportAttributeAccessIssue]  # exported from a compiled module


@pytest.fixture(autouse=True, scope="session")
def grpc_has_its_descriptors() -> None:
    """gRPC makes a pair of sockets for each process that uses it, which no test leaks."""
    asyncio.run(_start_grpc())


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: run `sudo make test`")


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """The daemon that the tests of a module with the mark `shared_daemon` use one after another."""
    shared = Shared()
    yield shared
    shared.retire()


def is_shared(request: pytest.FixtureRequest) -> bool:
    node: pytest.Item = request.node
    return node.get_closest_marker("shared_daemon") is not None and "daemon" in request.fixturenames


@pytest.fixture(autouse=True)
def leak_guard(
    request: pytest.FixtureRequest, needs_root: None, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> Iterator[Footprint]:
    """Fails a test that leaves a process, mount, link, cgroup, rule, file or descriptor behind, and takes it away."""
    if is_shared(request):
        footprint = shared.take(request.node)
        monkeypatch.setenv(MARKER, footprint.prefix)
        yield footprint
        shared.judge(request.node, failed=request.node.stash.get(FAILED, False))
        return
    shared.retire()
    prefix = f"at{secrets.token_hex(4)}"
    monkeypatch.setenv(MARKER, prefix)
    machine = Machine.now() if IN_CI else None
    footprint = Footprint.of(prefix, fds_before())
    yield footprint
    leaks = settled_leaks(footprint, machine)
    footprint.remove()
    if leaks and not request.node.get_closest_marker("may_leak"):
        pytest.fail("left behind:\n" + "\n".join(f"  {leak}" for leak in leaks), pytrace=False)


@pytest.fixture
def roots(request: pytest.FixtureRequest, leak_guard: Footprint, shared: Shared) -> Iterator[Roots]:
    """Private folders on the disk and in /run, a config file, a bridge network; a failed test's logs are kept."""
    if is_shared(request):
        roots = shared.roots
        yield roots
    else:
        base, state = leak_guard.folders
        roots = Roots(prefix=leak_guard.prefix, base=base, state=state)
        roots.make()
        yield roots
        roots.delete_bridge()
    if request.node.stash.get(FAILED, False):
        keep(roots, request.node.name)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def keep(roots: Roots, test: str) -> None:
    """Copy the logs and the configuration of a failed test to build/test-artefacts/<test>."""
    target = ARTEFACTS / "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in test)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in (*roots.base.glob("*.log"), roots.config):
        if path.is_file():
            shutil.copy(path, target)


@pytest.fixture
def daemon(request: pytest.FixtureRequest, roots: Roots, shared: Shared) -> Iterator[Daemon]:
    """A running daemon; at the end its fsck must find nothing, and it must stop with status 0."""
    if is_shared(request):
        yield shared.daemon
        return
    daemon = Daemon(roots)
    daemon.start()
    try:
        yield daemon
        if not daemon.is_running():
            daemon.kill()  # reap what a test killed by its pid
            daemon.start()
        with connected(roots) as cri:
            cri.require_clean_books()
        assert daemon.stop() == 0, f"the daemon's log ends:\n{daemon.log_tail()}"
    finally:
        daemon.kill()


@pytest.fixture
def cri(daemon: Daemon, roots: Roots) -> Iterator[CRI]:
    """A CRI client of the running daemon; what the test leaves of pods is removed before the daemon is judged."""
    with connected(roots) as client:
        yield client
        if daemon.is_running():
            for pod in client.list_pods():
                client.remove_pod(pod.id)


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[atoll.Client]:
    """The SDK on the running daemon."""
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        yield client


@pytest.fixture
async def pod(client: atoll.Client) -> AsyncIterator[atoll.Pod]:
    """A pod without a network, which goes with the test."""
    async with await client.run_pod(network="none") as pod:
        yield pod
