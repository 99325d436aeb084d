"""Faults on the real shim, namespaces and cgroups: what the kit sees of the host finds them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.linux import mounts
from atoll.sandbox.controller import ControllerInstance, ControllerStatus, CreateOptions, Sandbox
from atoll.sandboxers.shim import ShimController
from atoll.testing.conformance import CHECKS, Subject, check_controller
from tests.conformance.controllers import ATOLL, Real, real
from tests.integration.conftest import Roots


class ShutdownForgetsTheShim(ShimController):
    """Shutdown forgets the sandbox and leaves its shim and its process."""

    async def shutdown(self, sandbox_id: str) -> None:
        self._held.pop(sandbox_id, None)


class CreateLeavesAMount(ShimController):
    """Something stays mounted."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await super().create(sandbox, options)
        point = Path(f"{self._bundles}-{sandbox.id}")
        point.mkdir()
        mounts.mount("tmpfs", "tmpfs", point)


class PidIsTheDaemons(ShimController):
    """The pid is of a process in the host's namespaces."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        return replace(await super().start(sandbox_id), pid=os.getpid())

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        return replace(status, pid=os.getpid()) if status.pid else status


class PauseFreezesNothing(ShimController):
    """Pause says ok and freezes nothing."""

    async def pause(self, sandbox_id: str) -> None:
        await self.ping(sandbox_id)


class StopIsLate(ShimController):
    """Stop is told to the shim when everybody has gone."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self.status(sandbox_id)


FOUND: dict[type[ShimController], tuple[str, ...]] = {
    ShutdownForgetsTheShim: ("shutdown_stops_what_runs", "an_id_can_be_used_again"),
    CreateLeavesAMount: ("shutdown_before_start_leaves_nothing",),
    PidIsTheDaemons: ("the_pid_is_in_namespaces_of_its_own",),
    PauseFreezesNothing: ("pause_freezes_every_process",),
    StopIsLate: ("stop_returns_when_every_process_has_ended", "stop_ends_it"),
}


@pytest.fixture
async def parts(roots: Roots) -> AsyncGenerator[Real]:
    async with real(roots) as made:
        yield made


def subject(parts: Real, kind: type[ShimController]) -> Subject:
    controller = kind(
        launcher=parts.launchers[ATOLL], bundles=parts.bundles, namespace=parts.roots.prefix, blocking=parts.blocking
    )
    parts.controllers.append(controller)
    return replace(parts.subject("shim"), controller=controller, settle_s=0.3, within_s=5.0)


async def failures(parts: Real, kind: type[ShimController], names: tuple[str, ...]) -> set[str]:
    report = await check_controller(subject(parts, kind), [one for one in CHECKS if one.name in names])
    print(report)
    return {outcome.check.name for outcome in report.failures}


@pytest.mark.may_leak("the faults leave what they leave")
@pytest.mark.parametrize("kind", FOUND, ids=lambda kind: kind.__name__)
async def test_a_fault_is_found(kind: type[ShimController], parts: Real) -> None:
    assert await failures(parts, kind, FOUND[kind]) == set(FOUND[kind])
    launcher = parts.launchers[ATOLL]
    for sandbox_id in os.listdir(parts.bundles) if parts.bundles.exists() else ():
        await ShimController(
            launcher=launcher, bundles=parts.bundles, namespace=parts.roots.prefix, blocking=parts.blocking
        ).shutdown(sandbox_id)


async def test_without_a_fault_the_same_checks_pass(parts: Real) -> None:
    names = tuple(name for found in FOUND.values() for name in found)
    assert await failures(parts, ShimController, names) == set()
