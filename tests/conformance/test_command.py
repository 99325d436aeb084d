"""`atoll conformance` as a process: a signal ends it after what it made was cleared away."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from atoll.sandbox.controller import ControllerStatus
from atoll.sandbox.serving import listening
from atoll.testing.fake import FakeController
from tests.integration.conftest import Roots

ATOLL = Path(sys.executable).parent / "atoll"
WITHIN_S = 30.0


class NeverTells(FakeController):
    """Status of a sandbox that is there never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        if sandbox_id in self.ids:
            self.asked.set()
            await asyncio.sleep(3600)
        return await super().status(sandbox_id, verbose)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_after_it_cleaned_up(roots: Roots, number: signal.Signals) -> None:
    controller = NeverTells()
    address = f"ttrpc+unix://{roots.state}/it.sock"
    async with listening(controller, address):
        process = await asyncio.create_subprocess_exec(
            ATOLL,
            *("conformance", "controller", address, "--only", "second_start_is_refused"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await asyncio.wait_for(controller.asked.wait(), WITHIN_S)
        assert len(controller.ids) == 1
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
        assert (process.returncode, out, err) == (130, b"", b"")
        assert controller.ids == set()
