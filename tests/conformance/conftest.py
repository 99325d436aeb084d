"""The kernel is the judge here too: the fixtures of the integration tests, with their leak guard."""

from __future__ import annotations

from tests.integration.conftest import leak_guard, needs_root, pytest_runtest_makereport, roots

__all__ = ["leak_guard", "needs_root", "pytest_runtest_makereport", "roots"]
