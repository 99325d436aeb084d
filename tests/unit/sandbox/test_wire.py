"""The contract's values on the wire, both ways, and what no calendar has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from atoll.api import containerd_types_pb2 as types
from atoll.sandbox import wire
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Mount,
    Platform,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)

YEAR_ONE = Timestamp(seconds=-62135596800)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.datetimes(timezones=st.just(UTC))
anys = st.builds(TypedAny, type_url=texts, value=st.binary(max_size=50))
maps = st.dictionaries(texts, texts, max_size=4)
uints = st.integers(0, 2**32 - 1)
sandboxes = st.builds(
    Sandbox,
    id=texts,
    sandboxer=texts,
    runtime=st.builds(Runtime, name=texts, options=st.none() | anys),
    spec=st.none() | anys,
    labels=maps,
    extensions=st.dictionaries(texts, anys, max_size=3),
    created_at=times,
    updated_at=times,
)
options = st.builds(
    CreateOptions,
    rootfs=st.lists(
        st.builds(Mount, type=texts, source=texts, target=texts, options=st.lists(texts, max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    options=st.none() | anys,
    netns_path=texts,
    annotations=maps,
)


@given(sandboxes)
def test_a_record_round_trips(sandbox: Sandbox) -> None:
    assert wire.from_sandbox(types.Sandbox.FromString(wire.to_sandbox(sandbox).SerializeToString())) == (sandbox)


@given(sandboxes, options)
def test_a_create_round_trips(sandbox: Sandbox, options: CreateOptions) -> None:
    assert wire.from_create(wire.to_create(sandbox, options, sandbox.sandboxer)) == (sandbox, options)


@given(st.builds(ControllerInstance, sandbox_id=st.just("a"), pid=uints, created_at=times, labels=maps, address=texts,
                 version=uints, spec=st.none() | anys))  # fmt: skip
def test_an_instance_round_trips(instance: ControllerInstance) -> None:
    assert wire.from_instance(wire.to_instance(instance), "a") == instance


@given(
    st.builds(
        ControllerStatus,
        sandbox_id=st.just("a"),
        state=st.sampled_from(State),
        pid=uints,
        info=st.just({"info": "{}"}),
        created_at=st.none() | times.filter(lambda time: time.year > 1),
        exited_at=st.none() | times.filter(lambda time: time.year > 1),
        address=texts,
        version=uints,
        reason=texts,
    )
)
def test_a_status_round_trips_its_reason_too(status: ControllerStatus) -> None:
    assert wire.from_status(wire.to_status(status), "a") == status


@given(st.builds(ExitStatus, exit_status=uints, exited_at=times))
def test_an_exit_round_trips(ended: ExitStatus) -> None:
    assert wire.from_exit(wire.to_exit(ended)) == ended


@given(st.builds(Metric, timestamp=times, id=texts, data=anys))
def test_a_metric_round_trips(metric: Metric) -> None:
    assert wire.from_metric(wire.to_metric(metric)) == metric


@given(st.builds(Platform, os=texts, architecture=texts, variant=texts))
def test_a_platform_round_trips(platform: Platform) -> None:
    assert wire.from_platform(wire.to_platform(platform)) == platform


def test_the_year_one_of_go_is_a_time_of_a_record() -> None:
    sandbox = wire.from_sandbox(types.Sandbox(sandbox_id="a", created_at=YEAR_ONE, updated_at=YEAR_ONE))
    assert sandbox.created_at == datetime(1, 1, 1, tzinfo=UTC)
    assert wire.to_sandbox(sandbox).created_at == YEAR_ONE


def test_the_year_one_is_no_time_of_a_status() -> None:
    answer = pb.ControllerStatusResponse(state="SANDBOX_READY", created_at=YEAR_ONE, exited_at=YEAR_ONE)
    status = wire.from_status(answer, "a")
    assert (status.created_at, status.exited_at) == (None, None)


def test_a_time_of_another_zone_is_the_same_time() -> None:
    time = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    assert wire.from_timestamp(wire.to_timestamp(time)) == time


@pytest.mark.parametrize("value", [Timestamp(seconds=10**15), Timestamp(nanos=-1), Timestamp(nanos=10**9)])
def test_a_time_that_is_none_is_the_fault_of_who_sent_it(value: Timestamp) -> None:
    with pytest.raises(errors.Unknown):
        wire.from_timestamp(value)
    with pytest.raises(errors.InvalidArgument):
        wire.from_sandbox(types.Sandbox(created_at=value))


def test_a_record_without_times_is_of_now() -> None:
    made = wire.from_sandbox(types.Sandbox(sandbox_id="a"))
    assert abs(datetime.now(UTC) - made.created_at) < timedelta(seconds=5)


def test_a_create_without_a_record_has_the_id_and_the_sandboxer() -> None:
    sandbox, given_options = wire.from_create(pb.ControllerCreateRequest(sandbox_id="a", sandboxer="s"))
    assert (sandbox.id, sandbox.sandboxer, sandbox.runtime) == ("a", "s", Runtime(name=""))
    assert given_options == CreateOptions()


def test_the_record_alone_names_its_sandbox() -> None:
    sandbox, _ = wire.from_create(pb.ControllerCreateRequest(sandbox=types.Sandbox(sandbox_id="a", sandboxer="r")))
    assert (sandbox.id, sandbox.sandboxer) == ("a", "r")


def test_a_record_of_another_sandbox_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match=r"sandbox a.*sandbox b"):
        wire.from_create(pb.ControllerCreateRequest(sandbox_id="a", sandbox=types.Sandbox(sandbox_id="b")))


def test_a_state_that_nobody_knows_is_unknown() -> None:
    status = wire.from_status(pb.ControllerStatusResponse(state="READY"), "a")
    assert (status.state, status.reason) == (State.UNKNOWN, "the state 'READY' is not known")


def test_a_reason_of_somebody_else_stays_in_the_info() -> None:
    answer = pb.ControllerStatusResponse(state="SANDBOX_READY", info={"reason": "{}", "x": "1"})
    assert wire.from_status(answer, "a").info == {"reason": "{}", "x": "1"}


@pytest.mark.parametrize("pid", [-1, 2**32])
def test_a_number_that_does_not_fit_is_our_fault(pid: int) -> None:
    with pytest.raises(errors.Internal):
        wire.to_instance(ControllerInstance(sandbox_id="a", pid=pid, created_at=datetime.now(UTC)))
