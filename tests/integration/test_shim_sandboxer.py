"""The shim sandboxer when its shim dies, and over our shim's program as any daemon starts it: nothing stays."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import Shim
from atoll.sandbox.controller import State
from atoll.sandboxers.shim import ShimController
from tests.conformance.controllers import ATOLL, RUNC, real
from tests.integration.conftest import Roots

WITHIN_S = 20.0


async def test_the_pods_init_does_not_outlive_a_killed_shim(roots: Roots) -> None:
    async with real(roots) as parts:
        controller = parts.shim()
        sandbox = parts.sandbox(ATOLL, f"{roots.prefix}-pod")
        await controller.create(sandbox, parts.options(sandbox.id))
        instance = await controller.start(sandbox.id)
        bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
        shim = await Shim.connect(id=sandbox.id, namespace=roots.prefix, bootstrap=bootstrap)
        shim_pid, _ = await shim.tasks.connect(sandbox.id)
        assert instance.pid != shim_pid
        init = os.pidfd_open(instance.pid)
        os.kill(shim_pid, signal.SIGKILL)
        await asyncio.wait_for(shim.closed, WITHIN_S)
        ended = await asyncio.wait_for(controller.wait(sandbox.id), WITHIN_S)
        assert ended.exit_status == 255
        assert (await controller.status(sandbox.id)).state is State.NOTREADY
        await shim.aclose()
        await controller.shutdown(sandbox.id)
        readable, _, _ = await asyncio.to_thread(select.select, [init], [], [], 2.0)
        os.close(init)
        assert readable == [init]
        assert await parts.left(sandbox.id) == ()


async def test_our_program_serves_a_sandbox_without_a_spec(roots: Roots) -> None:
    program = str(Path(sys.executable).with_name("containerd-shim-atoll-v1"))
    async with real(roots) as parts:
        # A daemon that executes shims, as it does those of others.
        controller = ShimController(
            launcher=parts.launchers[RUNC], bundles=parts.bundles, namespace=roots.prefix, blocking=parts.blocking
        )
        parts.controllers.append(controller)
        sandbox = parts.sandbox(program, f"{roots.prefix}-pod")
        await controller.create(sandbox, parts.options(sandbox.id))
        assert not (parts.bundles / sandbox.id / "config.json").exists()
        instance = await controller.start(sandbox.id)
        await controller.ping(sandbox.id)
        await controller.stop(sandbox.id)
        assert (await controller.wait(sandbox.id)).exit_status == 137
        await controller.shutdown(sandbox.id)
        assert not Path(f"/proc/{instance.pid}").exists()
        assert await parts.left(sandbox.id) == ()
