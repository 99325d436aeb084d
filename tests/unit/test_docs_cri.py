"""docs/cri.md names every field of the messages that ask for pods and containers, and tests that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.unit.test_docs import DOCS, REPOSITORY

MESSAGES = (
    "PodSandboxConfig",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "DNSConfig",
    "PortMapping",
    "ContainerConfig",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "LinuxContainerResources",
    "HugepageLimit",
    "NamespaceOption",
    "UserNamespace",
    "IDMapping",
    "SecurityProfile",
    "SELinuxOption",
    "Capability",
    "Mount",
    "ImageSpec",
    "Device",
    "CDIDevice",
    "KeyValue",
)


def rows() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Message, field and tests of each row."""
    section = ""
    for line in (DOCS / "cri.md").read_text().splitlines():
        if line.startswith("##"):
            section = line.strip("# ")
        elif section in MESSAGES and (row := re.match(r"\| `(\w+)` \|.*\| ([^|]*) \|$", line)):
            yield section, row[1], tuple(re.findall(r"`(test_\w+)`", row[2]))


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_is_told(message: str) -> None:
    told = [field for section, field, _ in rows() if section == message]
    assert told == [field.name for field in pb.DESCRIPTOR.message_types_by_name[message].fields]


def test_every_field_is_shown_by_tests_that_there_are() -> None:
    text = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", text))
    missing = {(section, field): set(tests) - there for section, field, tests in rows() if set(tests) - there}
    assert not missing
    assert all(tests for _, _, tests in rows())
