"""Updates by field names, before anything of them is done."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from atoll import errors
from atoll.linux.cgroup import Limits
from atoll.oci.config import LinuxContainerResources
from atoll.sandbox.controller import Runtime, Sandbox, TypedAny
from atoll.sandbox.resources import NOTHING
from atoll.sandboxers.update import SPEC_URL, AnnotationChange, plan
from atoll.shim.pod_cgroup import PodResources

NOW = Sandbox(id="one", sandboxer="shim", runtime=Runtime(name="io.containerd.atoll.v1"), labels={"a": "1", "b": "2"})
UNLIMITED = PodResources(overhead=NOTHING, resources=NOTHING)


def spec(**document: object) -> TypedAny:
    return TypedAny(type_url=SPEC_URL, value=json.dumps(document).encode())


def updated(**document: object) -> TypedAny:
    return TypedAny(type_url="io.containerd.cri.v1/UpdatedResources", value=json.dumps(document).encode())


@pytest.mark.parametrize(
    "field", ["", "id", "sandboxer", "created_at", "labels.", "spec.linux", "runtime.name", "annotation", ".labels"]
)
def test_an_unknown_field_is_refused_beside_known_ones(field: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        plan(NOW, replace(NOW, labels={}), ("labels", field))


def test_one_label_is_set_and_one_removed_while_others_stay() -> None:
    asked = replace(NOW, labels={"a": "9", "z": "not asked for"})
    assert plan(NOW, asked, ("labels.a", "labels.b")).sandbox.labels == {"a": "9"}


def test_a_key_may_have_dots() -> None:
    asked = replace(NOW, labels={"x.y/z": "1"})
    assert plan(NOW, asked, ("labels.x.y/z",)).sandbox.labels == {"a": "1", "b": "2", "x.y/z": "1"}


def test_labels_alone_do_not_reach_the_sandbox() -> None:
    assert not plan(NOW, replace(NOW, labels={}, spec=spec(annotations={"k": "v"})), ("labels",)).reaches_the_sandbox


@pytest.mark.parametrize("fields", [(), ("runtime",)])
def test_a_sandbox_keeps_its_runtime(fields: tuple[str, ...]) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"io\.other\.v1"):
        plan(NOW, replace(NOW, runtime=Runtime(name="io.other.v1")), fields)
    options = Runtime(name=NOW.runtime.name, options=TypedAny(type_url="o", value=b""))
    assert plan(NOW, replace(NOW, runtime=options), fields).sandbox.runtime == options


def test_annotations_are_those_of_the_spec() -> None:
    asked = replace(NOW, spec=spec(annotations={"k": "v", "l": "w"}))
    assert plan(NOW, asked, ("annotations",)).annotations == AnnotationChange(values={"k": "v", "l": "w"}, is_all=True)
    change = plan(NOW, asked, ("annotations.k", "annotations.gone")).annotations
    assert change == AnnotationChange(values={"k": "v"}, removed=("gone",))
    assert change is not None
    assert change.applied({"gone": "1", "stays": "2"}) == {"k": "v", "stays": "2"}
    assert plan(NOW, asked, ("annotations",)).sandbox.spec is None


def test_no_fields_mean_all_and_a_record_without_a_spec_says_nothing_of_annotations() -> None:
    found = plan(NOW, replace(NOW, labels={"c": "3"}), ())
    assert (found.sandbox.labels, found.annotations, found.has_limits) == ({"c": "3"}, None, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": TypedAny(type_url="some.Spec", value=b"{}")},
        {"spec": TypedAny(type_url=SPEC_URL, value=b"{")},
        {"spec": spec(linux={"resources": {"memory": {"limit": "much"}}})},
        {"extensions": {"updated-resources": TypedAny(type_url="some.Resources", value=b"{}")}},
        {"extensions": {"updated-resources": updated(Resources={"memory_limit_in_bytes": "much"})}},
    ],
)
def test_what_cannot_be_read_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        plan(NOW, replace(NOW, **wrong), ("labels", *wrong))


def test_limits_are_taken_where_their_field_is_named() -> None:
    asked = replace(
        NOW,
        spec=spec(linux={"resources": {"pids": {"limit": 7}}}),
        extensions={"updated-resources": updated(Resources={"cpu_shares": 512})},
    )
    assert not plan(NOW, asked, ("labels", "annotations", "extensions.metadata")).has_limits
    assert plan(NOW, asked, ("spec",)).updated is None
    assert plan(NOW, asked, ("extensions.updated-resources",)).resources is None


def limits(asked: Sandbox, *fields: str, now: PodResources = UNLIMITED) -> Limits:
    found = plan(NOW, asked, fields)
    return now.updated(found.resources, found.updated).limits


def test_the_extension_counts_above_the_spec_and_sums_its_overhead() -> None:
    resources = {"memory": {"limit": 1 << 20}, "pids": {"limit": 9}, "cpu": {"shares": 100}}
    update = updated(Overhead={"memory_limit_in_bytes": 1 << 20}, Resources={"memory_limit_in_bytes": 3 << 20})
    asked = replace(NOW, spec=spec(linux={"resources": resources}), extensions={"updated-resources": update})
    assert limits(asked, "spec") == Limits(memory_bytes=1 << 20, pids=9, cpu_shares=100)
    assert limits(asked, "spec", "extensions") == Limits(memory_bytes=4 << 20, pids=9, cpu_shares=100)


def test_what_is_not_named_stays_and_minus_one_lifts() -> None:
    now = PodResources(
        overhead=LinuxContainerResources(cpu_shares=2), resources=LinuxContainerResources(cpu_shares=100)
    )
    asked = replace(NOW, extensions={"updated-resources": updated(Resources={"memory_limit_in_bytes": -1})})
    assert limits(asked, "extensions", now=now) == Limits(cpu_shares=102, memory_bytes=-1)
    overhead = replace(NOW, extensions={"updated-resources": updated(Overhead={"cpu_shares": 10})})
    assert limits(overhead, "extensions", now=now) == Limits(cpu_shares=110)


def test_a_list_of_processors_is_checked() -> None:
    asked = replace(NOW, extensions={"updated-resources": updated(Resources={"cpuset_cpus": "0\n1"})})
    with pytest.raises(errors.InvalidArgument, match="cpuset_cpus"):
        limits(asked, "extensions")
