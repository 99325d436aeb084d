from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.oci import bpf, seccomp
from atoll.oci import syscall_groups as groups
from atoll.oci.capabilities import DEFAULT
from atoll.oci.spec import Seccomp, SeccompSyscall

FORBIDDEN = (
    "add_key", "keyctl", "request_key", "mount", "umount2", "unshare", "setns", "bpf", "perf_event_open",
    "userfaultfd", "io_uring_setup", "kexec_load", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "pivot_root", "open_by_handle_at", "clock_settime", "syslog", "iopl", "ioperm", "acct",
    "quotactl", "nfsservctl", "lookup_dcookie", "kcmp", "move_pages", "vhangup", "settimeofday", "open_tree",
)  # fmt: skip


def allowed(profile: Seccomp) -> set[str]:
    return {name for rule in profile.syscalls if rule.action == seccomp.ALLOW and not rule.args for name in rule.names}


def test_default_refuses_what_reaches_past_a_container() -> None:
    profile = seccomp.default_profile(DEFAULT, "x86_64", (6, 1))
    assert profile.default_action == seccomp.ERRNO
    assert not allowed(profile) & set(FORBIDDEN)
    assert {"read", "openat", "execve", "futex", "ptrace", "chroot"} <= allowed(profile)


def test_conditional_calls_are_never_open_without_their_condition() -> None:
    names = allowed(seccomp.default_profile(DEFAULT, "x86_64", (6, 1)))
    assert not names & {"clone", "clone3", "personality", "socket"}


def test_clone3_says_it_is_unknown_so_that_clone_is_used() -> None:
    rules = {name: rule for rule in seccomp.default_profile(DEFAULT, "x86_64", (6, 1)).syscalls for name in rule.names}
    assert rules["clone3"].errno_ret == 38
    assert rules["clone"].args[0].value == seccomp.NAMESPACE_FLAGS


@pytest.mark.parametrize("capability", sorted(groups.BY_CAPABILITY))
def test_capability_opens_its_calls(capability: str) -> None:
    opened = set(groups.BY_CAPABILITY[capability].split())
    assert opened <= allowed(seccomp.default_profile(frozenset((capability,)), "x86_64", (6, 1)))


def test_tracing_is_refused_where_it_escapes_the_filter() -> None:
    assert "ptrace" not in allowed(seccomp.default_profile(DEFAULT, "x86_64", (4, 4)))


def test_unknown_machine_is_an_error() -> None:
    with pytest.raises(errors.FailedPrecondition, match="vax"):
        seccomp.default_profile(DEFAULT, "vax", (6, 1))


def test_profile_file_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "comment": "kept out"}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    expected = Seccomp(
        default_action="SCMP_ACT_ALLOW",
        syscalls=(SeccompSyscall(names=("mkdir",), action="SCMP_ACT_ERRNO", errno_ret=2),),
    )
    assert seccomp.load_profile(str(path)) == expected
    assert seccomp.load_profile("localhost/p.json", tmp_path) == expected


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction":"NONE"}',
        '{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"NONE"}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","includes":{"caps":["X"]}}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":9,"value":1,"op":"SCMP_CMP_EQ"}]}]}',
    ],
)
def test_other_documents_are_refused(tmp_path: Path, document: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(document)
    with pytest.raises(errors.InvalidArgument):
        seccomp.load_profile(str(path))


def test_profile_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (str(tmp_path / "fifo"), str(tmp_path), "/no/such", "relative", ""):
        with pytest.raises(errors.InvalidArgument):
            seccomp.load_profile(name)
    with pytest.raises(errors.InvalidArgument):
        seccomp.load_profile("../x", tmp_path)


@given(st.binary(max_size=200))
def test_any_content_is_a_profile_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("profiles") / "p"
    path.write_bytes(content)
    with pytest.raises(errors.InvalidArgument):
        seccomp.load_profile(str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"default_action": "SCMP_ACT_NOTIFY"},
        {"flags": ("SECCOMP_FILTER_FLAG_LOG",)},
        {"listener_path": "/run/s"},
        {"architectures": ("SCMP_ARCH_NONE",)},
    ],
)
def test_profile_without_a_plain_form_is_left_to_the_runtime(change: dict[str, object]) -> None:
    values: dict[str, object] = {"default_action": "SCMP_ACT_ALLOW", **change}
    assert bpf.annotation(Seccomp(**values)) == {}  # pyright: ignore[reportArgumentType]
