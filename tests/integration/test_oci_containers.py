"""The spec builder and the runtime driver on the real kernel, with every OCI runtime that works on this host."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.hardening import MASKED_PATHS, READONLY_PATHS
from atoll.linux import cgroup_layout, syscalls
from atoll.linux.cgroup import Cgroup
from atoll.linux.process import PidfdSpawner
from atoll.oci import spec
from atoll.oci.builder import (
    ImageDefaults,
    PauseSpecRequest,
    container_spec,
    pause_spec,
)
from atoll.oci.config import (
    Capability,
    Device,
    Int64Value,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
    MountPropagation,
    NamespaceOption,
    ProfileType,
    SecurityProfile,
)
from atoll.oci.detect import probe
from atoll.oci.failures import RuntimeFailed, StartFailed
from atoll.oci.runtime import CheckpointOptions, OCIRuntime, Stdio
from tests.integration.conftest import Roots
from tests.integration.oci_containers import OWN_PID, Holder, Workshop, lines, reap

DEFAULT = SecurityProfile(profile_type=ProfileType.RUNTIME_DEFAULT)


@pytest.fixture(params=["runc", "crun"])
async def workshop(request: pytest.FixtureRequest, roots: Roots) -> AsyncIterator[Workshop]:
    binary = Path("/usr/bin", request.param)
    if not binary.exists():
        binary = Path("/usr/sbin", request.param)
    report = await probe(binary, PidfdSpawner(), folder=roots.base)
    if not report.works:
        pytest.skip(f"needs a working {request.param}: {report.reason}")
    runtime = OCIRuntime(binary, roots.state / "oci", PidfdSpawner())
    holder = Holder.start()
    syscalls.set_child_subreaper(True)
    made = Workshop(
        base=roots.base, prefix=roots.prefix, runtime=runtime, features=await runtime.features(), holder=holder
    )
    made.make_rootfs()
    try:
        yield made
    finally:
        syscalls.set_child_subreaper(False)
        holder.stop()
        Cgroup(f"/{roots.prefix}", cgroup_layout.detect()).delete()


async def test_container_runs_in_its_pod(workshop: Workshop) -> None:
    script = "echo $HOSTNAME $PATH; for n in net ipc uts; do ls -l /proc/self/ns/$n | grep -o '[a-z]*:.[0-9]*.$'; done"
    script += "; pwd"
    request = workshop.request("sh", "-c", script, working_dir="/tmp")
    status, output = await workshop.run(request.id, container_spec(request))
    pod = [os.readlink(workshop.holder.namespace(kind)) for kind in ("net", "ipc", "uts")]
    assert status == 0
    first, *namespaces, folder = output.splitlines()
    assert first.split() == ["pod-1", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert namespaces == pod
    assert folder == "/tmp"


async def test_exit_code_and_signal_are_the_processes_own(workshop: Workshop) -> None:
    request = workshop.request("sh", "-c", "exit 7")
    assert (await workshop.run(request.id, container_spec(request)))[0] == 7
    request = workshop.request(
        "sh",
        "-c",
        "kill -9 $$",
        security=LinuxContainerSecurityContext(),
        pod=replace(workshop.pod, pid_namespace=Path("/proc/self/ns/pid")),
    )
    assert (await workshop.run(request.id, container_spec(request)))[0] == 128 + signal.SIGKILL


async def test_user_groups_and_capabilities_are_as_asked(workshop: Workshop) -> None:
    security = LinuxContainerSecurityContext(
        namespace_options=OWN_PID,
        run_as_username="web",
        supplemental_groups=(7,),
        capabilities=Capability(add_capabilities=("NET_ADMIN",), drop_capabilities=("ALL",)),
        no_new_privs=True,
    )
    request = workshop.request("cat", "/proc/self/status", security=security)
    status, output = await workshop.run(request.id, container_spec(request))
    told = lines(output)
    assert status == 0
    assert told["Uid"].split() == ["33"] * 4
    assert told["Gid"].split() == ["33"] * 4
    assert sorted(map(int, told["Groups"].split())) == [7, 33, 44]
    assert int(told["CapBnd"], 16) == 1 << 12  # CAP_NET_ADMIN
    assert int(told["CapEff"], 16) == 0  # it is no longer root when it executes
    assert told["NoNewPrivs"] == "1"


async def test_ambient_capability_reaches_a_user(workshop: Workshop) -> None:
    security = LinuxContainerSecurityContext(
        namespace_options=OWN_PID,
        run_as_user=Int64Value(value=1000),
        capabilities=Capability(add_ambient_capabilities=("NET_BIND_SERVICE",)),
    )
    request = workshop.request("cat", "/proc/self/status", security=security)
    _, output = await workshop.run(request.id, container_spec(request))
    assert int(lines(output)["CapEff"], 16) == 1 << 10


async def test_default_filter_is_on_and_refuses_namespaces(workshop: Workshop) -> None:
    security = LinuxContainerSecurityContext(namespace_options=OWN_PID, seccomp=DEFAULT)
    request = workshop.request("sh", "-c", "cat /proc/self/status; unshare -m true; echo $?", security=security)
    status, output = await workshop.run(request.id, container_spec(request))
    assert status == 0
    assert lines(output)["Seccomp"] == "2"
    assert "unshare" in output
    assert output.splitlines()[-1] == "1"


async def test_unconfined_has_no_filter(workshop: Workshop) -> None:
    request = workshop.request("cat", "/proc/self/status")
    _, output = await workshop.run(request.id, container_spec(request))
    assert lines(output)["Seccomp"] == "0"


async def test_profile_file_is_obeyed(workshop: Workshop) -> None:
    profile = workshop.base / "no-mkdir.json"
    rule = '{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}'
    profile.write_text('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[' + rule + "]}")
    chosen = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=str(profile))
    security = LinuxContainerSecurityContext(namespace_options=OWN_PID, seccomp=chosen)
    request = workshop.request("busybox", "mkdir", "/tmp/x", security=security)
    status, output = await workshop.run(request.id, container_spec(request))
    assert status == 1
    assert "No space left" in output


async def test_paths_are_masked_and_read_only(workshop: Workshop) -> None:
    security = LinuxContainerSecurityContext(
        namespace_options=OWN_PID,
        readonly_rootfs=True,
        masked_paths=(*MASKED_PATHS, "/etc/passwd"),
        readonly_paths=READONLY_PATHS,
    )
    script = "cat /etc/passwd | wc -c; echo 1 > /proc/sys/kernel/domainname; echo $?; echo > /x; echo $?"
    request = workshop.request("sh", "-c", script, security=security)
    _, output = await workshop.run(request.id, container_spec(request))
    size, *rest = output.splitlines()
    assert size == "0"
    assert [line for line in rest if line.isdecimal()] == ["1", "1"]


async def test_mounts_are_made_in_order_with_their_modes(workshop: Workshop) -> None:
    outer, inner = workshop.base / "outer", workshop.base / "inner"
    for folder in (outer, inner):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    mounts = (
        Mount(container_path="/data/deep", host_path=str(inner), readonly=True),
        Mount(container_path="/data", host_path=str(outer)),
        Mount(container_path="/made", host_path=str(workshop.base / "made/by/us")),
    )
    script = "cat /data/name /data/deep/name; echo w > /data/new && echo ok; echo w > /data/deep/new || echo refused"
    script += "; ls -d /made"
    request = workshop.request("sh", "-c", script, mounts=mounts)
    _, output = await workshop.run(request.id, container_spec(request))
    assert output.startswith("outerinnerok\n")
    assert "refused" in output
    assert output.endswith("/made\n")
    assert (outer / "new").read_text() == "w\n"
    assert not (inner / "new").exists()


async def test_pod_files_are_there(workshop: Workshop) -> None:
    files = workshop.base / "pod"
    files.mkdir()
    for name in ("hostname", "hosts", "resolv.conf"):
        (files / name).write_text(f"{name}\n")
    request = workshop.request(
        "cat", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", pod=replace(workshop.pod, files=files)
    )
    _, output = await workshop.run(request.id, container_spec(request))
    assert output == "hostname\nhosts\nresolv.conf\n"


async def test_bidirectional_mount_reaches_the_host(workshop: Workshop) -> None:
    source = workshop.base / "shared"
    source.mkdir()
    syscalls.mount(source, source, None, syscalls.MS_BIND)
    try:
        mount = Mount(container_path="/s", host_path=str(source), propagation=MountPropagation.BIDIRECTIONAL)
        request = workshop.request("true", mounts=(mount,))
        syscalls.mount(None, source, None, syscalls.MS_PRIVATE)
        with pytest.raises(errors.FailedPrecondition, match="make-rshared"):
            container_spec(request)
        syscalls.mount(None, source, None, syscalls.MS_SHARED)
        security = LinuxContainerSecurityContext(namespace_options=OWN_PID, privileged=True)
        script = "busybox mkdir /s/m && mount -t tmpfs seen /s/m && echo mounted"
        request = workshop.request(
            "sh", "-c", script, mounts=(mount,), security=security, pod=replace(workshop.pod, privileged=True)
        )
        status, output = await workshop.run(request.id, container_spec(request))
        assert (status, output) == (0, "mounted\n")
        assert any(line.split()[4] == f"{source}/m" for line in Path("/proc/self/mountinfo").read_text().splitlines())
        syscalls.umount2(source / "m", syscalls.MNT_DETACH)
    finally:
        syscalls.umount2(source, syscalls.MNT_DETACH)


async def test_limits_are_set_in_the_cgroup(workshop: Workshop) -> None:
    limits = LinuxContainerResources(
        cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=64 << 20, oom_score_adj=500
    )
    request = workshop.request("sleep", "60", resources=limits)
    pid = await workshop.create(request.id, container_spec(request))
    await workshop.runtime.start(request.id)
    group = Cgroup(request.cgroups_path, workshop.host.hierarchies)
    memory = group.folder("memory")
    assert memory is not None
    name = "memory.max" if group.is_v2 else "memory.limit_in_bytes"
    assert int((memory / name).read_text()) == 64 << 20
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert pid in group.processes()
    await workshop.runtime.update(request.id, spec.Resources(memory=spec.Memory(limit=96 << 20, swap=96 << 20)))
    assert int((memory / name).read_text()) == 96 << 20
    group.kill()
    assert reap(pid) == 137
    await workshop.runtime.delete(request.id)
    assert not group.exists()


async def test_privileged_container_sees_the_devices(workshop: Workshop) -> None:
    security = LinuxContainerSecurityContext(namespace_options=OWN_PID, privileged=True)
    script = "ls /dev/loop-control /dev/kmsg; cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted"
    request = workshop.request("sh", "-c", script, security=security, pod=replace(workshop.pod, privileged=True))
    built = container_spec(request)
    _, output = await workshop.run(request.id, built)
    assert "/dev/kmsg" in output
    assert output.endswith("mounted\n")
    assert built.process is not None
    assert built.process.capabilities is not None
    assert set(built.process.capabilities.bounding) == workshop.host.capabilities


async def test_device_is_there_with_its_permissions(workshop: Workshop) -> None:
    device = Device(host_path="/dev/zero", container_path="/dev/nothing", permissions="r")
    script = "busybox head -c 3 /dev/nothing | wc -c; echo x > /dev/nothing || echo refused"
    request = workshop.request("sh", "-c", script, devices=(device,))
    _, output = await workshop.run(request.id, container_spec(request))
    assert output.startswith("3\n")


async def test_environment_is_image_then_request(workshop: Workshop) -> None:
    image = ImageDefaults(env=("A=image", "B=image", "PATH=/bin"), entrypoint=("env",))
    env = (KeyValue(key="B", value=b"request"), KeyValue(key="C", value="gr\u00fcn".encode()))
    request = workshop.request(image=image, env=env)
    _, output = await workshop.run(request.id, container_spec(request))
    told = dict(line.split("=", 1) for line in output.splitlines())
    assert {key: told[key] for key in ("A", "B", "C", "PATH")} == {
        "A": "image",
        "B": "request",
        "C": "gr\u00fcn",
        "PATH": "/bin",
    }


async def test_exec_joins_the_container(workshop: Workshop) -> None:
    request = workshop.request("sleep", "60")
    built = container_spec(request)
    pid = await workshop.create(request.id, built)
    await workshop.runtime.start(request.id)
    assert built.process is not None
    process = spec.Process(args=("id", "-u"), cwd="/", env=built.process.env, user=spec.User(uid=33, gid=33))
    with (workshop.base / "exec.out").open("w+b") as output:
        executed = await workshop.runtime.exec(
            request.id, process, pid_file=workshop.base / "exec.pid", stdio=Stdio(stdout=output.fileno())
        )
        assert reap(executed) == 0
        output.seek(0)
        assert output.read() == b"33\n"
    with pytest.raises(StartFailed, match="no-such-program"):
        await workshop.runtime.exec(
            request.id,
            spec.Process(args=("no-such-program",), cwd="/", env=built.process.env),
            pid_file=workshop.base / "exec.pid",
        )
    # A process that failed in the container's pid namespace is our child now, and keeps its init from ending.
    workshop.reap_strays(keep=pid)
    assert pid in await workshop.runtime.ps(request.id)
    await workshop.runtime.kill(request.id, signal.SIGKILL)
    assert reap(pid) == 137
    await workshop.runtime.delete(request.id)


async def test_pause_stops_the_clock_of_the_container(workshop: Workshop) -> None:
    request = workshop.request("sleep", "60")
    pid = await workshop.create(request.id, container_spec(request))
    await workshop.runtime.start(request.id)
    await workshop.runtime.pause(request.id)
    assert (await workshop.runtime.state(request.id)).status == "paused"
    await workshop.runtime.resume(request.id)
    assert (await workshop.runtime.state(request.id)).status == "running"
    await workshop.runtime.delete(request.id, force=True)
    assert reap(pid) == 137


async def test_missing_command_is_a_start_failure_that_leaves_nothing(workshop: Workshop) -> None:
    request = workshop.request("/no/such/program")
    with pytest.raises(StartFailed, match="/no/such/program"):
        await workshop.create(request.id, container_spec(request))
    with pytest.raises(errors.NotFound):
        await workshop.runtime.state(request.id)
    assert not Cgroup(request.cgroups_path, workshop.host.hierarchies).exists()


async def test_errors_have_their_kinds(workshop: Workshop) -> None:
    runtime = workshop.runtime
    for call in (runtime.start("gone"), runtime.state("gone"), runtime.kill("gone", 9), runtime.delete("gone")):
        with pytest.raises(errors.NotFound, match="gone"):
            await call
    await runtime.delete("gone", force=True)
    with pytest.raises(errors.InvalidArgument):
        await runtime.state("../../etc")
    request = workshop.request("sleep", "60")
    built = container_spec(request)
    pid = await workshop.create(request.id, built)
    with pytest.raises(errors.AlreadyExists):
        await runtime.create(request.id, workshop.base / request.id, pid_file=workshop.base / "second.pid")
    await runtime.start(request.id)
    with pytest.raises(errors.FailedPrecondition):
        await runtime.start(request.id)
    with pytest.raises(errors.FailedPrecondition):
        await runtime.delete(request.id)
    await runtime.delete(request.id, force=True)
    assert reap(pid) == 137


async def test_start_meets_the_waiting_process_itself(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[str] = []
    call = OCIRuntime._call

    async def seen(runtime: OCIRuntime, operation: str, *arguments: Any, **options: Any) -> bytes:
        programs.append(operation)
        return await call(runtime, operation, *arguments, **options)

    monkeypatch.setattr(OCIRuntime, "_call", seen)
    runtime = workshop.runtime
    request = workshop.request("sleep", "60")
    pid = await workshop.create(request.id, container_spec(request))
    assert (await runtime.state(request.id)).status == "created"
    await runtime.start(request.id, has_hooks=False)
    assert "start" not in programs
    assert (await runtime.state(request.id)).status == "running"
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0060\x00"
    with pytest.raises(errors.FailedPrecondition):  # the program is asked, for nothing waits any more
        await runtime.start(request.id, has_hooks=False)
    await runtime.delete(request.id, force=True)
    assert reap(pid) == 137

    dead = workshop.request("sleep", "60")
    pid = await workshop.create(dead.id, container_spec(dead))
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == 137
    with pytest.raises(errors.AtollError):
        await runtime.start(dead.id, has_hooks=False)
    await runtime.delete(dead.id, force=True)


async def test_cancelled_create_leaves_nothing(workshop: Workshop) -> None:
    cancelled = 0
    for delay_s in (0.001, 0.004, 0.008, 0.016):
        request = workshop.request("sleep", "60")
        try:
            async with asyncio.timeout(delay_s):
                await workshop.create(request.id, container_spec(request))
        except TimeoutError:
            cancelled += 1
        else:
            await workshop.runtime.delete(request.id, force=True)
        with pytest.raises(errors.NotFound):
            await workshop.runtime.state(request.id)
        workshop.reap_strays()
        assert not Cgroup(request.cgroups_path, workshop.host.hierarchies).processes()
    assert cancelled


async def test_checkpoint_can_be_restored(workshop: Workshop) -> None:
    options = CheckpointOptions(image=workshop.base / "image", work=workshop.base / "work")
    options.image.mkdir()
    options.work.mkdir()
    if not workshop.features.checkpoint:
        with pytest.raises(errors.Unimplemented, match="without checkpoints"):
            await workshop.runtime.checkpoint("any", options)
        return
    request = workshop.request("sleep", "60")
    pid = await workshop.create(request.id, container_spec(request))
    await workshop.runtime.start(request.id)
    try:
        await workshop.runtime.checkpoint(request.id, options)
    except RuntimeFailed as error:
        if "criu failed" not in error.message:
            raise
        # CRIU says what it misses in its log; the container must not have suffered.
        assert (await workshop.runtime.state(request.id)).status == "running"
        await workshop.runtime.delete(request.id, force=True)
        assert reap(pid) == 137
        workshop.reap_strays()
        pytest.skip("needs the kernel's checkpoint support for CRIU: this host has none")
    reap(pid)
    await workshop.runtime.delete(request.id, force=True)
    bundle = workshop.base / request.id
    restored = await workshop.runtime.restore(request.id, bundle, options, pid_file=bundle / "pid")
    assert (await workshop.runtime.state(request.id)).status == "running"
    await workshop.runtime.delete(request.id, force=True)
    assert reap(restored) == 137


async def test_pause_container_runs(workshop: Workshop) -> None:
    request = PauseSpecRequest(
        id=f"{workshop.prefix}-pause",
        image=ImageDefaults(entrypoint=("cat", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ping_group_range")),
        pod=replace(workshop.pod, ipc_namespace=None, uts_namespace=None, hostname="sandbox-1"),
        host=workshop.host,
        runtime=workshop.features,
        rootfs_layers=(workshop.base / "rootfs",),
        rootfs=str(workshop.base / "rootfs"),
        cgroups_path=f"/{workshop.prefix}/pause",
        namespaces=NamespaceOption(),
    )
    status, output = await workshop.run(request.id, pause_spec(request))
    assert status == 0
    assert output.split() == ["sandbox-1", "0", "2147483647"]


async def test_missing_runtime_says_what_to_do(roots: Roots) -> None:
    runtime = OCIRuntime(roots.base / "no-runtime", roots.state / "oci", PidfdSpawner())
    with pytest.raises(errors.FailedPrecondition, match=r"no-runtime.*install"):
        await runtime.state("any")
