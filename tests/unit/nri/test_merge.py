"""How the answers of several plugins become one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.nri.merge import Creation, Updates

ID = "container"


def creation() -> Creation:
    request = pb.CreateContainerRequest()
    container = request.container
    container.id = ID
    container.env.extend(["A=image", "B=image"])
    container.annotations["there"] = "1"
    container.mounts.add(destination="/data", source="/old")
    container.linux.devices.add(path="/dev/old", type="c")
    container.linux.namespaces.add(type="pid", path="/old")
    container.linux.resources.memory.limit.value = 1
    return Creation(request)


def env(*pairs: str) -> pb.ContainerAdjustment:
    return pb.ContainerAdjustment(
        env=[pb.KeyValue(key=key, value=value) for key, _, value in (pair.partition("=") for pair in pairs)]
    )


def memory(limit: int) -> pb.ContainerAdjustment:
    adjust = pb.ContainerAdjustment()
    adjust.linux.resources.memory.limit.value = limit
    return adjust


def give(made: Creation, *adjusts: pb.ContainerAdjustment) -> Creation:
    for number, adjust in enumerate(adjusts, 1):
        made.apply(pb.CreateContainerResponse(adjust=adjust), f"p{number}")
    return made


def rdt(**values: str) -> pb.ContainerAdjustment:
    adjust = pb.ContainerAdjustment()
    for name, value in values.items():
        getattr(adjust.linux.rdt, name).value = value
    return adjust


def linux(**fields: object) -> pb.ContainerAdjustment:
    return pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(**fields))  # pyright: ignore[reportArgumentType]


def resources(**fields: object) -> pb.ContainerAdjustment:
    return linux(resources=pb.LinuxResources(**fields))  # pyright: ignore[reportArgumentType]


SETTERS: dict[str, Callable[[], pb.ContainerAdjustment]] = {
    "Annotations k": lambda: pb.ContainerAdjustment(annotations={"k": "1"}),
    "Mounts /m": lambda: pb.ContainerAdjustment(mounts=[pb.Mount(destination="/m")]),
    "Env K": lambda: env("K=1"),
    "Args": lambda: pb.ContainerAdjustment(args=["a"]),
    "Rlimits RLIMIT_CORE": lambda: pb.ContainerAdjustment(rlimits=[pb.POSIXRlimit(type="RLIMIT_CORE")]),
    "CdiDevices v/c=n": lambda: pb.ContainerAdjustment(CDI_devices=[pb.CDIDevice(name="v/c=n")]),
    "Devices /dev/d": lambda: linux(devices=[pb.LinuxDevice(path="/dev/d")]),
    "MemLimit": lambda: memory(1),
    "CPUShares": lambda: resources(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=2))),
    "CPUSetCPUs": lambda: resources(cpu=pb.LinuxCPU(cpus="0")),
    "PidsLimit": lambda: resources(pids=pb.LinuxPids(limit=1)),
    "HugepageLimits 2MB": lambda: resources(hugepage_limits=[pb.HugepageLimit(page_size="2MB")]),
    "CgroupsUnified memory.high": lambda: resources(unified={"memory.high": "1"}),
    "BlockioClass": lambda: resources(blockio_class=pb.OptionalString(value="c")),
    "RdtClass": lambda: resources(rdt_class=pb.OptionalString(value="c")),
    "CgroupsPath": lambda: linux(cgroups_path="/x"),
    "OomScoreAdj": lambda: linux(oom_score_adj=pb.OptionalInt(value=1)),
    "IoPriority": lambda: linux(io_priority=pb.LinuxIOPriority(priority=1)),
    "SeccompPolicy": lambda: linux(seccomp_policy=pb.LinuxSeccomp()),
    "Namespace ipc": lambda: linux(namespaces=[pb.LinuxNamespace(type="ipc")]),
    "Sysctl net.x": lambda: linux(sysctl={"net.x": "1"}),
    "LinuxNetDevices eth1": lambda: linux(net_devices={"eth1": pb.LinuxNetDevice(name="x")}),
    "LinuxSched": lambda: linux(scheduler=pb.LinuxScheduler(policy=pb.SCHED_BATCH)),
    "RdtClosID": lambda: rdt(clos_id="c"),
    "MemoryPolicy": lambda: linux(memory_policy=pb.LinuxMemoryPolicy(nodes="0")),
}


@pytest.mark.parametrize("field", SETTERS)
def test_what_two_plugins_set_conflicts(field: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match=f"p2 and p1 both set {field}$"):
        give(creation(), SETTERS[field](), SETTERS[field]())


@pytest.mark.parametrize("field", SETTERS)
def test_what_one_plugin_sets_has_an_owner(field: str) -> None:
    owners = give(creation(), SETTERS[field]()).owners.message().owners[ID]
    name, _, key = field.partition(" ")
    if key:
        assert owners.compound[pb.Field.Value(name)].owners[key] == "p1"
    else:
        assert owners.simple[pb.Field.Value(name)] == "p1"


def test_different_things_are_put_together_in_order() -> None:
    made = give(creation(), env("C=1"), env("D=2"), memory(5), pb.ContainerAdjustment(args=["x"]))
    assert [(one.key, one.value) for one in made.adjust.env] == [("C", "1"), ("D", "2")]
    assert made.adjust.linux.resources.memory.limit.value == 5
    assert list(made.adjust.args) == ["x"]


def test_the_next_plugin_sees_what_the_one_before_did() -> None:
    made = give(
        creation(),
        env("A=new", "-B", "C=1"),
        pb.ContainerAdjustment(annotations={"-there": "", "k": "v"}),
        pb.ContainerAdjustment(mounts=[pb.Mount(destination="/data", source="/new")]),
        linux(
            devices=[pb.LinuxDevice(path="-/dev/old")],
            namespaces=[pb.LinuxNamespace(type="-pid"), pb.LinuxNamespace(type="ipc", path="/x")],
            resources=pb.LinuxResources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=9))),
        ),
    )
    seen = made.request.container
    assert list(seen.env) == ["A=new", "C=1"]
    assert dict(seen.annotations) == {"k": "v"}
    assert [one.source for one in seen.mounts] == ["/new"]
    assert len(seen.linux.devices) == 0
    assert [one.type for one in seen.linux.namespaces] == ["ipc"]
    assert seen.linux.resources.memory.limit.value == 9


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (env("K=1"), env("-K", "K=2"), "2"),
        (env("K=1"), env("-K"), None),
    ],
)
def test_a_later_plugin_may_take_away_and_set_again(
    first: pb.ContainerAdjustment, second: pb.ContainerAdjustment, left: str | None
) -> None:
    made = give(creation(), first, second)
    values = {one.key: one.value for one in made.adjust.env}
    assert values.get("K") == left
    assert made.owners.message().owners[ID].compound[pb.Env].owners["K"] == ("p2" if left else "-p2")
    assert ("K=1" in made.request.container.env) is False


def test_what_was_taken_away_from_another_is_not_set_by_a_third() -> None:
    with pytest.raises(errors.FailedPrecondition, match="p3 and p2"):
        give(creation(), env("K=1"), env("-K"), env("K=3"))


def test_marks_of_removal_go_into_the_adjustment() -> None:
    made = give(
        creation(),
        pb.ContainerAdjustment(annotations={"-there": ""}, mounts=[pb.Mount(destination="-/data")]),
        env("-A"),
    )
    assert dict(made.adjust.annotations) == {"-there": ""}
    assert [one.destination for one in made.adjust.mounts] == ["-/data"]
    assert [one.key for one in made.adjust.env] == ["-A"]


def test_arguments_are_replaced_where_that_is_said() -> None:
    one = pb.ContainerAdjustment(args=["a"])
    made = give(creation(), one, pb.ContainerAdjustment(args=["", "b"]))
    assert list(made.adjust.args) == list(made.request.container.args) == ["b"]


def test_hooks_add_up() -> None:
    one = pb.ContainerAdjustment(hooks=pb.Hooks(prestart=[pb.Hook(path="/a")]))
    two = pb.ContainerAdjustment(hooks=pb.Hooks(prestart=[pb.Hook(path="/b")]))
    made = give(creation(), one, two)
    assert [hook.path for hook in made.adjust.hooks.prestart] == ["/a", "/b"]
    assert made.owners.message().owners[ID].simple[pb.OciHooks] == "p1,p2"


def test_cache_allocation_may_be_removed_and_set_again() -> None:
    removal = pb.ContainerAdjustment()
    removal.linux.rdt.remove = True
    removal.linux.rdt.clos_id.value = "new"
    made = give(creation(), rdt(clos_id="old"), removal)
    assert made.adjust.linux.rdt.clos_id.value == "new"
    assert not made.adjust.linux.rdt.remove


def update(container: str, limit: int, *, ignore_failure: bool = False) -> pb.ContainerUpdate:
    one = pb.ContainerUpdate(container_id=container, ignore_failure=ignore_failure)
    one.linux.resources.memory.limit.value = limit
    return one


def test_updates_of_one_container_are_put_together() -> None:
    updates = Updates()
    other = pb.ContainerUpdate(container_id="b", ignore_failure=True)
    other.linux.resources.cpu.cpus = "0"
    updates.apply([update("a", 1), update("b", 2)], "p1")
    updates.apply([other], "p2")
    assert [one.container_id for one in updates.others] == ["a", "b"]
    merged = updates.others[1]
    assert (merged.linux.resources.memory.limit.value, merged.linux.resources.cpu.cpus) == (2, "0")
    assert not merged.ignore_failure


def test_updates_conflict_and_one_that_may_fail_is_left_out() -> None:
    updates = Updates()
    updates.apply([update("a", 1)], "p1")
    updates.apply([update("a", 2, ignore_failure=True)], "p2")
    assert [one.linux.resources.memory.limit.value for one in updates.others] == [1]
    with pytest.raises(errors.FailedPrecondition, match="both set MemLimit"):
        updates.apply([update("a", 3)], "p3")


def test_the_container_in_making_is_adjusted_not_updated() -> None:
    with pytest.raises(errors.InvalidArgument, match="being created"):
        creation().apply(pb.CreateContainerResponse(update=[update(ID, 1)]), "p1")


def test_an_update_request_has_the_new_limits_of_its_own_container() -> None:
    asked = pb.LinuxResources()
    asked.memory.limit.value = 7
    asked.cpu.shares.value = 8
    updates = Updates(own=("own", asked))
    updates.apply([update("own", 9), update("other", 1)], "p1")
    assert (asked.memory.limit.value, asked.cpu.shares.value) == (9, 8)
    assert [one.container_id for one in updates.others] == ["other"]
