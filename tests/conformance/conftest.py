"""The kernel is the judge here too: the fixtures of the integration tests, with their leak guard."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from tests.integration.conftest import leak_guard, needs_root, pytest_runtest_makereport, roots, shared

__all__ = ["leak_guard", "needs_root", "pytest_runtest_makereport", "roots", "shared"]


async def _start_grpc() -> None:
    grpc.aio.init_grpc_aio()  # pyright: ignore[reportAttributeAccessIssue]  # exported from a compiled module


@pytest.fixture(scope="session", autouse=True)
def grpc_has_its_descriptors() -> None:
    """gRPC makes a pair of sockets for each process that uses it, which no test leaks."""
    asyncio.run(_start_grpc())
