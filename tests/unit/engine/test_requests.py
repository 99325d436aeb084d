"""From a pod's config to its name, its network and its containers' namespaces."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.engine.execs import ExecRequest, exec_process
from atoll.engine.request import attach_request, log_path, pod_name, require_log_directory
from atoll.engine.specs import namespaces
from atoll.oci import spec as oci
from atoll.oci.config import NamespaceMode, NamespaceOption
from atoll.sandbox.config import DNSConfig, PodConfig, PodMetadata, PortMapping, Protocol

METADATA = PodMetadata(name="web", namespace="shop", uid="u1", attempt=2)


def test_a_pod_is_named_by_its_four_values() -> None:
    assert pod_name(PodConfig(metadata=METADATA)) == "web_shop_u1_2"


@pytest.mark.parametrize("config", [PodConfig(), PodConfig(metadata=PodMetadata(uid="u1"))])
def test_a_pod_without_a_name_is_refused(config: PodConfig) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"metadata\.name"):
        pod_name(config)


def test_only_published_ports_and_what_was_said_of_dns_reach_the_network() -> None:
    ports = (
        PortMapping(container_port=80, host_port=8080),
        PortMapping(container_port=81),
        PortMapping(protocol=Protocol.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1"),
    )
    config = PodConfig(metadata=METADATA, port_mappings=ports, dns_config=DNSConfig(servers=("192.0.2.1",)))
    request = attach_request("id", config, "/run/netns/id")
    assert [(one.host_port, one.container_port, one.protocol, one.host_ip) for one in request.ports] == [
        (8080, 80, "tcp", ""),
        (5353, 53, "udp", "127.0.0.1"),
    ]
    assert (request.name, request.namespace, request.uid) == ("web", "shop", "u1")
    assert request.dns is not None
    assert request.dns.nameservers == ("192.0.2.1",)
    assert attach_request("id", PodConfig(metadata=METADATA), "/x").dns is None


MODES = (NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE)


@pytest.mark.parametrize(("pod", "asked"), list(itertools.product(MODES, [*MODES, NamespaceMode.TARGET])))
def test_a_container_is_in_the_hosts_pid_namespace_only_where_its_pod_is(
    pod: NamespaceMode, asked: NamespaceMode
) -> None:
    wanted = NamespaceOption(pid=asked, target_id="x" if asked is NamespaceMode.TARGET else "")
    if asked is NamespaceMode.NODE and pod is not NamespaceMode.NODE:
        with pytest.raises(errors.InvalidArgument, match="pid: NODE"):
            namespaces(NamespaceOption(pid=pod), wanted)
        return
    given_ = namespaces(NamespaceOption(pid=pod), wanted)
    if given_.pid is NamespaceMode.NODE:
        assert pod is NamespaceMode.NODE
    if asked in (NamespaceMode.CONTAINER, NamespaceMode.TARGET):
        assert given_.pid is asked


OWN = (NamespaceMode.POD, NamespaceMode.CONTAINER)


@given(
    pod=st.builds(NamespaceOption, network=st.sampled_from(MODES), ipc=st.sampled_from(MODES)),
    asked=st.none() | st.builds(NamespaceOption, network=st.sampled_from(OWN), ipc=st.sampled_from(OWN)),
)
def test_network_and_ipc_are_always_the_pods(pod: NamespaceOption, asked: NamespaceOption | None) -> None:
    made = namespaces(pod, asked)
    assert (made.network, made.ipc) == (pod.network, pod.ipc)


def test_a_target_goes_with_its_mode_only() -> None:
    with pytest.raises(errors.InvalidArgument, match="target_id"):
        namespaces(NamespaceOption(), NamespaceOption(target_id="x"))


SPEC = oci.Spec(process=oci.Process(args=("sleep",), env=("A=1", "B=2"), cwd="/"))


def test_an_exec_takes_after_its_container() -> None:
    process = exec_process(SPEC, ExecRequest(command=("ls", "-l")))
    assert msgspec.structs.replace(process, args=("sleep",)) == SPEC.process
    assert tuple(process.args) == ("ls", "-l")


def test_an_execs_environment_replaces_by_name_and_its_terminal_has_a_size() -> None:
    request = ExecRequest(command=("sh",), env=("B=3", "C=4"), tty=True, width=80, height=24, working_dir="/tmp")
    process = exec_process(SPEC, request)
    assert tuple(process.env) == ("A=1", "B=3", "C=4", "TERM=xterm")
    assert process.console_size == oci.Box(height=24, width=80)
    assert (process.cwd, process.terminal) == ("/tmp", True)


def test_a_log_goes_below_the_pods_folder_or_is_the_daemons_own() -> None:
    config = ContainerConfig(log_path="web/0.log")
    assert log_path(PodConfig(log_directory="/var/log/pods/a_b_c/"), config, "/own") == "/var/log/pods/a_b_c/web/0.log"
    assert log_path(PodConfig(), config, "/own") == "/own"
    assert not log_path(PodConfig(log_directory="/var/log"), ContainerConfig(), "/own")


@pytest.mark.parametrize("path", ["/etc/shadow", "..", "a/../../b", "./a", "a//b", "a/", "a\0b"])
@pytest.mark.parametrize("folder", ["", "/var/log/pods/a"])
def test_a_log_that_leads_out_of_the_folder_is_refused(path: str, folder: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="log_path"):
        log_path(PodConfig(log_directory=folder), ContainerConfig(log_path=path), "/own")


@pytest.mark.parametrize("folder", ["logs", "/", "/a/../b", "/a/./b", "//a", "/a\0b", "../a"])
def test_a_log_folder_that_is_no_clean_absolute_path_is_refused(folder: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="log_directory"):
        require_log_directory(PodConfig(log_directory=folder))
