"""What a pod may ask for, and the files it gets."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.linux import steps as linux_steps
from atoll.oci.config import IDMapping, LinuxContainerResources, NamespaceMode, NamespaceOption, UserNamespace
from atoll.sandbox.config import DNSConfig, LinuxPodConfig, LinuxSandboxSecurityContext, PodConfig
from atoll.shim import pod_cgroup, pod_files, pod_holder, pod_sysctls
from atoll.shim.pod_namespaces import PodNamespaces


def pod(
    hostname: str = "",
    network: NamespaceMode = NamespaceMode.POD,
    ipc: NamespaceMode = NamespaceMode.POD,
    pid: NamespaceMode = NamespaceMode.POD,
    userns_options: UserNamespace | None = None,
) -> PodConfig:
    options = NamespaceOption(network=network, ipc=ipc, pid=pid, userns_options=userns_options)
    context = LinuxSandboxSecurityContext(namespace_options=options)
    return PodConfig(hostname=hostname, linux=LinuxPodConfig(security_context=context))


def test_a_pod_has_its_own_namespaces_unless_it_says_otherwise() -> None:
    PodNamespaces.of(PodConfig(), "/proc/self/ns/net").require_network()
    for wrong in ("/nosuch", "/etc/passwd", "/proc/self/ns/mnt"):
        with pytest.raises(errors.InvalidArgument, match=wrong):
            PodNamespaces.of(PodConfig(), wrong).require_network()
    spaces = PodNamespaces.of(PodConfig(), "/run/netns/a")
    assert (spaces.network, spaces.uts, spaces.ipc, spaces.pid) == (True, True, True, True)
    spaces = PodNamespaces.of(pod(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER), "")
    assert (spaces.network, spaces.uts, spaces.ipc, spaces.pid) == (False, False, True, False)


@pytest.mark.parametrize(
    ("config", "netns", "text"),
    [
        (PodConfig(), "", "no path"),
        (pod(network=NamespaceMode.NODE), "/run/netns/a", "host's network"),
        (pod("other", network=NamespaceMode.NODE), "", "hostname"),
        (pod(network=NamespaceMode.CONTAINER), "/n", "network namespace mode"),
        (pod(ipc=NamespaceMode.TARGET), "/n", "ipc namespace mode"),
        (pod(pid=NamespaceMode.TARGET), "/n", "pid namespace mode"),
        (pod("x" * 65), "/n", "longer"),
    ],
)
def test_what_cannot_be_is_refused(config: PodConfig, netns: str, text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=text):
        PodNamespaces.of(config, netns)


RANGE = (IDMapping(host_id=1000, length=10),)


def users(mode: NamespaceMode = NamespaceMode.POD, **fields: object) -> PodConfig:
    asked = UserNamespace(mode=mode, **{"uids": RANGE, "gids": RANGE, **fields})
    return pod(userns_options=asked)


def test_a_user_namespace_is_the_pods() -> None:
    found = PodNamespaces.of(users(), "/n").users
    assert found is not None
    assert (found.root, found.nobody) == ((1000, 1000), (9, 9))
    assert PodNamespaces.of(users(NamespaceMode.NODE, uids=(), gids=()), "/n").users is None


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (users(NamespaceMode.NODE), "takes no mappings"),
        (users(NamespaceMode.CONTAINER), "must be POD or NODE"),
        (users(uids=()), "uids: needs 1 to 340 ranges"),
        (users(gids=(IDMapping(host_id=1, length=0),)), "gids: needs lengths"),
        (users(gids=(IDMapping(host_id=(1 << 32) - 1, length=9),)), "gids: needs lengths"),
        (users(gids=(*RANGE, *RANGE)), "gids: ranges overlap"),
        (users(gids=(IDMapping(host_id=1, container_id=1, length=9),)), "0 is not mapped"),
        (pod(userns_options=UserNamespace(uids=RANGE, gids=RANGE), pid=NamespaceMode.NODE), "host's pid"),
        (pod(userns_options=UserNamespace(uids=RANGE, gids=RANGE), ipc=NamespaceMode.NODE), "host's ipc"),
    ],
)
def test_a_user_namespace_that_cannot_be_is_refused(config: PodConfig, text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=text):
        PodNamespaces.of(config, "/n")


ALL = {"network": True, "ipc": True, "uts": True}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
        ("kernel.shmmax", "kernel.shmmax"),
        ("kernel.msgmax", "kernel.msgmax"),
        ("kernel.sem", "kernel.sem"),
        ("fs.mqueue.msg_max", "fs.mqueue.msg_max"),
        ("kernel.domainname", "kernel.domainname"),
    ],
)
def test_sysctls_of_namespaces(name: str, file: str) -> None:
    assert pod_sysctls.checked({name: "1"}, **ALL) == {file: "1"}


@pytest.mark.parametrize(
    "name",
    [
        "kernel.panic",
        "kernel.core_pattern",
        "vm.overcommit_memory",
        "kernel.shm/../panic",
        "net/../kernel/panic",
        "net..ipv4",
        "net.",
        "net.ipv4/../../../kernel.panic",
        "",
        "/net/ipv4/ip_forward",
        "kernel.hostname",
        "kernel.semx",
        "fs.mqueue",
    ],
)
def test_sysctls_of_the_host(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        pod_sysctls.checked({name: "1"}, **ALL)


@given(st.text(alphabet="net.ipv4/k_e0", max_size=30))
def test_a_sysctl_never_leaves_its_folder(name: str) -> None:
    try:
        (found,) = pod_sysctls.checked({name: "1"}, **ALL)
    except errors.InvalidArgument:
        return
    path = Path("/proc/sys", found.translate(str.maketrans("./", "/.")))
    assert ".." not in path.parts
    assert path.parts[:3] == ("/", "proc", "sys")


@pytest.mark.parametrize(
    ("name", "lacking"), [("net.ipv4.ip_forward", "network"), ("kernel.sem", "ipc"), ("kernel.domainname", "uts")]
)
def test_sysctls_need_their_namespace(name: str, lacking: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="namespace"):
        pod_sysctls.checked({name: "1"}, **{**ALL, lacking: False})


def test_sysctl_defaults_are_those_of_a_network_namespace() -> None:
    assert pod_sysctls.with_defaults({}, network=False) == {}
    mine = {"net.ipv4.ip_unprivileged_port_start": "1024"}
    assert pod_sysctls.with_defaults(mine, network=True) == {**mine, "net.ipv4.ping_group_range": "0 2147483647"}


def test_resolv_conf() -> None:
    dns = DNSConfig(servers=("10.0.0.1", "10.0.0.2"), searches=("a.b", "c"), options=("ndots:5",))
    expected = b"search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
    assert pod_files.resolv_conf(dns) == expected
    assert pod_files.resolv_conf(DNSConfig()) == b""


def test_pod_files_without_shm_come_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    pod_files.create(folder, PodConfig(hostname="h"), shm=False)
    pod_files.create(folder, PodConfig(hostname="h", dns_config=DNSConfig()), shm=False)
    assert sorted(path.name for path in folder.iterdir()) == ["hostname", "hosts", "resolv.conf"]
    assert (folder / "hostname").read_text() == "h\n"
    assert (folder / "resolv.conf").read_bytes() == b""
    assert (folder / "hosts").stat().st_mode & 0o777 == 0o644
    pod_files.remove(folder)
    pod_files.remove(folder)
    assert not folder.exists()


def test_pod_files_of_others_stay(tmp_path: Path) -> None:
    pod_files.create(tmp_path, PodConfig(), shm=False)
    (tmp_path / "mine").write_text("x")
    pod_files.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_pod_limits_are_the_sum_and_the_overhead() -> None:
    resources = LinuxContainerResources(cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=100)
    overhead = LinuxContainerResources(cpu_quota=10_000, memory_limit_in_bytes=20, cpu_shares=2)
    limits = pod_cgroup.limits(resources, overhead)
    assert (limits.cpu_quota_us, limits.cpu_period_us, limits.memory_bytes) == (60_000, 100_000, 120)
    assert limits.cpu_shares is None, "no sum, no limit"


def test_the_holder_is_an_executable_whose_list_is_where_the_code_looks() -> None:
    steps = (linux_steps.Step("a path", 2, (b"/x", 1)), linux_steps.Step("its end", 3, (0,)))
    program = linux_steps.program(steps, tell=9)
    assert program[:4] == b"\x7fELF"
    code = program[120:]
    at = 7 + int.from_bytes(code[3:7], "little")  # lea rbx, [rip+offset], whose end is at 7
    assert struct.unpack_from("<q", code, at - 8) == (9,)
    call, path, flags, *_ = struct.unpack_from("<6Q", code, at)
    assert (call, flags) == (2, 1)
    assert struct.unpack_from("<6Q", code, at + 48)[:2] == (3, 0)
    assert struct.unpack_from("<Q", code, at + 96) == (0xFFFFFFFFFFFFFFFF,)
    load_address = struct.unpack_from("<Q", program, 64 + 16)[0]
    assert program[path - load_address :].startswith(b"/x\0")


def test_a_holder_gives_everything_up_after_it_entered_its_namespaces() -> None:
    spaces = PodNamespaces(netns="/run/netns/x", uts=True, ipc=True, pid=True)
    steps = pod_holder.steps(spaces, "pod", {"net.a": "1"}, netns=5, root=6, leash=7)
    whats = list(dict.fromkeys(step.what for step in steps))
    assert whats == [
        "/run/netns/x",
        "its namespaces",
        "hostname 'pod'",
        "sysctl net.a=1",
        "pid namespace",
        "its root",
        "its session",
        "its credentials",
        "its signals",
        "its leash",
        "its descriptors",
    ]
    bare = PodNamespaces(netns="", uts=False, ipc=False, pid=False)
    assert pod_holder.steps(bare, "", {}, netns=None, root=6, leash=7)[0].what == "its root"
    assert pod_holder.steps(bare, "", {}, netns=None, root=None, leash=7)[0].what == "its root"
