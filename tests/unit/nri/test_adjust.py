"""An adjustment in a runtime spec."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts
from atoll.nri import views
from atoll.nri.adjust import Place, apply
from atoll.oci import bpf, spec
from atoll.oci.features import RuntimeFeatures

SPEC = spec.Spec(
    process=spec.Process(
        args=("sleep", "1"),
        env=("A=1", "B=2"),
        rlimits=(spec.Rlimit(type="RLIMIT_NOFILE", soft=1, hard=1), spec.Rlimit(type="RLIMIT_CORE", soft=0, hard=0)),
    ),
    mounts=(spec.Mount(destination="/proc", type="proc"), spec.Mount(destination="/data", source="/old")),
    annotations={"there": "1", bpf.ANNOTATION: "filter"},
    linux=spec.Linux(
        resources=spec.Resources(
            devices=(spec.DeviceRule(allow=False, access="rwm"),),
            memory=spec.Memory(limit=100, swap=100),
            cpu=spec.CPU(shares=2),
        ),
        namespaces=(spec.Namespace(type="mount"), spec.Namespace(type="pid", path="/old")),
        devices=(spec.Device(path="/dev/old", type="c", major=1, minor=1),),
        sysctl={"net.a": "1"},
        seccomp=spec.Seccomp(default_action="SCMP_ACT_ERRNO"),
        cgroups_path="/there",
    ),
)


@pytest.fixture
def place(host: HostFacts, runtime: RuntimeFeatures) -> Place:
    return Place(host=host, runtime=runtime)


def linux(adjusted: spec.Spec) -> spec.Linux:
    assert adjusted.linux is not None
    return adjusted.linux


def test_nothing_asked_for_is_nothing_changed(place: Place) -> None:
    assert apply(SPEC, pb.ContainerAdjustment(), place) == SPEC


def test_what_a_process_has(place: Place) -> None:
    asked = pb.ContainerAdjustment(
        args=["true"],
        env=[pb.KeyValue(key="-B"), pb.KeyValue(key="A", value="x"), pb.KeyValue(key="C", value="y=z")],
        rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", soft=5, hard=6)],
    )
    asked.linux.oom_score_adj.value = -500
    asked.linux.io_priority.CopyFrom(pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_RT}, priority=2))
    asked.linux.scheduler.CopyFrom(
        pb.LinuxScheduler(policy=pb.SCHED_DEADLINE, flags=[pb.SCHED_FLAG_RECLAIM], runtime=1, deadline=2, period=3)
    )
    process = apply(SPEC, asked, place).process
    assert process is not None
    assert process.args == ("true",)
    assert process.env == ("A=x", "C=y=z")
    assert {one.type: (one.soft, one.hard) for one in process.rlimits} == {
        "RLIMIT_NOFILE": (5, 6),
        "RLIMIT_CORE": (0, 0),
    }
    assert process.oom_score_adj == 0  # not below the daemon's own, as for a container's own wish
    assert process.io_priority == spec.IOPriority(io_class="IOPRIO_CLASS_RT", priority=2)
    assert process.scheduler == spec.Scheduler(
        policy="SCHED_DEADLINE", flags=("SCHED_FLAG_RECLAIM",), runtime=1, deadline=2, period=3
    )


def test_mounts_are_replaced_removed_and_put_in_order(place: Place) -> None:
    asked = pb.ContainerAdjustment(
        mounts=[
            pb.Mount(destination="/new/below", source="/b", options=["rshared"]),
            pb.Mount(destination="/new/", source="/a"),
            pb.Mount(destination="-/data"),
        ]
    )
    adjusted = apply(SPEC, asked, place)
    assert [one.destination for one in adjusted.mounts] == ["/proc", "/new", "/new/below"]
    assert linux(adjusted).rootfs_propagation == "rshared"


def test_annotations_hooks_sysctls_and_the_cgroup(place: Place) -> None:
    asked = pb.ContainerAdjustment(annotations={"-there": "", "new": "1"})
    asked.hooks.prestart.add(path="/hook", args=["a"], timeout=pb.OptionalInt(value=3))
    asked.linux.sysctl.update({"-net.a": "", "net.b": "2"})
    asked.linux.cgroups_path = "/elsewhere"
    adjusted = apply(SPEC, asked, place)
    assert adjusted.annotations == {"new": "1", bpf.ANNOTATION: "filter"}
    assert adjusted.hooks == spec.Hooks(prestart=(spec.Hook(path="/hook", args=("a",), timeout=3),))
    assert linux(adjusted).sysctl == {"net.b": "2"}
    assert linux(adjusted).cgroups_path == "/elsewhere"


def test_limits_are_laid_over_those_that_are_there(place: Place) -> None:
    asked = pb.ContainerAdjustment()
    limits = asked.linux.resources
    limits.memory.limit.value = 200
    limits.memory.swappiness.value = 0
    limits.cpu.quota.value = 5000
    limits.cpu.cpus = "0-1"
    limits.pids.limit = 9
    limits.hugepage_limits.add(page_size="2MB", limit=4)
    limits.devices.add(allow=True, type="c", major=pb.OptionalInt64(value=1), access="r")
    found = linux(apply(SPEC, asked, place)).resources
    assert found is not None
    assert found.memory == spec.Memory(limit=200, swap=200, swappiness=0)
    assert found.cpu == spec.CPU(shares=2, quota=5000, cpus="0-1")
    assert found.pids == spec.Pids(limit=9)
    assert found.hugepage_limits == (spec.HugepageLimit(page_size="2MB", limit=4),)
    assert [one.allow for one in found.devices] == [False, True]


def test_devices_are_made_and_allowed(place: Place) -> None:
    asked = pb.ContainerAdjustment()
    asked.linux.devices.add(path="/dev/new", type="b", major=8, minor=1, file_mode=pb.OptionalFileMode(value=0o600))
    asked.linux.devices.add(path="-/dev/old")
    adjusted = linux(apply(SPEC, asked, place))
    assert [(one.path, one.file_mode) for one in adjusted.devices] == [("/dev/new", 0o600)]
    assert adjusted.resources is not None
    assert adjusted.resources.devices[-1] == spec.DeviceRule(allow=True, type="b", major=8, minor=1, access="rwm")


@pytest.mark.parametrize(
    ("numbers", "there"), [((-5, 0), False), ((1 << 12, 0), False), ((0, 1 << 20), False), ((4095, 9), True)]
)
def test_numbers_that_no_device_has_are_refused(place: Place, numbers: tuple[int, int], there: bool) -> None:
    asked = pb.ContainerAdjustment()
    asked.linux.devices.add(path="/dev/new", type="c", major=numbers[0], minor=numbers[1])
    if there:
        assert linux(apply(SPEC, asked, place)).devices[-1].major == numbers[0]
    else:
        with pytest.raises(errors.InvalidArgument, match=f"/dev/new.*{numbers[0]}:{numbers[1]}"):
            apply(SPEC, asked, place)


@pytest.mark.parametrize("path", ["relative", "/proc/self/status", "/not/there"])
def test_a_namespace_needs_the_path_of_one(place: Place, path: str) -> None:
    asked = pb.ContainerAdjustment()
    asked.linux.namespaces.add(type="ipc", path=path)
    with pytest.raises(errors.InvalidArgument, match=f"namespace ipc: '{path}'"):
        apply(SPEC, asked, place)


def test_a_bind_mount_needs_its_source(place: Place, tmp_path: Path) -> None:
    asked = pb.ContainerAdjustment(mounts=[pb.Mount(destination="/new", source=str(tmp_path), options=["rbind"])])
    assert apply(SPEC, asked, place).mounts[-1].source == str(tmp_path)
    asked.mounts[0].source = f"{tmp_path}/absent"
    with pytest.raises(errors.InvalidArgument, match=r"mount '/new': its source .*/absent' is not there"):
        apply(SPEC, asked, place)


def test_namespaces_are_replaced_and_removed(place: Place) -> None:
    asked = pb.ContainerAdjustment()
    asked.linux.namespaces.add(type="-pid")
    asked.linux.namespaces.add(type="ipc", path="/proc/self/ns/ipc")
    found = linux(apply(SPEC, asked, place)).namespaces
    assert found == (spec.Namespace(type="mount"), spec.Namespace(type="ipc", path="/proc/self/ns/ipc"))


def test_a_seccomp_policy_takes_the_place_of_the_compiled_one(place: Place) -> None:
    asked = pb.ContainerAdjustment()
    asked.linux.seccomp_policy.default_action = "SCMP_ACT_ALLOW"
    asked.linux.seccomp_policy.syscalls.add(
        names=["mkdir"], action="SCMP_ACT_ERRNO", errno_ret=pb.OptionalUInt32(value=1)
    )
    adjusted = apply(SPEC, asked, place)
    assert bpf.ANNOTATION not in adjusted.annotations
    assert linux(adjusted).seccomp == spec.Seccomp(
        default_action="SCMP_ACT_ALLOW",
        syscalls=(spec.SeccompSyscall(names=("mkdir",), action="SCMP_ACT_ERRNO", errno_ret=1),),
    )


def test_a_cdi_device_is_injected_below_what_else_is_asked_for(place: Place, tmp_path: Path) -> None:
    document = {
        "cdiVersion": "0.5.0",
        "kind": "vendor.com/dev",
        "devices": [{"name": "one", "containerEdits": {"env": ["FROM=cdi", "A=cdi"]}}],
    }
    (tmp_path / "vendor.json").write_text(json.dumps(document))
    asked = pb.ContainerAdjustment(CDI_devices=[pb.CDIDevice(name="vendor.com/dev=one")])
    asked.env.add(key="A", value="plugin")
    process = apply(SPEC, asked, dataclasses.replace(place, cdi_folders=(tmp_path,))).process
    assert process is not None
    assert process.env == ("A=plugin", "B=2", "FROM=cdi")
    with pytest.raises(errors.InvalidArgument, match=r"vendor\.com/dev=one"):
        apply(SPEC, asked, place)


NET_DEVICE = pb.LinuxContainerAdjustment(net_devices={"eth1": pb.LinuxNetDevice(name="eth0")})
POLICY = pb.LinuxContainerAdjustment(memory_policy=pb.LinuxMemoryPolicy(mode=pb.MPOL_BIND, nodes="0"))


def test_what_only_newer_runtimes_have(place: Place) -> None:
    told = json.dumps({"linux": {"netDevices": {"enabled": True}, "memoryPolicy": {"modes": ["MPOL_BIND"]}}}).encode()
    newer = dataclasses.replace(place, runtime=dataclasses.replace(place.runtime, document=told))
    device = linux(apply(SPEC, pb.ContainerAdjustment(linux=NET_DEVICE), newer))
    assert device.net_devices == {"eth1": spec.NetDevice(name="eth0")}
    policy = linux(apply(SPEC, pb.ContainerAdjustment(linux=POLICY), newer))
    assert policy.memory_policy == spec.MemoryPolicy(mode="MPOL_BIND", nodes="0")


def classed(name: str) -> pb.LinuxContainerAdjustment:
    asked = pb.LinuxContainerAdjustment()
    getattr(asked.resources, name).value = "gold"
    return asked


RDT = pb.LinuxContainerAdjustment(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="x")))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (NET_DEVICE, "net_devices: runc 1.1.5"),
        (POLICY, "memory_policy: runc 1.1.5"),
        (RDT, "resctrl"),
        (classed("blockio_class"), "blockio_class 'gold'"),
        (classed("rdt_class"), "rdt_class 'gold'"),
        (pb.LinuxContainerAdjustment(resources=pb.LinuxResources(unified={"memory.high": "1"})), "unified"),
        (
            pb.LinuxContainerAdjustment(
                resources=pb.LinuxResources(hugepage_limits=[pb.HugepageLimit(page_size="1GB", limit=1)])
            ),
            "hugepage_limits.*'1GB'",
        ),
    ],
)
def test_what_cannot_be_done_here_is_refused(asked: pb.LinuxContainerAdjustment, words: str, place: Place) -> None:
    with pytest.raises(errors.FailedPrecondition, match=words):
        apply(SPEC, pb.ContainerAdjustment(linux=asked), place)


def test_unified_keys_need_the_second_version_of_cgroups(place: Place) -> None:
    hierarchies = dataclasses.replace(place.host.hierarchies, layout=Layout.V2)
    unified = dataclasses.replace(place, host=dataclasses.replace(place.host, hierarchies=hierarchies))
    asked = pb.ContainerAdjustment()
    asked.linux.resources.unified["memory.high"] = "1"
    found = linux(apply(SPEC, asked, unified)).resources
    assert found is not None
    assert found.unified == {"memory.high": "1"}


@pytest.mark.parametrize(
    "asked",
    [
        pb.ContainerAdjustment(env=[pb.KeyValue(key="A=B", value="x")]),
        pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="\0")]),
        pb.ContainerAdjustment(mounts=[pb.Mount(destination="relative")]),
        *(pb.ContainerAdjustment(mounts=[pb.Mount(destination=place)]) for place in ("/", "/m\0", "//")),
        *(pb.ContainerAdjustment(hooks=pb.Hooks(prestart=[pb.Hook(path=path)])) for path in ("true", "/a\0")),
        pb.ContainerAdjustment(rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", soft=7, hard=6)]),
        pb.ContainerAdjustment(rlimits=[pb.POSIXRlimit(type="../x", soft=5, hard=6)]),
        *(
            pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(sysctl={name: "1"}))
            for name in ("kernel.panic", "net/../kernel/panic")
        ),
        pb.ContainerAdjustment(
            linux=pb.LinuxContainerAdjustment(devices=[pb.LinuxDevice(path="/dev/x", type="c", major=-5)])
        ),
        pb.ContainerAdjustment(
            linux=pb.LinuxContainerAdjustment(resources=pb.LinuxResources(cpu=pb.LinuxCPU(cpus="x")))
        ),
        pb.ContainerAdjustment(annotations={bpf.ANNOTATION: "x"}),
        pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(cgroups_path="/a/../../b")),
        pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(devices=[pb.LinuxDevice(path="/dev/x", type="z")])),
        pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(namespaces=[pb.LinuxNamespace(type="none")])),
        pb.ContainerAdjustment(
            linux=pb.LinuxContainerAdjustment(
                io_priority=pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_BE}, priority=8)
            )
        ),
    ],
)
def test_what_is_no_value_is_refused(asked: pb.ContainerAdjustment, place: Place) -> None:
    with pytest.raises(errors.InvalidArgument):
        apply(SPEC, asked, place)


def test_a_view_of_a_spec_says_what_is_in_it() -> None:
    process = SPEC.process
    assert process is not None
    full = msgspec.structs.replace(
        SPEC,
        process=msgspec.structs.replace(
            process,
            io_priority=spec.IOPriority(io_class="IOPRIO_CLASS_BE", priority=3),
            scheduler=spec.Scheduler(policy="SCHED_IDLE"),
        ),
        hooks=spec.Hooks(poststop=(spec.Hook(path="/hook", timeout=2),)),
    )
    seen = pb.Container()
    views.fill(seen, full)
    assert dict(seen.annotations) == {"there": "1"}
    assert list(seen.env) == ["A=1", "B=2"]
    assert [one.destination for one in seen.mounts] == ["/proc", "/data"]
    assert seen.hooks.poststop[0].timeout.value == 2
    assert seen.linux.resources.memory.limit.value == 100
    assert not seen.linux.resources.memory.HasField("reservation")
    assert seen.linux.io_priority.priority == 3
    assert seen.linux.scheduler.policy == pb.SCHED_IDLE
    assert not seen.linux.HasField("seccomp_policy")
    assert seen.linux.devices[0].path == "/dev/old"
    views.fill(seen, full, policy=True)
    assert seen.linux.seccomp_policy.default_action == "SCMP_ACT_ERRNO"
