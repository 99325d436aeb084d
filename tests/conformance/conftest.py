"""The kernel is the judge here too: the fixtures of the integration tests, with their leak guard."""

from __future__ import annotations

from tests.integration.conftest import (
    grpc_has_its_descriptors,
    leak_guard,
    needs_root,
    pytest_runtest_makereport,
    roots,
    shared,
)

__all__ = ["grpc_has_its_descriptors", "leak_guard", "needs_root", "pytest_runtest_makereport", "roots", "shared"]
