"""Pods on the real kernel, through the CRI of a real daemon."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually, in_parallel, refused, token
from tests.integration.leaks import CGROUPS

pytestmark = pytest.mark.shared_daemon

POD, CONTAINER, NODE = pb.POD, pb.CONTAINER, pb.NODE


def test_a_pod_runs_stops_and_goes(cri: CRI) -> None:
    before = time.time_ns()
    config = cri.pod_config(labels={"app": "web"}, annotations={"note": "kept"})
    pod = cri.run_pod(config)
    status = cri.pod_status(pod)
    assert len(pod) == 64
    assert status.id == pod
    assert status.state == pb.SANDBOX_READY
    assert status.metadata == config.metadata
    assert before <= status.created_at <= time.time_ns()
    assert dict(status.labels) == {"app": "web"}
    assert status.annotations["note"] == "kept"
    assert status.runtime_handler == "atoll"
    assert [one.id for one in cri.list_pods()] == [pod]

    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert [one.state for one in cri.list_pods(id=pod)] == [pb.SANDBOX_NOTREADY]

    cri.remove_pod(pod)
    assert cri.list_pods() == []
    with refused(grpc.StatusCode.NOT_FOUND, pod):
        cri.pod_status(pod)
    assert cri.fsck() == []


def test_stop_and_remove_are_idempotent_and_fine_for_the_unknown(cri: CRI) -> None:
    pod = cri.run_pod()
    cri.stop_pod(pod)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    cri.remove_pod(pod)
    cri.stop_pod("0" * 64)
    cri.remove_pod("0" * 64)
    cri.remove_pod("nonsense")


def test_a_ready_pod_may_be_removed_without_a_stop(cri: CRI) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    cri.remove_pod(pod)
    assert cri.list_pods() == []
    assert cri.list() == []
    with refused(grpc.StatusCode.NOT_FOUND):
        cri.status(container)


def test_many_stops_and_removals_at_once_are_one(cri: CRI) -> None:
    pod = cri.run_pod()
    cri.script(pod, "sleep 1000")
    works = [lambda: cri.stop_pod(pod)] * 4 + [lambda: cri.remove_pod(pod)] * 4
    assert in_parallel(works) == [None] * 8
    assert cri.list_pods() == []


def test_unique_prefixes_name_a_pod_and_others_do_not(cri: CRI) -> None:
    pods = [cri.run_pod() for _ in range(3)]
    first = pods[0]
    length = next(n for n in range(1, 65) if sum(one.startswith(first[:n]) for one in pods) == 1)
    assert cri.pod_status(first[:length]).id == first
    assert [one.id for one in cri.list_pods(id=first[:length])] == [first]
    assert cri.list_pods(id="zzz") == []
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "empty"):
        cri.pod_status("")
    with refused(grpc.StatusCode.NOT_FOUND):
        cri.pod_status("zzz")
    cri.stop_pod(first[:length])
    cri.remove_pod(first[:length])
    assert {one.id for one in cri.list_pods()} == set(pods[1:])


def test_pods_are_listed_by_state_and_labels(cri: CRI) -> None:
    web = cri.run_pod(cri.pod_config(labels={"app": "web", "tier": "front"}))
    db = cri.run_pod(cri.pod_config(labels={"app": "db"}))
    cri.stop_pod(db)
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    ended = pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)
    assert [one.id for one in cri.list_pods(state=ready)] == [web]
    assert [one.id for one in cri.list_pods(state=ended)] == [db]
    assert [one.id for one in cri.list_pods(label_selector={"app": "web", "tier": "front"})] == [web]
    assert cri.list_pods(label_selector={"app": "web", "tier": "back"}) == []
    assert cri.list_pods(id=web, state=ended) == []


def test_equal_requests_at_once_and_afterwards_give_one_pod(cri: CRI) -> None:
    config = cri.pod_config(network=True)
    pods = in_parallel([lambda: cri.run_pod(config)] * 5)
    assert len(set(map(str, pods))) == 1, pods
    assert cri.run_pod(config) == pods[0]
    assert len(cri.list_pods()) == 1


def test_another_config_under_the_same_name_is_refused(cri: CRI) -> None:
    config = cri.pod_config("")
    pod = cri.run_pod(config)
    other = pb.PodSandboxConfig()
    other.CopyFrom(config)
    other.labels["more"] = "1"
    with refused(grpc.StatusCode.ALREADY_EXISTS, config.metadata.name, pod[:13]):
        cri.run_pod(other)
    cri.stop_pod(pod)
    with refused(grpc.StatusCode.ALREADY_EXISTS, config.metadata.name):
        cri.run_pod(config)
    cri.remove_pod(pod)
    assert cri.run_pod(config) != pod


def test_another_attempt_is_another_pod(cri: CRI) -> None:
    config = cri.pod_config()
    first = cri.run_pod(config)
    config.metadata.attempt += 1
    assert cri.run_pod(config) != first


def test_missing_metadata_is_an_error_and_no_crash(cri: CRI) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "metadata"):
        cri.run_pod(pb.PodSandboxConfig())
    pod = cri.run_pod()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "metadata"):
        cri.create(pod, pb.ContainerConfig(image=pb.ImageSpec(image="atoll/busybox")))


def test_an_unknown_runtime_handler_is_named_with_the_known_ones(cri: CRI) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "'kata'", "atoll"):
        cri.run_pod(handler="kata")
    assert cri.list_pods() == []


def test_a_pod_without_network_has_loopback_alone(cri: CRI) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    links = cri.sh(container, "ls /sys/class/net 2>/dev/null || ip -o link | cut -d: -f2").split()
    assert links == ["lo"]
    assert cri.sh(container, "ip -o -4 addr show lo").count("127.0.0.1") == 1
    assert cri.pod_status(pod).network.ip == ""


def test_a_bridge_pod_has_an_address_that_the_host_reaches(cri: CRI, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    ip = cri.pod_status(pod).network.ip
    assert ip.rpartition(".")[0] == roots.subnet.rpartition(".")[0]
    cri.script(pod, "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
    assert b"hello" in fetch(ip, 8080)
    cri.stop_pod(pod)
    assert cri.pod_status(pod).network.ip == ""


def test_a_published_port_is_reached_from_the_host_and_is_free_after_the_stop(cri: CRI) -> None:
    port = free_port()
    config = cri.pod_config(network=True)
    config.port_mappings.add(protocol=pb.TCP, container_port=8080, host_port=port)
    pod = cri.run_pod(config)
    cri.script(pod, "echo published > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
    assert b"published" in fetch("127.0.0.1", port)

    other = cri.pod_config(network=True)
    other.port_mappings.add(protocol=pb.TCP, container_port=80, host_port=port)
    with refused(grpc.StatusCode.ALREADY_EXISTS, str(port)):
        cri.run_pod(other)
    cri.stop_pod(pod)
    second = cri.run_pod(other)
    assert cri.pod_status(second).state == pb.SANDBOX_READY


def test_a_host_network_pod_is_in_the_hosts_namespaces(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True, namespaces=pb.NamespaceOption(network=NODE, pid=CONTAINER)))
    container = cri.script(pod, "sleep 1000")
    for name in ("net", "uts"):
        assert cri.sh(container, f"readlink /proc/self/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    assert cri.pod_status(pod).network.ip == ""
    assert cri.pod_status(pod).linux.namespaces.options.network == NODE


def test_containers_of_a_pod_share_net_ipc_and_uts_but_not_pid_by_default(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=CONTAINER)))
    one, two = (cri.script(pod, "sleep 1000") for _ in range(2))

    def space(container: str, name: str) -> str:
        return cri.sh(container, f"readlink /proc/self/ns/{name}")

    for name in ("net", "ipc", "uts"):
        assert space(one, name) == space(two, name) != os.readlink(f"/proc/self/ns/{name}")
    assert len({space(one, "pid"), space(two, "pid"), os.readlink("/proc/self/ns/pid")}) == 3
    assert cri.sh(one, "cat /proc/1/cmdline").startswith("sleep")


def test_a_container_never_joins_the_hosts_namespaces_by_asking(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=CONTAINER)))
    config = cri.container_config("sleep", "1000")
    for name in ("pid", "ipc", "network"):
        options = pb.NamespaceOption(pid=CONTAINER)
        setattr(options, name, NODE)
        config.linux.security_context.namespace_options.CopyFrom(options)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"namespace_options.{name}", "NODE"):
            cri.create(pod, config)
    config.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=POD, ipc=POD, network=POD))
    container = cri.create(pod, config)
    cri.start(container)
    for name in ("pid", "net", "ipc", "uts"):
        assert cri.sh(container, f"readlink /proc/self/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name


def test_containers_of_a_shared_pid_namespace_see_each_other_and_orphans_are_reaped(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=POD)))
    mark = f"10{int(token()[:5], 16)}"
    cri.script(pod, f"sleep {mark}")
    other = cri.script(pod, "sleep 1000")
    assert mark in cri.sh(other, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    cri.sh(other, "(sleep 0.1 &) ; true")  # orphaned, so the pod's init inherits it
    time.sleep(0.4)
    assert cri.sh(other, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true") == ""
    assert cri.pod_status(pod).linux.namespaces.options.pid == POD


def test_the_end_of_a_shared_init_ends_the_pod(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=POD)))
    container = cri.script(pod, "sleep 1000")
    pid = cri.pod_info(pod)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, 9)
    assert cri.wait(container).code == 137
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not ready"):
        cri.create(pod, cri.container_config("true"))


def test_the_hostname_is_in_file_kernel_and_environment(cri: CRI) -> None:
    container = cri.script(cri.run_pod(cri.pod_config(hostname="inside")), "sleep 1000")
    assert cri.sh(container, "hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["inside"] * 3


def test_sysctls_are_set_inside_and_not_outside(cri: CRI) -> None:
    outside = Path("/proc/sys/kernel/shm_rmid_forced").read_text()
    config = cri.pod_config()
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    container = cri.script(cri.run_pod(config), "sleep 1000")
    said = cri.sh(container, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced").split()
    assert said == ["1", "1"]
    assert Path("/proc/sys/kernel/shm_rmid_forced").read_text() == outside


def test_a_sysctl_of_the_host_is_refused_and_nothing_stays(cri: CRI) -> None:
    config = cri.pod_config()
    config.linux.sysctls["kernel.panic"] = "1"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "kernel.panic"):
        cri.run_pod(config)
    assert cri.list_pods() == []
    assert cri.fsck() == []


def test_dns_goes_to_resolv_conf_and_hosts_is_the_hosts(cri: CRI) -> None:
    config = cri.pod_config()
    config.dns_config.servers.extend(["192.0.2.1", "192.0.2.2"])
    config.dns_config.searches.append("tests.example")
    config.dns_config.options.append("ndots:3")
    container = cri.script(cri.run_pod(config), "sleep 1000")
    assert cri.sh(container, "cat /etc/resolv.conf").splitlines() == [
        "search tests.example",
        "nameserver 192.0.2.1",
        "nameserver 192.0.2.2",
        "options ndots:3",
    ]
    assert "localhost" in cri.sh(container, "cat /etc/hosts")


def test_a_given_cgroup_parent_holds_the_containers_and_is_kept(cri: CRI, roots: Roots) -> None:
    parent = f"/{roots.prefix}-given/burstable/pod1"
    config = cri.pod_config()
    config.linux.cgroup_parent = parent
    try:
        Cgroup(parent, cgroup_layout.detect()).create()  # as a kubelet does
        pod = cri.run_pod(config)
        container = cri.script(pod, "sleep 1000")
        hierarchies = cgroup_layout.detect().mounts
        assert any((mount / parent[1:] / container).is_dir() for mount in hierarchies)
        cri.remove_pod(pod)
        assert any((mount / parent[1:]).is_dir() for mount in hierarchies)
        assert not list(CGROUPS.glob(f"**/{container}"))
    finally:
        for root in cgroup_layout.detect().mounts:
            for folder in sorted(root.glob(f"{roots.prefix}-given/**/"), reverse=True):
                folder.rmdir()


def test_pods_that_share_a_cgroup_parent_do_not_end_each_other(cri: CRI, roots: Roots) -> None:
    pods: list[str] = []
    for _ in range(2):
        config = cri.pod_config()
        config.linux.cgroup_parent = f"/{roots.prefix}/shared"
        pods.append(cri.run_pod(config))
    containers = [cri.script(pod, "sleep 1000") for pod in pods]
    cri.stop_pod(pods[0])
    cri.remove_pod(pods[0])
    assert cri.status(containers[1]).state == pb.CONTAINER_RUNNING
    assert cri.sh(containers[1], "echo lives") == "lives"
    assert cri.pod_status(pods[1]).state == pb.SANDBOX_READY
    assert cri.fsck() == []
    cri.remove_pod(pods[1])
    for folder in Path("/sys/fs/cgroup").glob(f"*/{roots.prefix}/shared"):
        folder.rmdir()  # whoever names a parent for several pods takes it away behind them


def test_without_a_cgroup_parent_a_pod_gets_its_own_which_goes_with_it(cri: CRI, roots: Roots) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    assert any(list(mount.glob(f"{roots.prefix}/*/{pod}/{container}")) for mount in cgroup_layout.detect().mounts)
    cri.remove_pod(pod)
    assert not list(CGROUPS.glob(f"**/{pod}"))


def test_phases_tell_what_a_run_did(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    phases = [phase for phase in cri.phases(pod) if phase.operation == "run"]
    assert {"record", "network", "create sandbox", "start sandbox", "commit"} <= {phase.name for phase in phases}
    assert all(phase.duration >= 0 and phase.subject == pod and not phase.error for phase in phases)
    assert any("CNI plugin" in phase.waits_on for phase in phases if phase.name == "network")
    cri.remove_pod(pod)
    assert "remove" in {phase.operation for phase in cri.phases(pod)}


def test_the_socket_is_roots_alone(cri: CRI, roots: Roots) -> None:
    assert stat.S_IMODE(roots.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(roots.socket.parent.stat().st_mode) == 0o711, "as the daemon makes it, for users of pods"
    assert not list(roots.socket.parent.glob(".atoll-*"))


# --- what goes wrong on the way ---


@pytest.mark.parametrize("verb", ["ADD"])
def test_a_failing_plugin_fails_the_run_with_its_words_and_a_retry_works(cri: CRI, roots: Roots, verb: str) -> None:
    plugin = Plugin(roots)
    plugin.fail(verb)
    config = cri.pod_config(network=True)
    with refused(grpc.StatusCode.UNKNOWN, "it-fails", "out of luck"):
        cri.run_pod(config)
    assert cri.list_pods() == []
    assert cri.fsck() == []
    assert not list((roots.state / "netns").glob("*")), "a network namespace stayed"
    assert not list((roots.state / "shims").glob("*"))
    assert not list((roots.state / "pods").glob("*"))
    plugin.work()
    assert cri.pod_status(cri.run_pod(config)).state == pb.SANDBOX_READY


def test_where_a_failed_run_cannot_be_undone_the_pod_is_kept_until_it_can(cri: CRI, roots: Roots) -> None:
    plugin = Plugin(roots)
    plugin.fail("ADD", "DEL")
    config = cri.pod_config(network=True)
    with refused(grpc.StatusCode.UNKNOWN, "out of luck", "not torn down yet"):
        cri.run_pod(config)
    (kept,) = cri.list_pods()
    assert kept.state == pb.SANDBOX_NOTREADY
    assert kept.metadata == config.metadata
    assert [finding.problem.partition(":")[0] for finding in cri.fsck()] == ["owed"]
    plugin.work()
    cri.remove_pod(kept.id)
    eventually(lambda: cri.fsck() == [], "the debt is paid")
    assert cri.pod_status(cri.run_pod(config)).state == pb.SANDBOX_READY


def test_a_plugin_that_fails_to_delete_owes_and_never_blocks_the_removal(cri: CRI, roots: Roots) -> None:
    plugin = Plugin(roots)
    pod = cri.run_pod(cri.pod_config(network=True))
    plugin.fail("DEL")
    cri.remove_pod(pod)
    assert cri.list_pods() == []
    eventually(lambda: [one.kind for one in cri.fsck()] == ["network"], "the network is owed")
    plugin.work()
    eventually(lambda: cri.fsck() == [], "the debt is paid by itself")


def test_a_client_that_goes_away_leaves_a_whole_pod(cri: CRI, roots: Roots) -> None:
    plugin = Plugin(roots)
    plugin.slow(1.0)
    config = cri.pod_config(network=True)
    call = cri.runtime.future("RunPodSandbox", pb.RunPodSandboxRequest(config=config), pb.RunPodSandboxResponse)
    plugin.wait_for("ADD")
    call.cancel()
    eventually(lambda: len(cri.list_pods()) == 1, "the pod is there")
    assert cri.list_pods()[0].state == pb.SANDBOX_READY
    assert cri.run_pod(config) == cri.list_pods()[0].id


def test_a_pod_in_the_making_is_not_listed_and_joined_by_a_retry(cri: CRI, roots: Roots) -> None:
    plugin = Plugin(roots)
    plugin.slow(0.7)
    config = cri.pod_config(network=True)
    request = pb.RunPodSandboxRequest(config=config)
    call = cri.runtime.future("RunPodSandbox", request, pb.RunPodSandboxResponse, timeout=0.3)
    plugin.wait_for("ADD")
    assert cri.list_pods() == []
    assert cri.fsck() == []
    other = pb.PodSandboxConfig()
    other.CopyFrom(config)
    other.hostname = "another"
    with refused(grpc.StatusCode.ALREADY_EXISTS, config.metadata.name):
        cri.run_pod(other)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        call.result()
    assert [cri.run_pod(config)] == [pod.id for pod in cri.list_pods()]


def test_a_stopped_daemon_undoes_what_it_was_making(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    plugin = Plugin(roots)
    plugin.slow(20)
    config = cri.pod_config(network=True)
    call = cri.runtime.future("RunPodSandbox", pb.RunPodSandboxRequest(config=config), pb.RunPodSandboxResponse)
    plugin.wait_for("ADD")
    assert daemon.stop() == 0
    with refused(grpc.StatusCode.UNAVAILABLE):
        call.result()
    assert not list((roots.state / "netns").glob("*"))
    plugin.work()
    daemon.start()
    assert cri.list_pods() == []
    assert cri.fsck() == []


def test_a_pod_whose_process_is_killed_is_not_ready_and_its_containers_go_with_it(cri: CRI) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    pid = cri.pod_info(pod)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, 9)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
    assert cri.wait(container).code in (137, 255)
    assert cri.status(container).state == pb.CONTAINER_EXITED
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.fsck() == []


class Plugin:
    """A CNI plugin of the test's own beside the bridge: it fails or is slow as it is told, and notes its calls."""

    def __init__(self, roots: Roots) -> None:
        self.folder = roots.base / "bin"
        self.folder.mkdir(exist_ok=True)
        self.calls = roots.base / "calls"
        self.program = self.folder / "it-fails"
        self.work()
        (conflist,) = roots.conf_dir.glob("*.conflist")
        network = json.loads(conflist.read_text())
        network["plugins"].append({"type": "it-fails"})
        conflist.write_text(json.dumps(network))

    def _write(self, action: str) -> None:
        self.program.with_suffix(".new").write_text(
            "#!/bin/sh\n"
            f'echo "$CNI_COMMAND" >> {self.calls}\n'
            'if [ "$CNI_COMMAND" = VERSION ]; then\n'
            '  echo \'{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}\'; exit 0\n'
            "fi\n"
            f"{action}\n"
            "cat > /dev/null\n"
            'if [ "$CNI_COMMAND" = ADD ]; then\n'
            f'  echo \'{{"cniVersion":"1.0.0","interfaces":[],"ips":[{{"address":"{ADDRESS}"}}]}}\'\n'
            "fi\n"
        )
        self.program.with_suffix(".new").chmod(0o755)
        self.program.with_suffix(".new").rename(self.program)

    def work(self) -> None:
        self._write("true")

    def slow(self, seconds: float) -> None:
        self._write(f'if [ "$CNI_COMMAND" = ADD ]; then sleep {seconds}; fi')

    def fail(self, *verbs: str) -> None:
        words = " ".join(verbs)
        self._write(
            f'case " {words} " in *" $CNI_COMMAND "*)\n'
            '  echo \'{"cniVersion":"1.0.0","code":100,"msg":"out of luck"}\'; exit 1;;\nesac'
        )

    def wait_for(self, verb: str) -> None:
        eventually(lambda: self.calls.exists() and verb in self.calls.read_text().split(), f"the plugin's {verb}")


ADDRESS = "192.0.2.77/32"


def fetch(host: str, port: int) -> bytes:
    """What an HTTP server says; it may take a moment to listen."""
    for _ in range(100):
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
                return answer
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens on {host}:{port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
