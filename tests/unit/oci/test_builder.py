from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.hardening import MASKED_PATHS, READONLY_PATHS
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts
from atoll.oci import bpf, devices, spec
from atoll.oci.builder import (
    ContainerSpecRequest,
    ImageDefaults,
    PauseSpecRequest,
    PodContext,
    container_spec,
    pause_spec,
)
from atoll.oci.config import (
    Capability,
    Device,
    IDMapping,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
    MountPropagation,
    NamespaceMode,
    NamespaceOption,
    ProfileType,
    SecurityProfile,
    SELinuxOption,
    UserNamespace,
)
from atoll.oci.features import RuntimeFeatures

OWN_PID = NamespaceOption(pid=NamespaceMode.CONTAINER)
POD = PodContext(
    hostname="pod-1",
    network_namespace=Path("/proc/9/ns/net"),
    ipc_namespace=Path("/proc/9/ns/ipc"),
    uts_namespace=Path("/proc/9/ns/uts"),
)


@pytest.fixture
def request_(tmp_path: Path, host: HostFacts, runtime: RuntimeFeatures) -> ContainerSpecRequest:
    return ContainerSpecRequest(
        id="c1",
        image=ImageDefaults(entrypoint=("/entry",), cmd=("cmd",), env=("A=1", "PATH=/p"), working_dir="/w"),
        pod=POD,
        host=host,
        runtime=runtime,
        rootfs_layers=(tmp_path,),
        cgroups_path="/pod/c1",
        security=LinuxContainerSecurityContext(namespace_options=OWN_PID),
    )


def secured(request: ContainerSpecRequest, **asked: object) -> ContainerSpecRequest:
    values: dict[str, object] = {"namespace_options": OWN_PID, **asked}
    return replace(request, security=LinuxContainerSecurityContext(**values))  # pyright: ignore[reportArgumentType]


def process(request: ContainerSpecRequest) -> spec.Process:
    built = container_spec(request).process
    assert built is not None
    return built


def linux(request: ContainerSpecRequest) -> spec.Linux:
    built = container_spec(request).linux
    assert built is not None
    return built


@pytest.mark.parametrize(
    ("command", "args", "entrypoint", "expected"),
    [
        ((), (), ("/entry",), ("/entry", "cmd")),
        ((), ("a",), ("/entry",), ("/entry", "a")),
        (("c",), (), ("/entry",), ("c",)),
        (("c",), ("a",), ("/entry",), ("c", "a")),
        ((), (), ("",), ("cmd",)),
    ],
)
def test_command_and_args_merge_with_the_image(
    request_: ContainerSpecRequest,
    command: tuple[str, ...],
    args: tuple[str, ...],
    entrypoint: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    image = ImageDefaults(entrypoint=entrypoint, cmd=("cmd",))
    assert process(replace(request_, image=image, command=command, args=args)).args == expected


def test_no_command_at_all_is_refused(request_: ContainerSpecRequest) -> None:
    with pytest.raises(errors.InvalidArgument, match="command"):
        container_spec(replace(request_, image=ImageDefaults()))


def test_environment_is_ours_then_image_then_request(request_: ContainerSpecRequest) -> None:
    env = (KeyValue(key="A", value=b"2"), KeyValue(key="B", value=b"x=y"))
    assert process(replace(request_, env=env, tty=True)).env == (
        "PATH=/p", "HOSTNAME=pod-1", "TERM=xterm", "A=2", "B=x=y",
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"env": (KeyValue(key="A", value=b"\xff"),)},
        {"env": (KeyValue(key="A=B", value=b""),)},
        {"env": (KeyValue(key="A", value=b"\0"),)},
        {"command": ("a\0b",)},
        {"command": ("\udcff",)},
        {"working_dir": "relative"},
        {"annotations": {bpf.ANNOTATION: "AAAA"}},
        {"resources": LinuxContainerResources(cpu_period=5)},
        {"resources": LinuxContainerResources(memory_limit_in_bytes=10, memory_swap_limit_in_bytes=5)},
        {"resources": LinuxContainerResources(oom_score_adj=1001)},
        {"resources": LinuxContainerResources(cpuset_cpus="0;1")},
        {"devices": (Device(host_path="/dev/none-such"),)},
        {"devices": (Device(host_path="/dev/null", container_path="/proc/x"),)},
        {"mounts": (Mount(container_path="/proc", host_path="/tmp"),)},
        {"devices": (Device(host_path="/dev/null", permissions="x"),)},
        {"mounts": (Mount(container_path="/", host_path="/tmp"),)},
        {"mounts": (Mount(container_path="/a", host_path="tmp"),)},
        {"mounts": (Mount(container_path="/a", host_path="/tmp", recursive_read_only=True),)},
    ],
)
def test_bad_input_is_refused(request_: ContainerSpecRequest, change: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        container_spec(replace(request_, **change))


@pytest.mark.parametrize(
    "asked",
    [
        {"capabilities": Capability(add_capabilities=("NO_SUCH",))},
        {"privileged": True},
        {"masked_paths": ("relative",)},
        {"seccomp_profile_path": "something"},
        {"seccomp": SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="/no/such/profile")},
        {"seccomp": SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="../x")},
        {"selinux_options": SELinuxOption(level="high")},
        {"namespace_options": NamespaceOption(pid=NamespaceMode.CONTAINER, userns_options=UserNamespace())},
    ],
)
def test_bad_security_is_refused(request_: ContainerSpecRequest, asked: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        container_spec(secured(request_, **asked))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"apparmor_profile": "localhost/mine"}, "AppArmor"),
        ({"selinux_options": SELinuxOption(level="s0:c1,c2")}, "SELinux"),
        ({"capabilities": Capability(add_capabilities=("SYS_RESOURCE",))}, "CAP_SYS_RESOURCE"),
        ({"namespace_options": NamespaceOption()}, "pid"),
    ],
)
def test_what_the_host_lacks_is_an_error(request_: ContainerSpecRequest, asked: dict[str, object], named: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match=named):
        container_spec(secured(request_, **asked))


def test_seccomp_needs_a_kernel_and_a_runtime_with_it(request_: ContainerSpecRequest) -> None:
    asked = secured(request_, seccomp=SecurityProfile())
    for lacking in (
        replace(asked, host=replace(asked.host, seccomp=False)),
        replace(asked, runtime=replace(asked.runtime, seccomp=False)),
    ):
        with pytest.raises(errors.FailedPrecondition, match="seccomp"):
            container_spec(lacking)


def test_default_apparmor_is_none_where_there_is_no_apparmor(request_: ContainerSpecRequest) -> None:
    asked = secured(request_, apparmor=SecurityProfile())
    assert process(asked).apparmor_profile == ""
    with_module = replace(asked, host=replace(asked.host, apparmor=True))
    with pytest.raises(errors.FailedPrecondition, match="apparmor_parser"):
        container_spec(with_module)
    loaded = replace(asked, host=replace(asked.host, apparmor=True, apparmor_default="atoll-default"))
    assert process(loaded).apparmor_profile == "atoll-default"


def test_capabilities_are_all_first_then_by_name(request_: ContainerSpecRequest) -> None:
    def bounding(add: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> tuple[str, ...]:
        chosen = Capability(add_capabilities=add, drop_capabilities=drop)
        granted = process(secured(request_, capabilities=chosen)).capabilities
        assert granted is not None
        assert granted.ambient == granted.inheritable == ()
        return granted.bounding

    assert bounding(("net_admin",), ("ALL",)) == ("CAP_NET_ADMIN",)
    assert set(bounding(("ALL",), ("CAP_KILL",))) == request_.host.capabilities - {"CAP_KILL"}
    assert len(bounding()) == 14
    assert "CAP_MKNOD" not in bounding(drop=("MKNOD",))


def test_swap_equals_memory_where_nothing_is_said(request_: ContainerSpecRequest) -> None:
    asked = replace(request_, resources=LinuxContainerResources(memory_limit_in_bytes=64 << 20))
    resources = linux(asked).resources
    assert resources is not None
    assert resources.memory == spec.Memory(limit=64 << 20, swap=64 << 20)
    without = linux(replace(asked, host=replace(asked.host, swap_limit=False))).resources
    assert without is not None
    assert without.memory == spec.Memory(limit=64 << 20)


def test_oom_score_is_not_below_the_daemons_without_the_capability(request_: ContainerSpecRequest) -> None:
    asked = replace(request_, resources=LinuxContainerResources(oom_score_adj=-997))
    assert process(asked).oom_score_adj == 0
    able = replace(asked.host, capabilities=asked.host.capabilities | {"CAP_SYS_RESOURCE"})
    assert process(replace(asked, host=able)).oom_score_adj == -997


def test_mounts_asked_for_replace_ours(request_: ContainerSpecRequest, tmp_path: Path) -> None:
    for name in ("hosts", "resolv.conf"):
        (tmp_path / name).write_text("")
    asked = replace(
        request_,
        pod=replace(POD, files=tmp_path, shm=tmp_path),
        mounts=(
            Mount(container_path="/a/b/c", host_path=str(tmp_path), readonly=True),
            Mount(container_path="etc/hosts/", host_path=str(tmp_path / "hosts")),
            Mount(container_path="/dev", host_path="/dev"),
        ),
        volumes=(Mount(container_path="/a/b/c", host_path="/tmp"), Mount(container_path="/v", host_path="/tmp")),
    )
    mounts = container_spec(asked).mounts
    places = [mount.destination for mount in mounts]
    assert places == [
        "/proc",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/v",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/dev/shm",
        "/a/b/c",
    ]
    assert mounts[-1].options == ("rbind", "rprivate", "ro")
    assert mounts[-1].source == str(tmp_path)


def test_missing_host_path_becomes_a_folder_and_links_are_followed(
    request_: ContainerSpecRequest, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    asked = replace(request_, mounts=(Mount(container_path="/m", host_path=str(tmp_path / "link/deep")),))
    assert container_spec(asked).mounts[-1].source == str(tmp_path / "real/deep")
    assert (tmp_path / "real/deep").is_dir()


def test_recursive_read_only_needs_the_runtime(request_: ContainerSpecRequest, tmp_path: Path) -> None:
    mount = Mount(container_path="/m", host_path=str(tmp_path), readonly=True, recursive_read_only=True)
    asked = replace(request_, mounts=(mount,))
    assert "rro" in container_spec(asked).mounts[-1].options
    with pytest.raises(errors.FailedPrecondition):
        container_spec(replace(asked, runtime=replace(asked.runtime, recursive_read_only=False)))
    shared = Mount(
        container_path="/m",
        host_path=str(tmp_path),
        readonly=True,
        recursive_read_only=True,
        propagation=MountPropagation.BIDIRECTIONAL,
    )
    with pytest.raises(errors.InvalidArgument):
        container_spec(replace(asked, mounts=(shared,)))


def test_namespaces_are_the_pods(request_: ContainerSpecRequest) -> None:
    found = {entry.type: entry.path for entry in linux(request_).namespaces}
    assert found == {
        "mount": "", "pid": "", "ipc": "/proc/9/ns/ipc", "network": "/proc/9/ns/net", "uts": "/proc/9/ns/uts",
    }  # fmt: skip
    host = NamespaceOption(network=NamespaceMode.NODE, pid=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    shared = replace(secured(request_, namespace_options=host), pod=PodContext(hostname="h"))
    assert [entry.type for entry in linux(shared).namespaces] == ["mount"]
    target = NamespaceOption(pid=NamespaceMode.TARGET)
    joined = replace(secured(request_, namespace_options=target), target_pid_namespace=Path("/proc/7/ns/pid"))
    assert spec.Namespace(type="pid", path="/proc/7/ns/pid") in linux(joined).namespaces


def test_unified_layout_gets_a_cgroup_namespace(request_: ContainerSpecRequest) -> None:
    hierarchies = replace(request_.host.hierarchies, layout=Layout.V2, unified=Path("/none"), v1={})
    unified = replace(request_, host=replace(request_.host, hierarchies=hierarchies))
    assert spec.Namespace(type="cgroup") in linux(unified).namespaces
    assert spec.Namespace(type="cgroup") not in linux(request_).namespaces
    with pytest.raises(errors.FailedPrecondition, match="unified"):
        container_spec(replace(request_, resources=LinuxContainerResources(unified={"memory.high": "1"})))


def test_user_namespace_is_joined_with_its_mappings(request_: ContainerSpecRequest) -> None:
    users = UserNamespace(uids=(IDMapping(host_id=5000, length=9),), gids=(IDMapping(host_id=6000, length=9),))
    pod = replace(POD, user_namespace=Path("/proc/9/ns/user"), userns_options=users)
    asked = replace(
        secured(request_, namespace_options=NamespaceOption(pid=NamespaceMode.CONTAINER, userns_options=users)), pod=pod
    )
    built = linux(asked)
    assert built.uid_mappings == (spec.IDMapping(containerID=0, hostID=5000, size=9),)
    assert spec.Namespace(type="user", path="/proc/9/ns/user") in built.namespaces


@pytest.mark.parametrize("length", [5, 6])
def test_terminals_have_their_group_where_the_users_have_it(request_: ContainerSpecRequest, length: int) -> None:
    users = UserNamespace(uids=(IDMapping(length=9),), gids=(IDMapping(host_id=6000, length=length),))
    pod = replace(POD, user_namespace=Path("/proc/9/ns/user"), userns_options=users)
    asked = NamespaceOption(pid=NamespaceMode.CONTAINER, userns_options=users)
    built = container_spec(replace(secured(request_, namespace_options=asked), pod=pod))
    pts = next(mount for mount in built.mounts if mount.destination == "/dev/pts")
    assert ("gid=5" in pts.options) == (length == 6)


def test_privileged_container_is_unconfined(request_: ContainerSpecRequest) -> None:
    asked = replace(
        secured(request_, privileged=True, seccomp=SecurityProfile(), masked_paths=("/proc/kcore",)),
        pod=replace(POD, privileged=True),
    )
    built = container_spec(asked)
    assert built.linux is not None
    assert (built.linux.seccomp, built.linux.masked_paths) == (None, ())
    assert built.linux.resources is not None
    assert built.linux.resources.devices == (spec.DeviceRule(allow=True, access="rwm"),)
    assert "/dev/null" in {device.path for device in built.linux.devices}
    assert "rw" in next(mount for mount in built.mounts if mount.destination == "/sys").options


def test_device_rules_follow_a_denial_of_all(request_: ContainerSpecRequest) -> None:
    asked = replace(request_, devices=(Device(host_path="/dev/zero", container_path="/dev/z", permissions="r"),))
    built = linux(asked)
    assert built.resources is not None
    assert built.resources.devices == (
        spec.DeviceRule(allow=False, access="rwm"),
        spec.DeviceRule(allow=True, type="c", major=1, minor=5, access="r"),
    )
    assert [(device.path, device.major, device.minor) for device in built.devices] == [("/dev/z", 1, 5)]


def test_compiled_filter_goes_only_to_a_runtime_that_takes_it(request_: ContainerSpecRequest) -> None:
    asked = secured(request_, seccomp=SecurityProfile())
    assert bpf.ANNOTATION not in container_spec(asked).annotations
    able = container_spec(replace(asked, runtime=replace(asked.runtime, seccomp_bpf=True)))
    assert able.linux is not None
    assert able.linux.seccomp is not None  # the profile stays beside its compiled form


def test_pause_container_makes_the_pods_namespaces(request_: ContainerSpecRequest, tmp_path: Path) -> None:
    asked = PauseSpecRequest(
        id="p1",
        image=ImageDefaults(entrypoint=("/pause",)),
        pod=PodContext(hostname="h", network_namespace=Path("/run/netns/x"), shm=tmp_path, files=tmp_path),
        host=request_.host,
        runtime=request_.runtime,
        rootfs_layers=(tmp_path,),
        cgroups_path="/pod/p1",
        namespaces=NamespaceOption(),
        sysctls={"net.core.somaxconn": "99"},
    )
    built = pause_spec(asked)
    assert built.linux is not None
    assert built.process is not None
    assert built.root is not None
    assert {entry.type: entry.path for entry in built.linux.namespaces} == {
        "mount": "", "pid": "", "ipc": "", "network": "/run/netns/x", "uts": "",
    }  # fmt: skip
    assert built.linux.sysctl["net.core.somaxconn"] == "99"
    assert built.linux.sysctl["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert built.process.no_new_privileges
    assert built.root.readonly
    assert {"/dev/shm", "/etc/resolv.conf"} <= {mount.destination for mount in built.mounts}
    with pytest.raises(errors.InvalidArgument, match="would change the host"):
        pause_spec(replace(asked, sysctls={"kernel.pid_max": "99"}))


def test_spec_survives_its_json_and_foreign_parts_stay() -> None:
    built = spec.Spec(oci_version="1.0.2", process=spec.Process(args=("a",), cwd="/", user=spec.User(uid=1)))
    assert spec.decode(spec.encode(built)) == built
    foreign = b'{"ociVersion":"9","vm":{"x":  [1]},"process":{"args":["old"],"new":1}}'
    rewritten = spec.rewrite(foreign, process=spec.Process(args=("new",), cwd="/"))
    assert b'"vm":{"x":  [1]}' in rewritten
    assert spec.decode(rewritten).process == spec.Process(args=("new",), cwd="/")
    with pytest.raises(errors.InvalidArgument):
        spec.decode(b'{"process":{"args":"text"}}')


@pytest.mark.parametrize("folder", ["/proc", "/", "/usr"])
def test_a_folder_of_devices_is_below_dev(folder: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="outside /dev"):
        devices.resolve((Device(host_path=folder, permissions="r"),), all_devices=False)


def test_without_paths_to_hide_the_usual_ones_are_hidden_but_from_a_root_that_is_not_the_hosts(
    request_: ContainerSpecRequest,
) -> None:
    def hidden(request: ContainerSpecRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        linux = container_spec(request).linux
        assert linux is not None
        return linux.masked_paths, linux.readonly_paths

    assert hidden(request_) == (MASKED_PATHS, READONLY_PATHS)
    own = secured(request_, masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",))
    assert hidden(own) == (("/proc/kcore",), ("/proc/sys",))
    pod = replace(request_.pod, privileged=True)
    assert hidden(replace(secured(request_, privileged=True), pod=pod)) == ((), ())
