"""What came of a run: for people, as JSON, and as JUnit's XML."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from xml.etree import ElementTree as ET

from atoll.testing.conformance.check import Broken, Check, told

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one check.

    Of a failure `text` tells it all, and `what`, `expected` and `got` its parts, where it has them; of a skip `text` is
    the reason. `left` names what the check could not clear away.
    """

    check: Check[Any]
    verdict: Verdict
    duration_s: float = 0.0
    text: str = ""
    what: str = ""
    expected: str = ""
    got: str = ""
    left: tuple[str, ...] = ()

    @classmethod
    def failed(
        cls, check: Check[Any], error: BaseException, *, duration_s: float = 0.0, left: tuple[str, ...] = ()
    ) -> Outcome:
        """The outcome of a check that ended with an error, a `Broken` or whatever the subject raised."""
        broken = error if isinstance(error, Broken) else Broken("an unexpected error", "success", told(error))
        return cls(
            check=check,
            verdict=Verdict.FAILED,
            duration_s=duration_s,
            text=str(broken),
            what=broken.what,
            expected=broken.expected,
            got=broken.got,
            left=left,
        )

    def __str__(self) -> str:
        tail = f": {self.text} [{self.check.origin}]" if self.text else ""
        left = f"; left behind: {', '.join(self.left)}" if self.left else ""
        return f"{self.verdict} {self.check.name}{tail}{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of all, in the order of the checks; `subject` names what was tried."""

    subject: str
    outcomes: tuple[Outcome, ...]
    duration_s: float = 0.0

    def of(self, verdict: Verdict) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is verdict)

    @property
    def is_passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return self.of(Verdict.FAILED)

    @property
    def skips(self) -> tuple[Outcome, ...]:
        return self.of(Verdict.SKIPPED)

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{len(self.of(verdict))} {verdict}" for verdict in Verdict)
        return f"{counts} in {self.duration_s:.1f} s"

    def __str__(self) -> str:
        return "\n".join((*map(str, self.outcomes), self.summary))

    def to_json(self) -> str:
        """One object: subject, counts, and a list of outcomes."""
        return json.dumps(
            {
                "subject": self.subject,
                "duration_s": round(self.duration_s, 3),
                **{str(verdict): len(self.of(verdict)) for verdict in Verdict},
                "outcomes": [_plain(outcome) for outcome in self.outcomes],
            },
            indent=2,
        )

    def to_junit(self) -> bytes:
        """The XML that CI systems read: one test suite, one test case a check."""
        suite = ET.Element(
            "testsuite",
            name=_clean(f"conformance of {self.subject}"),
            tests=str(len(self.outcomes)),
            failures=str(len(self.failures)),
            skipped=str(len(self.skips)),
            errors="0",
            time=f"{self.duration_s:.3f}",
        )
        for outcome in self.outcomes:
            case = ET.SubElement(
                suite, "testcase", classname="conformance", name=outcome.check.name, time=f"{outcome.duration_s:.3f}"
            )
            if outcome.verdict is Verdict.SKIPPED:
                ET.SubElement(case, "skipped", message=_clean(outcome.text))
            elif outcome.verdict is Verdict.FAILED:
                failure = ET.SubElement(case, "failure", type=outcome.check.origin, message=_clean(outcome.text))
                failure.text = _clean("\n".join((outcome.check.claim, outcome.text, *outcome.left)))
        suites = ET.Element("testsuites")
        suites.append(suite)
        return ET.tostring(suites, encoding="utf-8", xml_declaration=True)


def _plain(outcome: Outcome) -> dict[str, object]:
    check = outcome.check
    return {
        "check": check.name,
        "verdict": outcome.verdict.value,
        "claim": check.claim,
        "rules": list(check.rules),
        "source": check.source,
        "destructive": check.destructive,
        "duration_s": round(outcome.duration_s, 3),
        "text": outcome.text,
        "what": outcome.what,
        "expected": outcome.expected,
        "got": outcome.got,
        "left": list(outcome.left),
    }


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot carry."""
    return _NO_XML.sub("?", text)
