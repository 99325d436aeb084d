"""The state rule, what each state allows, and the checkpoint's JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.container.status import (
    UNKNOWN_EXIT_CODE,
    ContainerResources,
    State,
    Status,
    decode_status,
    encode_status,
    unknown_status,
)
from atoll.oci.config import LinuxContainerResources

CREATED = Status(created_at=1)
RUNNING = Status(created_at=1, started_at=2, pid=7)
EXITED = Status(created_at=1, started_at=2, finished_at=3, exit_code=4)
UNKNOWN = dataclasses.replace(RUNNING, unknown=True)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (Status(), State.UNKNOWN),
        (CREATED, State.CREATED),
        (RUNNING, State.RUNNING),
        (EXITED, State.EXITED),
        (Status(created_at=1, finished_at=3), State.EXITED),
        (dataclasses.replace(EXITED, unknown=True), State.UNKNOWN),
    ],
)
def test_the_latest_thing_that_happened_is_the_state(status: Status, state: State) -> None:
    assert status.state is state


@pytest.mark.parametrize(
    ("status", "start", "stop", "remove", "execute", "update"),
    [
        (CREATED, True, False, True, False, True),
        (dataclasses.replace(CREATED, starting=True), False, False, False, False, True),
        (dataclasses.replace(CREATED, removing=True), False, False, False, False, False),
        (RUNNING, False, True, False, True, True),
        (EXITED, False, False, True, False, False),
        (dataclasses.replace(EXITED, removing=True), False, False, False, False, False),
        (UNKNOWN, False, True, False, False, False),
    ],
)
def test_what_a_state_allows(
    status: Status, start: bool, stop: bool, remove: bool, execute: bool, update: bool
) -> None:
    assert (status.can_start, status.can_stop, status.can_remove, status.can_exec, status.can_update) == (
        start,
        stop,
        remove,
        execute,
        update,
    )


def test_starting_and_removing_exclude_each_other() -> None:
    with pytest.raises(errors.FailedPrecondition, match="being started"):
        CREATED.begin_start().begin_removal()
    with pytest.raises(errors.FailedPrecondition, match="being removed"):
        CREATED.begin_removal().begin_start()
    with pytest.raises(errors.FailedPrecondition, match="running"):
        RUNNING.begin_start()


def test_what_has_ended_is_made_ready_again_and_nothing_else_is() -> None:
    limits = ContainerResources(linux=LinuxContainerResources(memory_limit_in_bytes=5))
    ended = dataclasses.replace(EXITED, resources=limits, reason="Error", message="why")
    begun = ended.begin_restart()
    assert begun.state is State.EXITED
    assert not begun.can_remove
    assert begun.not_restarted() == ended
    assert begun.again() == Status(created_at=1, resources=limits)
    assert begun.again().can_start
    for status in (CREATED, RUNNING, UNKNOWN, begun, ended.begin_removal()):
        with pytest.raises(errors.FailedPrecondition, match="cannot be restarted"):
            status.begin_restart()


def test_the_first_exit_told_stands() -> None:
    exited = RUNNING.exited(code=137, at=9, reason="OOMKilled")
    assert (exited.exit_code, exited.finished_at, exited.pid, exited.reason) == (137, 9, 0, "OOMKilled")
    assert exited.exited(code=255, at=10, reason="Unknown") == exited


def test_an_exit_ends_not_knowing() -> None:
    assert UNKNOWN.exited(code=0, at=5).state is State.EXITED


def test_not_knowing_keeps_what_was_known() -> None:
    lost = unknown_status(RUNNING, "the shim does not answer")
    assert (lost.state, lost.pid, lost.started_at) == (State.UNKNOWN, 7, 2)
    assert (lost.reason, lost.message) == ("Unknown", "the shim does not answer")
    assert unknown_status(None, "gone").exit_code == 255


def test_the_json_is_flat_and_has_the_names_that_containerd_uses() -> None:
    status = dataclasses.replace(
        EXITED, resources=ContainerResources(linux=LinuxContainerResources(cpu_shares=2)), reason="Error"
    )
    assert json.loads(encode_status(status)) == {
        "Version": "v1",
        "Pid": 0,
        "CreatedAt": 1,
        "StartedAt": 2,
        "FinishedAt": 3,
        "ExitCode": 4,
        "Reason": "Error",
        "Message": "",
        "Resources": {"linux": {"cpu_shares": 2}},
        "Restore": False,
    }


statuses = st.builds(
    Status,
    pid=st.integers(0, 2**32 - 1),
    created_at=st.integers(-(2**63), 2**63 - 1),
    started_at=st.integers(0, 2**63 - 1),
    finished_at=st.integers(0, 2**63 - 1),
    exit_code=st.integers(-(2**31), 2**31 - 1),
    reason=st.text(),
    message=st.text(),
    starting=st.booleans(),
    removing=st.booleans(),
    unknown=st.booleans(),
    restore=st.booleans(),
)


@given(statuses)
def test_what_is_transient_is_not_kept_and_all_else_is(status: Status) -> None:
    read = decode_status(encode_status(status))
    assert read == dataclasses.replace(status, starting=False, removing=False, unknown=False)


def test_other_fields_and_missing_ones_are_fine() -> None:
    assert decode_status(b'{"Version":"v1","CreatedAt":5,"Newer":{"a":1}}') == Status(created_at=5)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"Version":"v2"}', b'{"Version":"v1","Pid":"x"}', b"\xff", b"[]"])
def test_what_cannot_be_read_is_data_loss(text: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="container status"):
        decode_status(text)


@given(st.binary())
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        decode_status(text)
    except errors.DataLoss:
        return


def test_an_exit_clears_that_nobody_could_be_asked() -> None:
    asked = unknown_status(Status(created_at=1, started_at=2), "its shim did not answer")
    end = asked.exited(code=6, at=3)
    assert (end.state, end.exit_code, end.reason, end.message) == (State.EXITED, 6, "", "")
    lost = unknown_status(None, "the checkpoint is missing").exited(code=6, at=3)
    assert (lost.reason, lost.message) == ("Unknown", "the checkpoint is missing")
    never = asked.exited(code=UNKNOWN_EXIT_CODE, at=3)
    assert (never.reason, never.message) == ("Unknown", "its shim did not answer")
