"""Containers on the real kernel, through the CRI of a real daemon."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]  it ships none

from atoll import crilog
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import BUSYBOX, CRI, content, eventually, in_parallel, refused, token
from tests.integration.leaks import CGROUPS, wait_until

pytestmark = pytest.mark.shared_daemon

MIB = 1024 * 1024
NO_PROGRAM = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN)
"""The OCI runtime tells of it in words alone."""


@pytest.fixture
def pod(cri: CRI) -> str:
    return cri.run_pod()


def test_a_container_is_created_started_stopped_and_removed(cri: CRI, pod: str) -> None:
    config = cri.container_config("sleep", "1000", labels={"a": "1"}, annotations={"b": "2"})
    container = cri.create(pod, config)
    made = cri.status(container)
    assert made.state == pb.CONTAINER_CREATED
    assert made.metadata == config.metadata
    assert dict(made.labels) == {"a": "1"}
    assert dict(made.annotations) == {"b": "2"}
    assert made.started_at == made.finished_at == 0 < made.created_at
    cri.start(container)
    running = cri.status(container)
    assert running.state == pb.CONTAINER_RUNNING
    assert running.created_at <= running.started_at
    assert [one.state for one in cri.list(id=container)] == [pb.CONTAINER_RUNNING]
    assert [one.id for one in cri.pod_status_answer(pod).containers_statuses] == [container]
    cri.stop(container)
    ended = cri.status(container)
    assert ended.state == pb.CONTAINER_EXITED
    assert ended.exit_code == 137
    assert ended.reason == "Error"
    assert running.started_at <= ended.finished_at <= time.time_ns()
    cri.stop(container)
    cri.remove(container)
    cri.remove(container)
    cri.stop(container)
    assert cri.list() == []
    assert cri.fsck() == []


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -TERM $$", 143, "Error"), ("exit 255", 255, "Error")],
)
def test_the_exit_code_is_the_commands(cri: CRI, pod: str, script: str, code: int, reason: str) -> None:
    container = cri.script(pod, script)
    assert cri.wait(container).code == code
    status = cri.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, code, reason)
    assert cri.wait(container).code == code


def test_many_exits_at_once_are_all_right(cri: CRI, pod: str) -> None:
    containers = [cri.create(pod, cri.container_config("/bin/sh", "-c", f"exit {code}")) for code in range(12)]
    assert in_parallel([lambda one=one: cri.start(one) for one in containers]) == [None] * 12
    assert [cri.wait(one).code for one in containers] == list(range(12))


@pytest.mark.parametrize(
    ("script", "code"),
    [("exec tail -c 67108864 /dev/zero", 137), ("tail -c 67108864 /dev/zero; exit 3", 3)],
    ids=["itself", "a child"],
)
def test_memory_that_runs_out_is_told_as_oomkilled(cri: CRI, pod: str, script: str, code: int) -> None:
    config = cri.container_config("/bin/sh", "-c", script)
    config.linux.resources.memory_limit_in_bytes = 16 * MIB
    container = cri.create(pod, config)
    cri.start(container)
    assert cri.wait(container).cause == own.Exit.OOM_KILLED
    status = cri.status(container)
    assert (status.exit_code, status.reason) == (code, "OOMKilled")


def test_the_stop_signal_comes_first_and_sigkill_after_the_grace(cri: CRI, pod: str) -> None:
    polite = cri.script(pod, 'trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.05; done')
    eventually(lambda: b"up" in cri.log(polite), "the trap is set")
    cri.stop(polite, timeout=10)
    assert cri.status(polite).exit_code == 5
    assert cri.output(polite) == b"up\nbye\n"

    deaf = cri.script(pod, 'trap "" TERM; echo up; while :; do sleep 0.05; done')
    eventually(lambda: b"up" in cri.log(deaf), "the trap is set")
    begun = time.monotonic()
    cri.stop(deaf, timeout=1)
    assert 1.0 <= time.monotonic() - begun < 5
    assert cri.status(deaf).exit_code == 137


def test_a_configured_stop_signal_is_the_one_that_is_sent(cri: CRI, pod: str) -> None:
    config = cri.container_config("/bin/sh", "-c", 'trap "exit 9" USR1; echo up; while :; do sleep 0.05; done')
    config.stop_signal = pb.SIGUSR1
    container = cri.create(pod, config)
    cri.start(container)
    eventually(lambda: b"up" in cri.log(container), "the trap is set")
    assert cri.status(container).stop_signal == pb.SIGUSR1
    cri.stop(container, timeout=10)
    assert cri.status(container).exit_code == 9


def test_a_cancelled_stop_does_not_kill_and_a_later_one_does(cri: CRI, pod: str) -> None:
    container = cri.script(pod, 'trap "echo asked" TERM; echo up; while :; do sleep 0.05; done')
    eventually(lambda: b"up" in cri.log(container), "the trap is set")
    request = pb.StopContainerRequest(container_id=container, timeout=2)
    call = cri.runtime.future("StopContainer", request, pb.StopContainerResponse)
    eventually(lambda: b"asked" in cri.log(container), "the signal has arrived")
    call.cancel()
    time.sleep(2.5)
    assert cri.status(container).state == pb.CONTAINER_RUNNING
    cri.stop(container, timeout=1)
    assert cri.status(container).exit_code == 137
    assert cri.output(container).count(b"asked") == 1, "the stop signal is sent once"


def test_a_missing_command_is_a_start_error_that_names_it(cri: CRI, pod: str) -> None:
    container = cri.create(pod, cri.container_config("/no/such/program"))
    with refused(NO_PROGRAM, "/no/such/program"):
        cri.start(container)
    status = cri.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "/no/such/program" in status.message
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "exited"):
        cri.start(container)
    cri.remove(container)
    assert cri.fsck() == []


def test_equal_creations_are_one_and_the_name_is_taken_until_the_removal(cri: CRI, pod: str) -> None:
    config = cri.container_config("sleep", "1000", name="one")
    made = in_parallel([lambda: cri.create(pod, config)] * 4)
    assert len(set(map(str, made))) == 1, made
    container = cri.create(pod, config)
    assert container == made[0]
    kinds = [cri.container_config("sleep", str(number), name="two") for number in range(3)]
    unequal = in_parallel([lambda kind=kind: cri.create(pod, kind) for kind in kinds])
    assert [type(one) for one in unequal].count(str) == 1, unequal
    assert {one.code() for one in unequal if isinstance(one, grpc.RpcError)} == {grpc.StatusCode.ALREADY_EXISTS}
    other = cri.container_config("sleep", "2000", name="one")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "one_", container[:13]):
        cri.create(pod, other)
    cri.start(container)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "one_"):
        cri.create(pod, config)
    cri.remove(container)
    assert cri.create(pod, other) != container


def test_equal_starts_are_one(cri: CRI, pod: str) -> None:
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    outcomes = in_parallel([lambda: cri.start(container)] * 4)
    assert None in outcomes
    for outcome in outcomes:
        assert outcome is None or (
            isinstance(outcome, grpc.RpcError) and outcome.code() is grpc.StatusCode.FAILED_PRECONDITION
        )
    assert cri.status(container).state == pb.CONTAINER_RUNNING
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "running"):
        cri.start(container)


def test_the_same_name_in_another_pod_is_another_container(cri: CRI, pod: str) -> None:
    config = cri.container_config("sleep", "1000", name="same")
    assert cri.create(pod, config) != cri.create(cri.run_pod(), config)


def test_two_containers_talk_over_the_pods_localhost(cri: CRI, pod: str) -> None:
    cri.script(pod, "echo from-web > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
    client = cri.script(pod, "until wget -q -O - http://127.0.0.1:8080/; do sleep 0.05; done")
    assert cri.wait(client).code == 0
    assert cri.output(client) == b"from-web\n"


def test_the_log_has_crio_lines_of_both_streams_and_partial_ends(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "echo out; echo err >&2; printf 'no end'")
    cri.wait(container)
    lines = cri.log(container).decode().splitlines()
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] .*")
    assert all(form.fullmatch(line) for line in lines), lines
    assert sorted(line.split(" ", 1)[1] for line in lines) == ["stderr F err", "stdout F out", "stdout P no end"]
    assert cri.status(container).log_path == str(
        Path(cri.roots.base, "logs", cri.pod_status(pod).metadata.name, Path(cri.status(container).log_path).name)
    )


def test_a_long_line_is_split_and_whole_when_joined(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "head -c 100000 /dev/zero | tr '\\0' x; echo")
    cri.wait(container)
    assert cri.output(container) == b"x" * 100_000 + b"\n"
    assert max(map(len, cri.log(container).splitlines())) < 16384 + 64


def test_limits_are_set_and_changed_while_it_runs(cri: CRI, pod: str) -> None:
    config = cri.container_config("sleep", "1000")
    limits = config.linux.resources
    limits.memory_limit_in_bytes, limits.cpu_quota, limits.cpu_period, limits.cpu_shares = 64 * MIB, 50000, 100000, 512
    container = cri.create(pod, config)
    cri.start(container)
    assert limit_of(cri, container) == 64 * MIB
    update(cri, container, memory_limit_in_bytes=128 * MIB)
    assert limit_of(cri, container) == 128 * MIB
    shown = cri.status(container).resources.linux
    assert shown.memory_limit_in_bytes == 128 * MIB
    assert (shown.cpu_quota, shown.cpu_shares) == (50000, 512), "what was not named stays"


def test_limits_changed_before_the_start_hold_after_it(cri: CRI, pod: str) -> None:
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    update(cri, container, memory_limit_in_bytes=32 * MIB)
    cri.start(container)
    assert limit_of(cri, container) == 32 * MIB
    cri.stop(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        update(cri, container, memory_limit_in_bytes=64 * MIB)


def test_limits_that_are_refused_leave_the_old_ones_in_force(cri: CRI, pod: str) -> None:
    """A quota that the kernel does not count to: an OCI runtime comes to it when the memory limit is in force."""
    container = cri.script(pod, "sleep 1000")
    update(cri, container, memory_limit_in_bytes=64 * MIB)
    with refused((grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN)):
        update(cri, container, memory_limit_in_bytes=32 * MIB, cpu_shares=600, cpu_quota=1 << 60)
    assert limit_of(cri, container) == 64 * MIB
    assert cri.status(container).resources.linux.memory_limit_in_bytes == 64 * MIB


def update(cri: CRI, container: str, **limits: int) -> None:
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=pb.LinuxContainerResources(**limits))  # pyright: ignore[reportArgumentType]
    cri.runtime.call("UpdateContainerResources", request, pb.UpdateContainerResourcesResponse)


def limit_of(cri: CRI, container: str) -> int:
    for pattern in ("memory/**/{}/memory.limit_in_bytes", "**/{}/memory.max"):
        for file in CGROUPS.glob(pattern.format(container)):
            return int(file.read_text())
    raise AssertionError("the container has no memory cgroup")


def test_stats_tell_cpu_memory_and_the_layer(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "head -c 3000000 /dev/zero > /layer; while :; do :; done")
    wait_until(lambda: cri.stats(container).cpu.usage_core_nano_seconds.value > 50_000_000, within=10)
    stats = cri.stats(container)
    assert stats.attributes.id == container
    assert stats.cpu.usage_core_nano_seconds.value > 50_000_000
    assert stats.memory.working_set_bytes.value > 0
    assert stats.writable_layer.used_bytes.value >= 3_000_000
    listed = cri.runtime.call("ListContainerStats", pb.ListContainerStatsRequest(), pb.ListContainerStatsResponse)
    assert [one.attributes.id for one in listed.stats] == [container]
    cri.stop(container)
    assert not cri.stats(container).HasField("memory") or cri.stats(container).memory.usage_bytes.value == 0


def test_an_image_in_use_survives_its_removal(cri: CRI, pod: str) -> None:
    container = cri.create(pod, cri.container_config("/bin/sh", "-c", "exit 3"))
    request = pb.RemoveImageRequest(image=pb.ImageSpec(image=BUSYBOX))
    cri.images.call("RemoveImage", request, pb.RemoveImageResponse)
    cri.start(container)
    assert cri.wait(container).code == 3


def test_an_unknown_image_is_named(cri: CRI, pod: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "no/such-image"):
        cri.create(pod, cri.container_config("true", image="no/such-image:1"))
    assert cri.list() == []
    assert cri.fsck() == []


def test_an_unknown_pod_is_named(cri: CRI) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "0000"):
        cri.create("0" * 64, cri.container_config("true"))


def test_a_removal_kills_what_runs(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "sleep 1000 & sleep 1000 & wait")
    cri.remove(container)
    with refused(grpc.StatusCode.NOT_FOUND):
        cri.status(container)
    assert not list(CGROUPS.glob(f"**/{container}"))


def test_containers_are_listed_by_pod_state_and_labels(cri: CRI, pod: str) -> None:
    other = cri.run_pod()
    web = cri.create(pod, cri.container_config("true", labels={"app": "web"}))
    run = cri.script(other, "sleep 1000")
    assert [one.id for one in cri.list(pod_sandbox_id=pod[:20])] == [web]
    assert [one.id for one in cri.list(label_selector={"app": "web"})] == [web]
    running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert [one.id for one in cri.list(state=running)] == [run]
    assert cri.list(id=web, pod_sandbox_id=other) == []


# --- exec ---


@pytest.fixture
def container(cri: CRI, pod: str) -> str:
    return cri.run(pod, "sleep", "1000", env={"OF": "container"})


def test_exec_gives_code_and_both_streams(cri: CRI, container: str) -> None:
    outcome = cri.exec(container, "/bin/sh", "-c", "echo out; echo err >&2; exit 4")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (4, b"out\n", b"err\n")


def test_exec_of_a_megabyte_is_whole(cri: CRI, container: str) -> None:
    outcome = cri.exec(container, "/bin/sh", "-c", "yes 0123456789abcde | head -c 1048576")
    assert outcome.stdout == b"0123456789abcde\n" * 65536


def test_exec_of_a_missing_command_is_an_error_that_names_it(cri: CRI, container: str) -> None:
    with refused(NO_PROGRAM, "/no/such/program"):
        cri.exec(container, "/no/such/program")
    assert cri.exec(container, "true").code == 0


def test_exec_needs_a_running_container_and_a_command(cri: CRI, pod: str, container: str) -> None:
    created = cri.create(pod, cri.container_config("true"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not running"):
        cri.exec(created, "true")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "command"):
        cri.exec(container)
    with refused(grpc.StatusCode.NOT_FOUND):
        cri.exec("0" * 64, "true")


def test_exec_with_user_environment_and_folder(cri: CRI, container: str) -> None:
    outcome = cri.run_exec(
        container,
        "/bin/sh",
        "-c",
        "id -u; id -g; echo $OF $EXTRA; pwd",
        user="1000:2000",
        env=["EXTRA=exec"],
        working_dir="/tmp",
    )
    assert outcome.stdout.decode().split("\n") == ["1000", "2000", "container exec", "/tmp", ""]
    assert outcome.code == 0


def test_an_exec_that_takes_too_long_is_killed_with_its_tree_and_nothing_else(cri: CRI, container: str) -> None:
    mark, other = f"10{int(token()[:5], 16)}", f"20{int(token()[:5], 16)}"
    cri.exec(container, "/bin/sh", "-c", f"sleep {other} >/dev/null 2>&1 &")
    begun = time.monotonic()
    # One that has left the exec's session and tree is nobody's any more: it keeps the streams and is not waited for.
    script = f"echo out; echo err >&2; (setsid sleep 2{mark} &) ; sleep {mark} & sleep {mark}"
    with pytest.raises(grpc.RpcError, match="timeout 1s exceeded") as caught:
        cri.exec(container, "/bin/sh", "-c", script, timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 5
    assert written(caught.value) == (b"out\n", b"err\n")
    assert wait_until(lambda: not processes(mark)), "the exec's tree is alive"
    assert processes(other), "another exec's process was killed"
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def written(error: grpc.RpcError) -> tuple[bytes, bytes]:
    """What an exec that took too long had written, from the details of its status."""
    whole = next(one.value for one in error.trailing_metadata() or () if one.key == "grpc-status-details-bin")
    assert isinstance(whole, bytes)
    (detail,) = status_pb2.Status.FromString(whole).details
    said = pb.ExecSyncResponse()
    assert detail.Unpack(said)
    return said.stdout, said.stderr


def test_a_background_child_that_keeps_the_pipe_does_not_hold_the_exec_for_ever(cri: CRI, container: str) -> None:
    begun = time.monotonic()
    outcome = cri.exec(container, "/bin/sh", "-c", "echo said; sleep 60 &")
    assert (outcome.code, outcome.stdout) == (0, b"said\n")
    assert time.monotonic() - begun < 15


def test_a_background_child_holds_a_bounded_exec_no_longer_than_its_bound(cri: CRI, container: str) -> None:
    begun = time.monotonic()
    outcome = cri.exec(container, "/bin/sh", "-c", "echo begun; sleep 60 & exit 4", timeout=2)
    assert (outcome.code, outcome.stdout) == (4, b"begun\n")
    assert time.monotonic() - begun < 5


def test_more_output_than_a_message_holds_is_cut_and_the_exit_code_told(cri: CRI, container: str) -> None:
    outcome = cri.exec(container, "/bin/sh", "-c", "head -c 9000000 /dev/zero; head -c 9000000 /dev/zero >&2; exit 3")
    assert (outcome.code, len(outcome.stdout)) == (3, 9_000_000)
    assert 7_000_000 < len(outcome.stderr) < 9_000_000


def test_a_word_with_a_zero_byte_is_refused(cri: CRI, container: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "zero byte"):
        cri.exec(container, "echo", "a\0b")


def test_stdin_reaches_an_exec_and_its_end_too(cri: CRI, container: str) -> None:
    def inputs() -> Iterator[own.ExecRequest]:
        for _ in range(64):
            yield own.ExecRequest(stdin=b"0123456789abcdef" * 4096)
        yield own.ExecRequest(close_stdin=True)

    assert cri.run_exec(container, "wc", "-c", inputs=inputs(), stdin=True).stdout.strip() == b"4194304"


def test_an_exec_with_a_terminal_has_its_size_and_is_told_of_a_new_one(cri: CRI, container: str) -> None:
    resized = threading.Event()

    def inputs() -> Iterator[own.ExecRequest]:
        assert resized.wait(10)
        yield own.ExecRequest(resize=own.TerminalSize(width=90, height=31))
        time.sleep(0.3)
        yield own.ExecRequest(stdin=b"x\n")

    def requests() -> Iterator[own.ExecRequest]:
        # A runtime may give the terminal its size only behind the start of the process.
        script = "tty; until stty size | grep '^40 120$'; do sleep 0.05; done; read line; stty size"
        yield own.ExecRequest(
            start=own.ExecStart(
                container_id=container,
                command=["/bin/sh", "-c", script],
                tty=True,
                stdin=True,
                size=own.TerminalSize(width=120, height=40),
            )
        )
        yield from inputs()

    said, code = b"", None
    for message in cri.own.stream("Exec", requests()):
        said += message.stdout
        if b"40 120" in said:
            resized.set()
        if message.WhichOneof("message") == "exit":
            code = message.exit.code
    assert code == 0
    assert b"/dev/pts/" in said
    assert b"31 90" in said


def test_a_client_that_goes_away_ends_its_exec(cri: CRI, container: str) -> None:
    mark = f"10{int(token()[:5], 16)}"
    stream = cri.own.stream("Exec", iter([own.ExecRequest(start=exec_start(container, f"sleep {mark}; true"))]))
    assert next(stream).HasField("started")
    eventually(lambda: bool(processes(mark)), "the exec runs")
    stream.cancel()
    eventually(lambda: not processes(mark), "the exec is gone")


def test_a_signal_reaches_an_exec(cri: CRI, container: str) -> None:
    def requests() -> Iterator[own.ExecRequest]:
        script = 'trap "exit 6" USR2; echo up; while :; do sleep 0.05; done'
        yield own.ExecRequest(start=exec_start(container, script))
        assert up.wait(10)
        yield own.ExecRequest(signal=12)

    up, code = threading.Event(), None
    for message in cri.own.stream("Exec", requests()):
        if b"up" in message.stdout:
            up.set()
        if message.WhichOneof("message") == "exit":
            code = message.exit.code
    assert code == 6


def exec_start(container: str, script: str) -> own.ExecStart:
    return own.ExecStart(container_id=container, command=["/bin/sh", "-c", script])


def processes(mark: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"^sleep {mark}$"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


# --- attach and logs ---


def test_several_clients_attach_and_each_sees_all(cri: CRI, pod: str) -> None:
    config = cri.container_config("/bin/sh", "-c", "read go; seq 1 500; exit 8", stdin=True)
    container = cri.create(pod, config)
    cri.start(container)
    ready = [threading.Event() for _ in range(3)]
    outputs: list[bytes] = [b""] * 3
    codes: list[int] = [-1] * 3

    def attach(at: int) -> None:
        def requests() -> Iterator[own.AttachRequest]:
            yield own.AttachRequest(start=own.AttachStart(container_id=container, stdin=at == 0))
            if at == 0:
                for one in ready[1:]:
                    one.wait(10)
                time.sleep(0.5)
                yield own.AttachRequest(stdin=b"go\n")

        stream = cri.own.stream("Attach", requests())
        ready[at].set()
        for message in stream:
            outputs[at] += message.stdout
            if message.WhichOneof("message") == "exit":
                codes[at] = message.exit.code

    in_parallel([lambda at=at: attach(at) for at in range(3)])
    expected = b"".join(b"%d\n" % n for n in range(1, 501))
    assert outputs == [expected] * 3
    assert codes == [8] * 3
    assert cri.output(container) == expected


def test_attach_needs_a_running_container_and_stdin_where_it_is_asked_for(cri: CRI, container: str) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "without stdin"):
        list(
            cri.own.stream(
                "Attach",
                iter([own.AttachRequest(start=own.AttachStart(container_id=container, stdin=True))]),
            )
        )


def test_a_rotated_log_loses_nothing(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done")
    path = Path(cri.status(container).log_path)
    followed: list[bytes] = []
    reader = threading.Thread(
        target=lambda: followed.extend(
            line.content
            for message in cri.own.stream("Logs", own.LogsRequest(container_id=container, follow=True, tail=-1))
            for line in crilog.lines(message.block)
        )
    )
    reader.start()
    kept = b""

    def keeps_up() -> bool:
        return len(followed) >= kept.count(b"\n")

    eventually(lambda: bool(followed), "the reader has begun")
    for number in range(5):
        if cri.status(container).state != pb.CONTAINER_RUNNING:
            break
        rotated = path.with_name(f"{path.name}.{number}")
        path.rename(rotated)
        request = pb.ReopenContainerLogRequest(container_id=container)
        try:
            cri.runtime.call("ReopenContainerLog", request, pb.ReopenContainerLogResponse)
        except grpc.RpcError:
            rotated.rename(path)
            if cri.status(container).state == pb.CONTAINER_RUNNING:
                raise
            break
        kept += rotated.read_bytes()
        # Who follows a path sees a rotation when it has read to the end: two at once would hide a file from it.
        eventually(keeps_up, "the reader keeps up")
    cri.wait(container)
    kept += path.read_bytes()
    expected = [b"line %d" % n for n in range(4000)]
    assert content(kept).splitlines() == expected
    reader.join(10)
    assert not reader.is_alive()
    assert followed == expected
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not running"):
        cri.runtime.call(
            "ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container), pb.ReopenContainerLogResponse
        )


def test_logs_are_read_from_the_end_since_and_followed(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "for i in 1 2 3 4 5; do echo $i; done; sleep 1; echo last")

    def read(**wanted: int | bool) -> list[bytes]:
        request = own.LogsRequest(container_id=container, **wanted)  # pyright: ignore[reportArgumentType]
        return [line.content for message in cri.own.stream("Logs", request) for line in crilog.lines(message.block)]

    eventually(lambda: len(read(tail=-1)) == 5, "five lines are there")
    assert read(tail=2) == [b"4", b"5"]
    assert read(follow=True, tail=1) == [b"5", b"last"]
    assert read(tail=-1, since=time.time_ns()) == []


def test_without_a_log_directory_the_log_is_the_daemons_own_and_goes_with_the_container(cri: CRI) -> None:
    config = cri.pod_config()
    config.log_directory = ""
    container = cri.script(cri.run_pod(config), "echo kept")
    cri.wait(container)
    path = Path(cri.status(container).log_path)
    assert cri.output(container) == b"kept\n"
    assert cri.roots.root in path.parents
    cri.remove(container)
    assert not path.parent.exists()


def test_a_tty_container_has_a_terminal_and_one_stream(cri: CRI, pod: str) -> None:
    container = cri.script(pod, "tty; echo err >&2", tty=True)
    cri.wait(container)
    assert b"/dev/" in cri.output(container)
    assert b"err" in cri.output(container)
    assert cri.output(container, "stderr") == b""


def test_events_of_processes_leave_no_descriptor_in_the_shim(cri: CRI, pod: str) -> None:
    shim = cri.pod_info(pod)["pid"]

    def fds() -> int:
        return len(os.listdir(f"/proc/{shim}/fd"))

    cri.remove(cri.run(pod, "true"))
    before = fds()
    for _ in range(3):
        container = cri.script(pod, "sleep 1000")
        cri.exec(container, "true")
        cri.remove(container)
        failed = cri.create(pod, cri.container_config("/no/such/program"))
        with pytest.raises(grpc.RpcError):
            cri.start(failed)
        cri.remove(failed)
    assert fds() <= before
