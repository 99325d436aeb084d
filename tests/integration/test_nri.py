"""Plugins of NRI on real pods: what they are told, what they may change, and what they cost when they fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from atoll.api import cri_runtime_v1_pb2 as cri_pb
from atoll.api import nri_v1alpha1_pb2 as pb
from tests.integration.cri_client import CRI
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import wait_until
from tests.integration.nri_client import UNCHECKED, Plugin, Refusal

TIMEOUT_S = 0.5
CONFIG = f"""
[nri]
enable = true
socket_path = "{{state}}/nri.sock"
plugin_path = "{{state}}/no-plugins"
plugin_request_timeout_s = {TIMEOUT_S}
plugin_registration_timeout_s = 1.0
"""
pytestmark = pytest.mark.shared_daemon(config=CONFIG)
MIB = 1024 * 1024

Connect = Callable[..., Plugin]


@pytest.fixture
def connect(daemon: Daemon, roots: Roots) -> Iterator[Connect]:
    """Makes plugins of this test's daemon, connected and not started."""
    made: list[Plugin] = []

    def make(name: str = "test", index: str = "10", **options: int) -> Plugin:
        plugin = Plugin.connect(roots.state / "nri.sock", name, index, **options)
        made.append(plugin)
        return plugin

    yield make
    for plugin in made:
        plugin.close()


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The code and the text with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), str(caught.value.details())


def adjusting(plugin: Plugin, adjust: pb.ContainerAdjustment, *updates: pb.ContainerUpdate) -> Plugin:
    plugin.answers["CreateContainer"] = lambda _: pb.CreateContainerResponse(adjust=adjust, update=updates)
    return plugin.start()


def test_a_plugin_is_told_everything_in_order(connect: Connect, cri: CRI) -> None:
    plugin = connect().start()
    assert plugin.configured is not None
    assert plugin.configured.runtime_name == "atoll"
    assert plugin.configured.request_timeout == TIMEOUT_S * 1000
    pod = cri.run_pod(cri.pod_config(labels={"a": "1"}, annotations={"b": "2"}))
    container = cri.run(pod, "sleep", "1000", labels={"c": "3"}, annotations={"d": "4"})
    request = cri_pb.UpdateContainerResourcesRequest(container_id=container)
    request.linux.memory_limit_in_bytes = 64 * MIB
    cri.runtime.call("UpdateContainerResources", request, cri_pb.UpdateContainerResourcesResponse)
    changed = cri_pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod)
    changed.resources.memory_limit_in_bytes = 128 * MIB
    cri.runtime.call("UpdatePodSandboxResources", changed, cri_pb.UpdatePodSandboxResourcesResponse)
    cri.stop(container)
    cri.remove(container)
    cri.stop_pod(pod)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert plugin.names() == [
        "RunPodSandbox",
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "UpdatePodSandbox",
        "PostUpdatePodSandbox",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ]
    seen = plugin.of("RunPodSandbox", pb.RunPodSandboxRequest)[0].pod
    assert (seen.id, seen.namespace, seen.runtime_handler) == (pod, "tests", "atoll")
    assert seen.labels["a"] == "1"
    assert seen.annotations["b"] == "2"
    assert seen.pid > 0
    assert {one.type for one in seen.linux.namespaces} == {"pid", "ipc", "network", "uts"}
    started = plugin.of("PostStartContainer", pb.PostStartContainerRequest)[0].container
    assert (started.id, started.pod_sandbox_id, started.state) == (container, pod, pb.CONTAINER_RUNNING)
    assert list(started.args) == ["sleep", "1000"]
    assert started.pid > 0
    assert (started.labels["c"], started.annotations["d"]) == ("3", "4")
    assert plugin.of("StartContainer", pb.StartContainerRequest)[0].container.pid == started.pid
    limit = plugin.of("UpdateContainer", pb.UpdateContainerRequest)[0].linux_resources.memory.limit.value
    assert limit == 64 * MIB
    whole = plugin.of("UpdatePodSandbox", pb.UpdatePodSandboxRequest)[0].linux_resources.memory.limit.value
    assert whole == 128 * MIB
    assert plugin.of("StopContainer", pb.StopContainerRequest)[0].container.exit_code == 137


def test_a_plugin_that_joins_sees_what_is_there(connect: Connect, cri: CRI) -> None:
    pod = cri.run_pod()
    running = cri.run(pod, "sleep", "1000")
    created = cri.create(pod, cri.container_config("true"))
    ended = cri.run(pod, "true")
    cri.wait(ended)
    plugin = connect().start()
    [sync] = plugin.of("Synchronize", pb.SynchronizeRequest)
    assert [one.id for one in sync.pods] == [pod]
    states = {one.id: one.state for one in sync.containers}
    assert states == {running: pb.CONTAINER_RUNNING, created: pb.CONTAINER_CREATED}
    cri.remove_pod(pod)


def test_a_plugin_gets_only_what_it_subscribed_to(connect: Connect, cri: CRI) -> None:
    plugin = connect(events=1 << (pb.STOP_CONTAINER - 1) | 1 << (pb.RUN_POD_SANDBOX - 1)).start()
    pod = cri.run_pod()
    container = cri.run(pod, "true")
    cri.wait(container)
    cri.remove_pod(pod)
    assert plugin.names() == ["RunPodSandbox", "StopContainer"]


def test_an_older_plugin_is_told_by_state_changes(connect: Connect, cri: CRI) -> None:
    plugin = connect()

    def unknown(request: object) -> None:
        raise NotImplementedError

    plugin.answers.update(dict.fromkeys(("RunPodSandbox", "PostCreateContainer", "RemovePodSandbox"), unknown))
    plugin.events = sum(1 << (event - 1) for event in (pb.RUN_POD_SANDBOX, pb.REMOVE_POD_SANDBOX))
    plugin.start()
    pod = cri.run_pod()
    cri.remove_pod(pod)
    assert plugin.names() == ["RunPodSandbox", "StateChange", "StateChange"]
    changes = plugin.of("StateChange", pb.StateChangeEvent)
    assert [(one.event, one.pod.id) for one in changes] == [(pb.RUN_POD_SANDBOX, pod), (pb.REMOVE_POD_SANDBOX, pod)]


def test_adjustments_are_seen_inside_the_container(connect: Connect, cri: CRI, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {tmp_path}/state\n")
    hook.chmod(0o755)
    adjust = pb.ContainerAdjustment(
        annotations={"added": "1"},
        mounts=[
            pb.Mount(destination="/from-plugin", type="bind", source=str(tmp_path), options=["rbind", "ro"]),
            pb.Mount(destination="-/etc/hostname"),
        ],
        env=[
            pb.KeyValue(key="ADDED", value="yes"),
            pb.KeyValue(key="CHANGED", value="by plugin"),
            pb.KeyValue(key="-GONE"),
        ],
        args=["", "/bin/sh", "-c", "ulimit -n; exec sleep 1000"],
        hooks=pb.Hooks(create_runtime=[pb.Hook(path=str(hook))]),
        rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", soft=321, hard=654)],
    )
    linux = adjust.linux
    linux.devices.add(path="/dev/null2", type="c", major=1, minor=3)
    linux.oom_score_adj.value = 777
    linux.resources.cpu.shares.value = 333
    linux.resources.memory.limit.value = 48 * MIB
    linux.resources.pids.limit = 44
    linux.sysctl["net.ipv4.ip_forward"] = "1"
    linux.io_priority.CopyFrom(pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_BE}, priority=6))
    linux.scheduler.CopyFrom(pb.LinuxScheduler(policy=pb.SCHED_BATCH, nice=5))
    linux.namespaces.add(type="pid")
    linux.seccomp_policy.CopyFrom(
        pb.LinuxSeccomp(
            default_action="SCMP_ACT_ALLOW",
            architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            syscalls=[pb.LinuxSyscall(names=["mkdir", "mkdirat"], action="SCMP_ACT_ERRNO")],
        )
    )
    plugin = adjusting(connect(), adjust)
    pod = cri.run_pod()
    config = cri.container_config("never", env={"CHANGED": "no", "GONE": "no"})
    config.linux.security_context.namespace_options.pid = cri_pb.POD
    container = cri.create(pod, config)
    cri.start(container)
    sh = lambda script: cri.sh(container, script)  # noqa: E731
    assert sh("cat /from-plugin/file") == "from the host"
    assert "refused" in sh("touch /from-plugin/x 2>/dev/null && echo written || echo refused")
    assert sh("mount | grep -c /etc/hostname || true") == "0"
    assert sh("echo $ADDED,$CHANGED,${GONE-unset}") == "yes,by plugin,unset"
    assert sh("echo x > /dev/null2 && ls -l /dev/null2 | grep -c '1, *3'") == "1"
    assert sh("cat /proc/1/oom_score_adj") == "777"
    assert sh("cat /proc/sys/net/ipv4/ip_forward") == "1"
    assert sh("tr '\\0' ' ' < /proc/1/cmdline").startswith("sleep 1000")
    assert sh("mkdir /made 2>/dev/null && echo made || echo filtered") == "filtered"
    assert cri.output(container).strip() == b"321"
    pid = plugin.of("StartContainer", pb.StartContainerRequest)[0].container.pid
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    assert f'"id":"{container}"' in (tmp_path / "state").read_text().replace(" ", "")
    told = cri.status(container).resources.linux
    assert (told.cpu_shares, told.memory_limit_in_bytes) == (333, 48 * MIB)
    created = plugin.of("PostCreateContainer", pb.PostCreateContainerRequest)[0].container
    assert created.annotations["added"] == "1"
    assert created.linux.resources.pids.limit == 44
    assert created.linux.io_priority.priority == 6
    # A change of one limit leaves the others that the plugin has set.
    request = cri_pb.UpdateContainerResourcesRequest(container_id=container)
    request.linux.cpu_shares = 444
    cri.runtime.call("UpdateContainerResources", request, cri_pb.UpdateContainerResourcesResponse)
    updated = plugin.of("PostUpdateContainer", pb.PostUpdateContainerRequest)[0].container.linux.resources
    assert (updated.cpu.shares.value, updated.pids.limit, updated.memory.limit.value) == (444, 44, 48 * MIB)
    cri.remove_pod(pod)


def test_a_later_plugin_sees_what_an_earlier_one_did(connect: Connect, cri: CRI) -> None:
    second = adjusting(connect("second", "20"), pb.ContainerAdjustment(env=[pb.KeyValue(key="B", value="2")]))
    first = adjusting(connect("first", "10"), pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="1")]))
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    assert cri.sh(container, "echo $A$B") == "12"
    assert "A=1" not in first.of("CreateContainer", pb.CreateContainerRequest)[0].container.env
    assert "A=1" in second.of("CreateContainer", pb.CreateContainerRequest)[0].container.env
    [check] = first.of("ValidateContainerAdjustment", pb.ValidateContainerAdjustmentRequest)
    owners = check.owners.owners[container].compound[pb.Env].owners
    assert dict(owners) == {"A": "10-first", "B": "20-second"}
    assert [(one.index, one.name) for one in check.plugins] == [("10", "first"), ("20", "second")]
    cri.remove_pod(pod)


def test_two_plugins_that_set_the_same_are_refused(connect: Connect, cri: CRI) -> None:
    first = adjusting(connect("first", "10"), pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="1")]))
    adjusting(connect("second", "20"), pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="2")]))
    pod = cri.run_pod()
    code, text = refused(lambda: cri.create(pod, cri.container_config("true")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "10-first" in text
    assert "20-second" in text
    assert cri.list() == []
    assert first.names()[1:] == ["CreateContainer", "RemoveContainer"]
    cri.remove_pod(pod)


def test_a_validator_rejects(connect: Connect, cri: CRI) -> None:
    adjusting(connect("first", "10"), pb.ContainerAdjustment(hooks=pb.Hooks(poststop=[pb.Hook(path="/bin/true")])))
    validator = connect("guard", "90", events=1 << (pb.VALIDATE_CONTAINER_ADJUSTMENT - 1))

    def judge(request: Message) -> pb.ValidateContainerAdjustmentResponse:
        assert isinstance(request, pb.ValidateContainerAdjustmentRequest)
        return pb.ValidateContainerAdjustmentResponse(
            reject=len(request.adjust.hooks.poststop) > 0, reason="no hooks here"
        )

    validator.answers["ValidateContainerAdjustment"] = judge
    validator.start()
    pod = cri.run_pod()
    _, text = refused(lambda: cri.create(pod, cri.container_config("true")))
    assert "90-guard" in text
    assert "no hooks here" in text
    assert cri.list() == []
    cri.remove_pod(pod)


def test_what_this_host_cannot_do_is_refused(connect: Connect, cri: CRI) -> None:
    adjust = pb.ContainerAdjustment()
    adjust.linux.resources.blockio_class.value = "gold"
    adjusting(connect(), adjust)
    pod = cri.run_pod()
    code, text = refused(lambda: cri.create(pod, cri.container_config("true")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "blockio_class" in text
    cri.remove_pod(pod)


def test_a_plugin_refuses(connect: Connect, cri: CRI) -> None:
    plugin = connect()

    def refuse(request: object) -> None:
        raise Refusal("not on this node")

    plugin.answers["RunPodSandbox"] = refuse
    plugin.start()
    _, text = refused(cri.run_pod)
    assert "not on this node" in text
    assert cri.list_pods() == []
    assert plugin.names() == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    del plugin.answers["RunPodSandbox"]
    plugin.answers["StartContainer"] = refuse
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    assert "not on this node" in refused(lambda: cri.start(container))[1]
    status = cri.status(container)
    assert (status.state, status.exit_code) == (cri_pb.CONTAINER_EXITED, 128)
    cri.remove_pod(pod)


def memory(container: str, limit: int, *, ignore_failure: bool = False) -> pb.ContainerUpdate:
    update = pb.ContainerUpdate(container_id=container, ignore_failure=ignore_failure)
    update.linux.resources.memory.limit.value = limit
    return update


def limit_of(cri: CRI, container: str) -> int:
    return cri.status(container).resources.linux.memory_limit_in_bytes


def test_other_containers_are_updated_and_evicted(connect: Connect, cri: CRI) -> None:
    pod = cri.run_pod()
    other = cri.run(pod, "sleep", "1000")
    plugin = adjusting(connect(), pb.ContainerAdjustment(), memory(other, 32 * MIB))
    created = cri.create(pod, cri.container_config("sleep", "1000"))
    assert limit_of(cri, other) == 32 * MIB
    assert plugin.update(memory(created, 40 * MIB), memory("unknown", MIB)) == [memory("unknown", MIB)]
    assert limit_of(cri, created) == 40 * MIB
    cri.start(created)
    plugin.answers["StopContainer"] = lambda _: pb.StopContainerResponse(update=[memory(created, 44 * MIB)])
    assert plugin.update(evict=(pb.ContainerEviction(container_id=other, reason="room is needed"),)) == []
    assert cri.wait(other).code == 137
    assert wait_until(lambda: limit_of(cri, created) == 44 * MIB)
    plugin.answers["UpdateContainer"] = lambda _: pb.UpdateContainerResponse(update=[memory(created, 56 * MIB)])
    request = cri_pb.UpdateContainerResourcesRequest(container_id=created)
    request.linux.memory_limit_in_bytes = 60 * MIB
    cri.runtime.call("UpdateContainerResources", request, cri_pb.UpdateContainerResourcesResponse)
    assert limit_of(cri, created) == 56 * MIB
    plugin.answers["CreateContainer"] = lambda _: pb.CreateContainerResponse(update=[memory("unknown", MIB)])
    assert "unknown" in refused(lambda: cri.create(pod, cri.container_config("true")))[1]
    plugin.answers["CreateContainer"] = lambda _: pb.CreateContainerResponse(
        update=[memory("unknown", MIB, ignore_failure=True)]
    )
    cri.create(pod, cri.container_config("true"))
    cri.remove_pod(pod)


def test_a_plugin_that_hangs_costs_its_timeout_once(connect: Connect, cri: CRI) -> None:
    good = connect("good", "20").start()
    plugin = connect("hangs", "10")
    plugin.answers["RunPodSandbox"] = lambda _: time.sleep(3 * TIMEOUT_S)
    plugin.start()
    began = time.monotonic()
    first = cri.run_pod()
    assert TIMEOUT_S <= time.monotonic() - began < TIMEOUT_S + 1.0
    began = time.monotonic()
    second = cri.run_pod()
    assert time.monotonic() - began < TIMEOUT_S
    assert plugin.ended.wait(1.0)
    assert good.names() == ["RunPodSandbox", "RunPodSandbox"]
    cri.remove_pod(first)
    cri.remove_pod(second)


def test_a_plugin_that_hangs_as_it_joins_holds_up_creations_for_its_timeout(connect: Connect, cri: CRI) -> None:
    plugin = connect()
    plugin.answers["Synchronize"] = lambda _: time.sleep(3 * TIMEOUT_S)
    with pytest.raises(AssertionError):
        plugin.start(within=0.1)
    began = time.monotonic()
    pod = cri.run_pod()
    assert time.monotonic() - began < TIMEOUT_S + 1.0
    assert plugin.ended.wait(1.0)
    assert plugin.names() == []
    cri.remove_pod(pod)


def test_a_plugin_that_dies_costs_nothing(connect: Connect, cri: CRI) -> None:
    plugin = connect(events=UNCHECKED)
    plugin.answers["CreateContainer"] = lambda _: plugin.close()
    plugin.start()
    pod = cri.run_pod()
    began = time.monotonic()
    container = cri.run(pod, "sleep", "1000")
    assert time.monotonic() - began < TIMEOUT_S
    assert cri.status(container).state == cri_pb.CONTAINER_RUNNING
    cri.remove_pod(pod)


def test_a_validator_that_dies_fails_the_creation(connect: Connect, cri: CRI) -> None:
    plugin = connect()
    plugin.answers["ValidateContainerAdjustment"] = lambda _: plugin.close()
    plugin.start()
    pod = cri.run_pod()
    assert "cannot validate" in refused(lambda: cri.create(pod, cri.container_config("true")))[1]
    cri.create(pod, cri.container_config("true"))
    cri.remove_pod(pod)


def test_who_does_not_register_is_turned_away(connect: Connect, cri: CRI) -> None:
    silent = connect()
    silent._thread.start()  # it never says who it is
    for index, name in (("1", "short"), ("aa", "letters"), ("10", "with/slash"), ("10", "")):
        with pytest.raises((Refusal, AssertionError), match=r"plugin (index|name)"):
            connect(name, index).start()
    assert silent.ended.wait(3.0)
    pod = cri.run_pod()
    assert silent.names() == []
    cri.remove_pod(pod)


def test_cgroups_made_above_a_containers_go_with_it(cri: CRI, roots: Roots, connect: Connect) -> None:
    """Where a plugin moves it: the runtime makes what is above, and nobody else knows of that."""
    top = f"{roots.prefix}-moved"
    adjust = pb.ContainerAdjustment()
    adjust.linux.cgroups_path = f"/{top}/below/own"
    adjusting(connect(), adjust)
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    cri.start(container)
    folders = list(Path("/sys/fs/cgroup").glob(f"*/{top}")) or list(Path("/sys/fs/cgroup").glob(top))
    assert any((folder / "below/own").is_dir() for folder in folders)
    cri.remove_pod(pod)
    assert [folder for folder in folders if folder.exists()] == []
