"""The front of the daemon passes the conformance kit, destructive checks too, a SIGKILL being its restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from atoll.sandbox.controller import Controller, Sandbox
from atoll.testing.conformance import CHECKS, check_controller
from atoll.testing.conformance.remote import Target, remote
from tests.integration.conftest import Daemon, Roots


@pytest.mark.slow
@pytest.mark.parametrize(
    ("namespace", "sandboxer"), [("k8s.io", "atoll"), ("moby", "atoll"), ("k8s.io", "podsandbox"), ("moby", "shim")]
)
async def test_the_daemons_front_keeps_the_contract(
    daemon: Daemon, roots: Roots, namespace: str, sandboxer: str
) -> None:
    target = Target(
        address=f"grpc+unix://{roots.socket}",
        sandboxer=sandboxer,
        namespace=namespace,
        owned_cgroups=(roots.prefix,),
    )

    async def restart(_sandboxes: tuple[Sandbox, ...]) -> Controller:
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        return subject.controller

    async with remote(target) as found:
        subject = replace(found, name=f"{sandboxer} in {namespace}", restart=restart)
        report = await check_controller(subject, CHECKS)
        assert report.is_passed, str(report)
        print(report)
