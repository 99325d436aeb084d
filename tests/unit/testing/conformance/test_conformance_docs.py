"""docs/conformance.md lists the checks as they are, and every rule of the contract is tried or named as untried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atoll.testing.conformance import CHECKS
from atoll.testing.conformance import shim as shims
from atoll.testing.conformance.check import Check
from atoll.testing.conformance.shim.subject import ShimTrial
from atoll.testing.conformance.subject import Trial

DOCS = Path(__file__).resolve().parents[4] / "docs"
PAGE = (DOCS / "conformance.md").read_text()
RULES = re.findall(r"^\* \*\*(C\d+)\*\*", (DOCS / "sandbox-contract.md").read_text(), re.MULTILINE)
IN_ALL = ("C47", "C60")
MODULE_LINES = 400

Any = Check[Trial] | Check[ShimTrial]


def listed(heading: str) -> list[str]:
    """The rows of the table below a heading."""
    section = PAGE[PAGE.index(f"\n## {heading}\n") + 4 :].partition("\n## ")[0]
    return re.findall(r"^\| (`\w+`.*) \|$", section, re.MULTILINE)


def row(check: Any) -> str:
    return " | ".join((f"`{check.name}`{' ✗' if check.destructive else ''}", check.origin, check.claim))


@pytest.mark.parametrize(("heading", "checks"), [("Controllers", CHECKS), ("Shims", shims.CHECKS)])
def test_the_page_lists_the_checks(heading: str, checks: tuple[Any, ...]) -> None:
    assert listed(heading) == [row(check) for check in checks]


def test_every_rule_is_tried_or_named_as_untried() -> None:
    tried = {rule for check in CHECKS for rule in check.rules}
    sentence = re.search(r"has no check: ([C\d, ]+)\.", PAGE)
    assert sentence is not None
    untried = set(sentence[1].split(", "))
    assert len(RULES) > 30
    assert tried | untried | set(IN_ALL) == set(RULES)
    assert not tried & untried


@pytest.mark.parametrize("checks", [CHECKS, shims.CHECKS], ids=["controllers", "shims"])
def test_a_check_says_what_it_is(checks: tuple[Any, ...]) -> None:
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.origin, check.name
        assert len(check.claim) > 20, check.name


def test_modules_are_short() -> None:
    package = Path(shims.__file__).parents[1]
    lines = {path.name: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}
