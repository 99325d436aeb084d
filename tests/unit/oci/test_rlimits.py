from __future__ import annotations

import resource
from dataclasses import replace

import pytest

from atoll import errors
from atoll.linux.host import HostFacts
from atoll.oci import rlimits, spec

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def of(text: str, host: HostFacts) -> tuple[spec.Rlimit, ...]:
    return rlimits.of({rlimits.ANNOTATION: text}, {}, host)


def test_limits_are_soft_and_hard_or_both(host: HostFacts) -> None:
    assert of("nofile=10:20, core=0,", host) == (
        spec.Rlimit(type="RLIMIT_NOFILE", soft=10, hard=20),
        spec.Rlimit(type="RLIMIT_CORE", soft=0, hard=0),
    )
    able = replace(host, capabilities=frozenset({"CAP_SYS_RESOURCE"}))
    assert of("stack=unlimited", able) == (spec.Rlimit(type="RLIMIT_STACK", soft=2**64 - 1, hard=2**64 - 1),)


def test_a_containers_annotation_is_before_its_pods(host: HostFacts) -> None:
    pod = {rlimits.ANNOTATION: "core=0"}
    assert rlimits.of({}, {}, host) == ()
    assert rlimits.of({}, pod, host)[0].type == "RLIMIT_CORE"
    assert rlimits.of({rlimits.ANNOTATION: ""}, pod, host) == ()


@pytest.mark.parametrize(
    "text", ["nofile", "files=1", "nofile=-1", "nofile=1:2:3", "NOFILE=1", "nofile=2:1", f"core={2**64}"]
)
def test_what_is_no_limit_is_refused(host: HostFacts, text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="rlimits"):
        of(text, host)


@pytest.mark.skipif(HARD == resource.RLIM_INFINITY, reason="there is nothing above the hard limit")
def test_a_limit_above_the_daemons_own_needs_the_right_to_raise_it(host: HostFacts) -> None:
    with pytest.raises(errors.FailedPrecondition, match="CAP_SYS_RESOURCE"):
        of(f"nofile={HARD + 1}", host)
    able = replace(host, capabilities=frozenset({"CAP_SYS_RESOURCE"}))
    assert of(f"nofile={HARD + 1}", able)[0].hard == HARD + 1
