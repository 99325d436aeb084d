"""`atoll conformance` against a controller of this process: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from atoll.sandbox.serving import listening
from atoll.testing.conformance import CHECKS, SAFE
from atoll.testing.conformance.shim import SAFE as SHIM_CHECKS
from atoll.testing.fake import FakeController
from tests.unit.cli.conftest import Cli
from tests.unit.testing.conformance.faults import StopIsNotIdempotent


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ttrpc+unix://{tmp_path}/it.sock"


@pytest.fixture
async def controller(address: str) -> AsyncGenerator[FakeController]:
    made = FakeController()
    async with listening(made, address):
        yield made


async def test_a_good_controller_passes(cli: Cli, address: str, controller: FakeController) -> None:
    said = await cli("conformance", "controller", address, "--elsewhere", "--only", "C2?")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].split() == ["CHECK", "RULES", "TIME"]
    assert any(line.split()[:2] == ["ok", "stop_is_idempotent"] for line in lines)
    assert lines[-1].startswith(f"{address}: ")
    assert "0 failed" in lines[-1]
    assert controller.ids == set()


async def test_a_fault_is_told_with_its_rule(cli: Cli, address: str, tmp_path: Path) -> None:
    async with listening(StopIsNotIdempotent(), address):
        report = tmp_path / "report.xml"
        said = await cli(
            "conformance", "controller", address, "--elsewhere", "--only", "stop_*", "--junit", str(report)
        )
    assert said.code == 1
    assert "FAILED  stop_is_idempotent" in said.out
    after = said.out.partition("\nstop_is_idempotent: ")[2].splitlines()
    assert after[1].startswith("  rule      C21, ")
    assert after[3] == "  expected  success"
    assert after[4].startswith("  got       FailedPrecondition: ")
    suite = ET.parse(report).getroot()[0]
    assert int(suite.get("failures", "0")) >= 1


async def test_the_report_as_json(cli: Cli, address: str, controller: FakeController) -> None:
    said = await cli("conformance", "controller", address, "--elsewhere", "--json", "--skip", "C1[0-9]", "--jobs", "9")
    told = json.loads(said.out)
    assert (said.code, told["subject"], told["failed"]) == (0, address, 0)
    assert not any(rule.startswith("C1") and len(rule) == 3 for one in told["outcomes"] for rule in one["rules"])


async def test_nobody_listens(cli: Cli, address: str) -> None:
    said = await cli("conformance", "controller", address)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert address in said.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("controller",), "no address"),
        (("controller", "http://example.com"), "must be"),
        (("controller", "unix:///x", "--config", "/no/such.json"), "/no/such.json: cannot be read"),
        (("controller", "unix:///x", "--only", "nothing-like-it"), "no check is like that"),
        (("shim",), "no binary"),
        (("shim", "/no/such/shim"), "no such file"),
    ],
)
async def test_what_cannot_be_tried_is_one_line(cli: Cli, arguments: tuple[str, ...], text: str) -> None:
    said = await cli("conformance", *arguments)
    assert (said.code, said.out) == (2, "")
    assert text in said.err
    assert said.err.count("\n") == 1


async def test_a_config_that_is_none_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pod.json").write_text('{"metadata": 7}')
    said = await cli("conformance", "controller", "unix:///x", "--config", str(tmp_path / "pod.json"))
    assert (said.code, said.out) == (2, "")
    assert "pod config" in said.err


async def test_a_network_of_its_own_needs_a_namespace(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pod.json").write_text('{"metadata": {"name": "it"}}')
    said = await cli("conformance", "controller", "unix:///x", "--config", str(tmp_path / "pod.json"))
    assert said.code == 2
    assert "give the path of its namespace" in said.err


async def test_the_checks_are_listed(cli: Cli) -> None:
    listed = (await cli("conformance", "controller", "--list")).out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == [check.name for check in SAFE]
    listed = (await cli("conformance", "controller", "--list", "--destructive")).out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == [check.name for check in CHECKS]
    listed = (await cli("conformance", "shim", "--list")).out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == [check.name for check in SHIM_CHECKS]
