"""Shims that pass the kit, and faults of shims that it finds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from atoll.testing.conformance import Report
from atoll.testing.conformance.shim import CHECKS, check_shim, shim
from tests.integration.conftest import Roots

OURS = str(Path(sys.executable).parent / "containerd-shim-atoll-v1")
RUNC = "io.containerd.runc.v2"
JOBS = 4
OF_AN_OLD_SHIM = {"info_is_a_runtime_info", "start_understands_bootstrap_params", "a_sandbox_lives_and_ends"}
"""What Debian's containerd 1.6 has not."""
NO_CGROUP = {"stats_are_cgroup_metrics"}
"""It has no statistics on a host where one of its hierarchies is not mounted."""


async def check(binary: str, roots: Roots, *names: str) -> Report:
    """All checks, or those named."""
    async with shim(binary, parent=roots.state) as subject:
        chosen = [one for one in CHECKS if not names or one.name in names]
        report = await check_shim(subject, chosen, jobs=JOBS)
    print(report)
    return report


async def test_our_shim_passes(roots: Roots) -> None:
    report = await check(OURS, roots)
    assert report.is_passed, report.failures
    assert report.skips == ()


async def test_the_reference_shim_passes(roots: Roots) -> None:
    report = await check(RUNC, roots)
    assert report.is_passed, report.failures
    assert {outcome.check.name for outcome in report.skips} - NO_CGROUP <= OF_AN_OLD_SHIM


BARE = '[ "$last" = start ] && [ ! -e config.json ]'
FAULTS = {
    "its version is an error": ('[ "$last" = -v ] && exit 1', ("version_is_told",)),
    "start talks": (
        '[ "$last" = start ] && echo "starting ..."',
        ("start_answers_where_it_listens", "start_is_idempotent"),
    ),
    "each start makes a shim": (
        '[ "$last" = start ] && set -- "$1" "$2" -address "$4.$$" "$5" "$6" "$7" "$8" start',
        ("start_is_idempotent", "a_pod_shares_a_shim"),
    ),
    "start needs no config": (
        f"{BARE} && {{ echo unix:///run/nobody.sock; exit 0; }}",
        ("a_bundle_without_a_config_is_a_sandboxs",),
    ),
    "delete does nothing": (
        '[ "$last" = delete ] && exit 0',
        ("delete_clears_what_a_killed_shim_left",),
    ),
}


@pytest.mark.may_leak("the faults leave what they leave")
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_a_shim_is_found(fault: str, roots: Roots) -> None:
    line, expected = FAULTS[fault]
    others = ("a_container_is_created_then_runs",) if fault != "start talks" else ()
    await check_fault(str(shutil.which("containerd-shim-runc-v2")), line, roots, expected, others)


FAULTS_OF_SANDBOXES = {
    "a sandbox needs a config": f"{BARE} && {{ echo config.json: is not there >&2; exit 1; }}",
    "a sandbox's shim is nobody": f"{BARE} && {{ echo unix:///run/nobody.sock; exit 0; }}",
}


@pytest.mark.may_leak("the faults leave what they leave")
@pytest.mark.parametrize("fault", FAULTS_OF_SANDBOXES)
async def test_a_fault_of_a_shim_with_sandboxes_is_found(fault: str, roots: Roots) -> None:
    expected = ("a_bundle_without_a_config_is_a_sandboxs",)
    await check_fault(OURS, FAULTS_OF_SANDBOXES[fault], roots, expected, ("a_sandbox_lives_and_ends",))


async def check_fault(real: str, line: str, roots: Roots, expected: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Put `line` before a shim: of these checks exactly the `expected` ones fail."""
    script = f'#!/bin/sh\nreal={real}\nfor last; do :; done\n{line}\nexec "$real" "$@"\n'
    binary = roots.base / "containerd-shim-fault-v2"
    binary.write_text(script)
    binary.chmod(0o700)
    report = await check(str(binary), roots, *expected, *others)
    assert {outcome.check.name for outcome in report.failures} == set(expected)
