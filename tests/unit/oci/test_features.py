from __future__ import annotations

import json

import pytest

from atoll import errors
from atoll.oci import features

CRUN = "crun version 1.8.1\ncommit: x\nspec: 1.0.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL\n"
RUNC = "runc version 1.1.5+ds1\ncommit: x\nspec: 1.0.2-dev\n"


def test_version_line_tells_what_crun_was_built_with() -> None:
    found = features.from_version("crun", CRUN)
    assert (found.version, found.seccomp, found.checkpoint, found.seccomp_bpf) == ("1.8.1", True, False, True)
    assert found.recursive_read_only
    assert features.from_version("crun", CRUN.replace("1.8.1", "1.3")).recursive_read_only is False
    assert features.from_version("crun", CRUN + "+CRIU\n").checkpoint


def test_document_tells_what_runc_can_do() -> None:
    document = {
        "mountOptions": ["ro", "rro"],
        "linux": {"seccomp": {"enabled": True}, "cgroup": {"systemd": True}, "apparmor": {"enabled": True}},
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"},
    }
    found = features.from_document("runc", RUNC, json.dumps(document).encode())
    assert (found.version, found.seccomp, found.checkpoint, found.seccomp_bpf) == ("1.1.5+ds1", True, True, False)
    assert found.recursive_read_only
    assert not found.id_mapped_mounts


def test_unknown_runtime_promises_nothing() -> None:
    found = features.from_version("other", "other 7")
    assert not any((found.seccomp, found.checkpoint, found.seccomp_bpf, found.recursive_read_only))
    with pytest.raises(errors.Internal):
        features.from_document("other", "", b"no json")


@pytest.mark.parametrize(("text", "numbers"), [("1.1.5+ds1", (1, 1, 5)), ("", ()), ("x", ()), ("2", (2,))])
def test_numbers_of_a_version(text: str, numbers: tuple[int, ...]) -> None:
    assert features.numbers(text) == numbers
