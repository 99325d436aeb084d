from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.oci.failures import (
    MESSAGE_LIMIT,
    RuntimeFailed,
    StartFailed,
    explain_command,
    last_error,
    one_line,
    translate,
)


def log(message: str) -> bytes:
    return json.dumps({"level": "error", "msg": message, "time": "2026-01-01T00:00:00Z"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("operation", "said", "kind"),
    [
        ("state", "container does not exist", errors.NotFound),
        ("state", "error opening file `/run/c1/status`: No such file or directory", errors.NotFound),
        ("delete", "cannot open directory '/run/c1': No such file or directory", errors.NotFound),
        ("kill", "container not running", errors.NotFound),
        ("kill", "os: process already finished", errors.NotFound),
        ("kill", "kill container: No such process", errors.NotFound),
        ("create", "runc create failed: container with given ID already exists", errors.AlreadyExists),
        ("create", "container `c1` already exists", errors.AlreadyExists),
        ("create", "OOM: the memory limit could be too low: read from sync socket: gone", errors.InvalidArgument),
        ("create", "container init was OOM-killed (memory limit too low?)", errors.InvalidArgument),
        ("update", "writing file `memory.limit_in_bytes`: Device or resource busy", errors.FailedPrecondition),
        ("update", "writing file `cpu.cfs_quota_us`: Invalid argument", errors.InvalidArgument),
        ("create", "writing file `cpuset.cpus`: Numerical result out of range", errors.InvalidArgument),
        (
            "create",
            'unable to apply cgroup configuration: failed to write "7": write /cg/a/cpuset.mems: invalid argument',
            errors.InvalidArgument,
        ),
        ("create", "mknod `/bin/busybox/x`: Not a directory", errors.InvalidArgument),
        ("create", "mount `/var/a` to `bin/busybox`: Not a directory", errors.InvalidArgument),
        ("create", "mkdir `/proc/x`: No such file or directory", errors.InvalidArgument),
        ("create", "failed open()ing /dev/null: No such file or directory", errors.InvalidArgument),
        ("create", "unable to setup user: stat /dev/null: no such file or directory", errors.InvalidArgument),
        (
            "create",
            'error mounting "/a" to rootfs at "/proc/x": "/b/proc/x" cannot be mounted because it is inside /proc',
            errors.InvalidArgument,
        ),
        ("create", "mount `proc` to `proc`: Cannot allocate memory", RuntimeFailed),
        ("exec", "fail startup", errors.FailedPrecondition),
        ("exec", "setns `mnt`: Bad file descriptor", errors.FailedPrecondition),
        ("start", "cannot start an already running container", errors.FailedPrecondition),
        ("start", "cannot start a container that has stopped", errors.FailedPrecondition),
        ("start", "cannot open `/run/c1/exec.fifo`: No such file or directory", errors.FailedPrecondition),
        ("delete", "cannot delete container c1 that is not stopped: running", errors.FailedPrecondition),
        ("delete", "the container `c1` is not in `created` or `stopped` state", errors.FailedPrecondition),
        ("exec", "exec failed: cannot exec in a stopped container", errors.FailedPrecondition),
        ("exec", "the container `c1` is paused", errors.FailedPrecondition),
        ("exec", "setns(pid=31351, CLONE_NEWUSER): No such process", errors.FailedPrecondition),
        ("resume", "container not paused", errors.FailedPrecondition),
        ("create", 'runc create failed: unable to start container process: exec: "x": not found', StartFailed),
        ("create", "executable file `x` not found in $PATH: No such file or directory", StartFailed),
        ("exec", "open executable: Operation not permitted", StartFailed),
        ("exec", "chdir `/nono`: No such file or directory", StartFailed),
        ("create", 'error mounting "/x" to rootfs at "/y": no such file or directory', RuntimeFailed),
    ],
)
def test_runtimes_words_have_kinds(operation: str, said: str, kind: type[errors.AtollError]) -> None:
    error = translate("runc", operation, "c1", 1, log(said))
    assert type(error) is kind
    assert error.message.startswith(f"runc {operation} c1: ")
    assert "\n" not in error.message


def test_noise_is_left_out() -> None:
    error = translate(
        "runc", "create", "c1", 1, log('runc create failed: unable to start container process: exec: "x": no')
    )
    assert error.message == 'runc create c1: exec: "x": no'
    assert isinstance(error, StartFailed)
    assert (error.operation, error.container) == ("create", "c1")


def test_error_lines_come_before_warnings_and_text() -> None:
    warning = b'{"level":"warning","msg":"cgroup v1 is deprecated"}\n'
    assert last_error(warning + log("real") + b"text on stderr\n" + warning) == "real"
    assert last_error(b"first\nlast\n" + warning) == "last"
    assert last_error(b"") == ""


def test_silence_and_signals_are_told() -> None:
    assert translate("crun", "ps", "c1", -11, b"").message == "crun ps c1: ended by signal 11"
    assert "exit code 3" in translate("crun", "ps", "c1", 3, b"").message


@given(st.binary())
def test_any_log_gives_one_bounded_line(content: bytes) -> None:
    message = translate("crun", "create", "c1", 1, content).message
    assert message.isprintable()
    assert len(message) <= MESSAGE_LIMIT + 40


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert "\n" not in one_line(text)
    assert len(one_line(text)) <= MESSAGE_LIMIT


NOT_THERE = "command 'x': is not in image i; name a program that is"
NOT_EXECUTABLE = "command 'x': cannot be executed in image i: "


@pytest.mark.parametrize(
    ("said", "kind", "clear"),
    [
        ("crun create c1: executable file `x` not found in $PATH: No such file or directory", 5, NOT_THERE),
        ('runc create c1: exec: "x": executable file not found in $PATH', 5, NOT_THERE),
        ('OCI runtime create failed: exec: "x": stat x: no such file or directory: unknown', 5, NOT_THERE),
        ("runc start c1: exec /x: no such file or directory", 2, ""),
        ("crun exec c1: open executable: Permission denied", 9, NOT_EXECUTABLE + "permission denied; look at its mode"),
        ('runc create c1: exec: "x": permission denied', 9, NOT_EXECUTABLE + "permission denied; look at its mode"),
        ("crun start c1: cannot exec `x`: Exec format error", 9, NOT_EXECUTABLE + "exec format error; it must be"),
        ('runc create c1: exec: "x": is a directory', 9, NOT_EXECUTABLE + "is a directory; name a program in it"),
        ("crun create c1: chdir `/w`: No such file or directory", 5, "working folder '/w': cannot be entered in"),
        ("runc create c1: mkdir /w: not a directory", 5, "working folder '/w': cannot be entered in"),
        ("runc create c1: mkdir /other: not a directory", 2, ""),
        ('runc create c1: exec: "x": something new', 2, ""),
        ('runc create c1: error mounting "/x" to rootfs at "/y": no such file or directory', 2, ""),
    ],
)
def test_a_command_at_fault_is_told_in_clear_words(said: str, kind: int, clear: str) -> None:
    error = errors.Unknown(said)
    found = explain_command(error, "x", "/w", "image i")
    assert found.code == kind
    assert found.message.startswith(clear or said)
    assert (found is error) == (not clear)


def test_what_is_no_fault_of_a_runtime_is_left_as_it_is() -> None:
    error = errors.Unavailable("exec: the shim went away, no such file or directory")
    assert explain_command(error, "x", "/", "image i") is error


def test_a_working_folder_that_is_a_file_is_named_whatever_kind_of_error_it_came_as() -> None:
    said = "container c: runc create c: mkdir /etc/passwd: not a directory"
    for kind in (errors.Unknown, errors.InvalidArgument):
        explained = explain_command(kind(said), "true", "/etc/passwd", "image i")
        assert isinstance(explained, errors.NotFound)
        assert "working folder '/etc/passwd'" in str(explained)
    other = errors.InvalidArgument("container c: runc create c: mkdir /data: not a directory")
    assert explain_command(other, "true", "/etc/passwd", "image i") is other
