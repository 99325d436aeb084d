"""Finding a runtime that works, and the compiled filter against the runtime's own, on the real programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from atoll import errors
from atoll.linux import cgroup_layout, syscalls
from atoll.linux.cgroup import Cgroup
from atoll.linux.host import read_host_facts
from atoll.linux.process import PidfdSpawner
from atoll.oci import bpf, detect, seccomp
from atoll.oci.builder import container_spec
from atoll.oci.capabilities import DEFAULT
from atoll.oci.config import LinuxContainerSecurityContext, ProfileType, SecurityProfile
from atoll.oci.runtime import OCIRuntime
from tests.integration.conftest import Roots
from tests.integration.oci_containers import OWN_PID, Holder, Workshop, lines


def test_runtime_is_found_by_name_and_by_path() -> None:
    found = detect.find("runc")
    assert found is not None
    assert detect.find(str(found)) == found
    assert detect.find("no-such-runtime") is None


async def test_runc_works_and_leaves_nothing(roots: Roots) -> None:
    binary = detect.find("runc")
    assert binary is not None
    report = await detect.probe(binary, PidfdSpawner(), folder=roots.base)
    assert (report.works, report.reason) == (True, "")
    assert report.version
    assert not [name for name in os.listdir(roots.base) if name.startswith("atoll-probe")]


async def test_answer_is_kept_until_the_program_changes(roots: Roots) -> None:
    binary, cache = roots.base / "runtime", roots.base / "runtimes.json"
    binary.write_text(f"#!/bin/sh\necho ran >> {roots.base}/log\nexit 1\n")
    binary.chmod(0o755)
    first = await detect.probe(binary, PidfdSpawner(), cache=cache, folder=roots.base)
    ran = (roots.base / "log").read_text()
    assert not first.works
    assert await detect.probe(binary, PidfdSpawner(), cache=cache, folder=roots.base) == first
    assert (roots.base / "log").read_text() == ran
    os.utime(binary, ns=(1, 1))
    await detect.probe(binary, PidfdSpawner(), cache=cache, folder=roots.base)
    assert (roots.base / "log").read_text() != ran
    cache.write_text("{ torn")
    assert await detect.probe(binary, PidfdSpawner(), cache=cache, folder=roots.base)


async def test_every_reason_is_told_where_none_works(roots: Roots) -> None:
    broken = roots.base / "broken"
    broken.write_text("#!/bin/sh\necho it broke >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(errors.FailedPrecondition, match=r"(?s)no-such-runtime: is not installed.*it broke"):
        await detect.choose(["no-such-runtime", str(broken)], PidfdSpawner(), cache=roots.base / "cache")


async def test_refusal_of_a_hybrid_layout_is_explained(roots: Roots) -> None:
    # The words of crun 1.8 where a controller is left in the version 2 hierarchy.
    refusing = roots.base / "crun"
    message = "cgroups in hybrid mode not supported, drop all controllers from cgroupv2"
    refusing.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    refusing.chmod(0o755)
    report = await detect.probe(refusing, PidfdSpawner(), folder=roots.base)
    assert not report.works
    assert "systemd.unified_cgroup_hierarchy=1" in report.reason


async def test_working_runtime_is_chosen_after_a_missing_one(roots: Roots) -> None:
    chosen, reports = await detect.choose(["no-such", "runc"], PidfdSpawner(), cache=roots.base / "cache")
    assert chosen == detect.find("runc")
    assert [report.works for report in reports] == [False, True]


async def test_compiled_filter_is_what_crun_compiles(roots: Roots) -> None:
    binary = Path(shutil.which("crun") or "crun")
    report = await detect.probe(binary, PidfdSpawner(), folder=roots.base)
    if not report.works:
        pytest.skip(f"needs a working crun: {report.reason}")
    runtime = OCIRuntime(binary, roots.state / "oci", PidfdSpawner())
    holder = Holder.start()
    workshop = Workshop(
        base=roots.base, prefix=roots.prefix, runtime=runtime, features=await runtime.features(), holder=holder
    )
    workshop.make_rootfs()
    security = LinuxContainerSecurityContext(
        namespace_options=OWN_PID, seccomp=SecurityProfile(profile_type=ProfileType.RUNTIME_DEFAULT)
    )
    request = workshop.request("sleep", "60", security=security)
    built = container_spec(request)
    assert bpf.ANNOTATION in built.annotations
    try:
        await workshop.create(request.id, msgspec.structs.replace(built, annotations={}))
        own = (roots.state / "oci" / request.id / "seccomp.bpf").read_bytes()
        host = read_host_facts()
        assert bpf.compile_filter(seccomp.default_profile(DEFAULT, host.machine, host.kernel)) == own
        await runtime.delete(request.id, force=True)
    finally:
        holder.stop()
        Cgroup(f"/{roots.prefix}", cgroup_layout.detect()).delete()


async def test_compiled_filter_is_in_force(roots: Roots) -> None:
    binary = Path(shutil.which("crun") or "crun")
    report = await detect.probe(binary, PidfdSpawner(), folder=roots.base)
    if not report.works:
        pytest.skip(f"needs a working crun: {report.reason}")
    runtime = OCIRuntime(binary, roots.state / "oci", PidfdSpawner())
    holder = Holder.start()
    syscalls.set_child_subreaper(True)
    workshop = Workshop(
        base=roots.base, prefix=roots.prefix, runtime=runtime, features=await runtime.features(), holder=holder
    )
    workshop.make_rootfs()
    denied = roots.base / "denied.json"
    denied.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}'
    )
    profile = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=str(denied))
    request = workshop.request(
        "sh",
        "-c",
        "cat /proc/self/status; busybox mkdir /tmp/x",
        security=LinuxContainerSecurityContext(namespace_options=OWN_PID, seccomp=profile),
    )
    built = container_spec(request)
    assert built.linux is not None
    # Only the annotation is left: what refuses the call is the compiled filter.
    alone = msgspec.structs.replace(built, linux=msgspec.structs.replace(built.linux, seccomp=None))
    try:
        status, output = await workshop.run(request.id, alone)
        assert (status, lines(output)["Seccomp"]) == (1, "2")
        assert "No space left" in output
    finally:
        syscalls.set_child_subreaper(False)
        holder.stop()
        Cgroup(f"/{roots.prefix}", cgroup_layout.detect()).delete()
