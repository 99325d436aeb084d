"""Arguments are checked before a call is made, and become what CRI is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import request
from atoll.client.request import ContainerOptions, Mount, PodOptions, Publish


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("64m", 64 << 20), ("512k", 512 << 10), ("1.5g", 3 << 29), ("4096", 4096), ("1 GB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert request.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "12q", "-1", "MiB", "1e9", "1..5m"])
def test_bad_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="64MiB"):
        request.size_bytes(text)


@given(st.floats(min_value=0.01, max_value=256))
def test_cpus_become_a_quota_of_the_period(cpus: float) -> None:
    limits = request.resources(cpus, None)
    assert limits is not None
    assert limits.cpu_quota / limits.cpu_period == pytest.approx(cpus, abs=1e-5)
    assert limits.cpu_shares >= 2


def test_no_limit_is_no_resources() -> None:
    assert request.resources(None, None) is None


WITHOUT_TYPES: list[tuple[str, Callable[[Any], object]]] = [
    ("ports '8080:80'", lambda r: r.published("8080:80")),
    ("ports 80: must be {8080: 80}", lambda r: r.published(80)),
    ("port x->80/tcp", lambda r: r.published({"x": 80})),
    ("port 8080->80/tcp", lambda r: r.published({"8080": 80})),
    ("label 'a': 1 is no text", lambda r: r.pod_config(r.PodOptions(labels={"a": 1}))),
    ("sysctl 'a': 1 is no text", lambda r: r.pod_config(r.PodOptions(sysctls={"a": 1}))),
    ("command: 1 is no text", lambda r: r.words(["sleep", 1], "command")),
    ("env 'A'", lambda r: r.environment({"A": 1})),
    ("memory 100000000.0", lambda r: r.resources(None, 1e8)),
    ("cpus '1'", lambda r: r.resources("1", None)),
    ("cpus nan", lambda r: r.resources(float("nan"), None)),
    ("mount '/a:/b'", lambda r: r.container_config(r.ContainerOptions(image="x", mounts=["/a:/b"]))),
]


@pytest.mark.parametrize(("words", "ask"), WITHOUT_TYPES, ids=[words for words, _ in WITHOUT_TYPES])
def test_a_caller_without_types_is_told_what_is_wrong(words: str, ask: Callable[[Any], object]) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        ask(request)
    assert words in refused.value.message


def test_pids_become_the_key_that_cri_has_for_them() -> None:
    limits = request.resources(None, None, 12)
    assert limits is not None
    assert dict(limits.unified) == {"pids.max": "12"}
    for wrong in (0, -1, 1 << 30):
        with pytest.raises(errors.InvalidArgument, match=f"pids {wrong}"):
            request.resources(None, None, wrong)


@pytest.mark.parametrize(("cpus", "memory"), [(0.0, None), (-1.0, None), (None, "1k"), (None, 0)])
def test_limit_that_cannot_be_kept_is_refused(cpus: float | None, memory: str | int | None) -> None:
    with pytest.raises(errors.InvalidArgument, match="at least"):
        request.resources(cpus, memory)


@pytest.mark.parametrize(
    ("text", "publish"),
    [
        ("8080:80", Publish(host_port=8080, pod_port=80)),
        ("80", Publish(host_port=80, pod_port=80)),
        ("53:5353/udp", Publish(host_port=53, pod_port=5353, protocol="udp")),
        ("127.0.0.1:8080:80", Publish(host_port=8080, pod_port=80, host_ip="127.0.0.1")),
        ("[::1]:8080:80/tcp", Publish(host_port=8080, pod_port=80, host_ip="::1")),
    ],
)
def test_ports(text: str, publish: Publish) -> None:
    assert request.parse_publish(text) == publish


@pytest.mark.parametrize("text", ["", "abc", "0:80", "80:70000", "80:80/icmp", "1:2:3:4", "80:", ":80"])
def test_bad_port_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="port"):
        request.parse_publish(text)


def test_mounts() -> None:
    assert request.parse_mount("/a:/b:ro") == Mount(source="/a", target="/b", read_only=True)
    for bad in ("/a", "/a:/b:rx", "/a:/b:ro:x"):
        with pytest.raises(errors.InvalidArgument, match="must be like"):
            request.parse_mount(bad)
    with pytest.raises(errors.InvalidArgument, match="absolute"):
        request.container_config(ContainerOptions(image="x", mounts=(Mount(source="a", target="/b"),)))


def test_a_pod_is_one_by_its_name_and_each_request_its_own() -> None:
    one, other = (request.pod_config(PodOptions(name="web")) for _ in range(2))
    assert one.metadata == other.metadata
    assert one.annotations[request.REQUEST] != other.annotations[request.REQUEST]
    assert request.pod_config(PodOptions()).metadata.name != request.pod_config(PodOptions()).metadata.name


def test_networks_of_a_pod() -> None:
    none = request.pod_config(PodOptions(network="none"))
    assert none.annotations["io.atoll.network/none"] == "true"
    host = request.pod_config(PodOptions(name="h", network="host"))
    assert host.linux.security_context.namespace_options.network == cri.NODE
    assert host.hostname == ""
    with pytest.raises(errors.InvalidArgument, match="publish"):
        request.pod_config(PodOptions(network="host", ports={80: 80}))
    with pytest.raises(errors.InvalidArgument, match="network 'bridge'"):
        request.pod_config(PodOptions(network="bridge"))  # pyright: ignore[reportArgumentType]  # what a user may write


@pytest.mark.parametrize("name", ["-a", "a/b", "a" * 64, "a b", "ä", "../x", "a."])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="name"):
        request.pod_config(PodOptions(name=name))


def test_command_is_words() -> None:
    config = request.container_config(ContainerOptions(image="x", command=["a", "b"], entrypoint=["e"]))
    assert (list(config.command), list(config.args)) == (["e"], ["a", "b"])
    with pytest.raises(errors.InvalidArgument, match="list of words"):
        request.container_config(ContainerOptions(image="x", command="ls -l"))
    with pytest.raises(errors.InvalidArgument, match="NUL"):
        request.container_config(ContainerOptions(image="x", command=["a\0"]))


def test_users() -> None:
    by_id = request.container_config(ContainerOptions(image="x", user="1000:0")).linux.security_context
    assert (by_id.run_as_user.value, by_id.run_as_group.value, by_id.HasField("run_as_group")) == (1000, 0, True)
    by_name = request.container_config(ContainerOptions(image="x", user="nobody")).linux.security_context
    assert (by_name.run_as_username, by_name.HasField("run_as_user")) == ("nobody", False)
    for bad in (":0", "a:staff"):
        with pytest.raises(errors.InvalidArgument, match="user"):
            request.container_config(ContainerOptions(image="x", user=bad))


@pytest.mark.parametrize("key", ["", "A=B", "A\0"])
def test_bad_variable_is_refused(key: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="env"):
        request.environment({key: "x"})
