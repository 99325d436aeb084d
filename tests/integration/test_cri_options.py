"""What a container may ask for, on real containers of both OCI runtimes: many options in few containers.

Each claim is a row: a script in the container, and what it must say. docs/cri.md has the fields by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.oci.security import relabel
from tests.integration.conftest import Roots
from tests.integration.cri_client import CRI, eventually, refused
from tests.integration.images import folder, image, layer, member, symlink, write_layout

CDI_FOLDERS = ("/run/atoll-test-cdi/low", "/run/atoll-test-cdi/high")
RUNTIMES = f"""
[cdi]
spec_dirs = {json.dumps(CDI_FOLDERS)}

[runtimes.atoll]
oci_runtime = "crun"
pod_annotations = ["of.pod/*"]
container_annotations = ["of.container"]

[runtimes.runc]
oci_runtime = "runc"

[runtimes.pause]
sandboxer = "podsandbox"
oci_runtime = "crun"

[runtimes.foreign]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"
"""
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
POD, CONTAINER, NODE, TARGET = pb.POD, pb.CONTAINER, pb.NODE, pb.TARGET
PRIVATE_PIDS = pb.NamespaceOption(pid=CONTAINER)
STATUS = "/proc/1/status"
SLEEP = ("/bin/sleep", "1000")

pytestmark = pytest.mark.shared_daemon(config=RUNTIMES)


@pytest.fixture(params=["atoll", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pod(cri: CRI, handler: str) -> str:
    return cri.run_pod(cri.pod_config(namespaces=PRIVATE_PIDS), handler)


def started(cri: CRI, pod: str, config: pb.ContainerConfig) -> str:
    made = cri.create(pod, config)
    cri.start(made)
    return made


def security(config: pb.ContainerConfig, **fields: object) -> pb.ContainerConfig:
    config.linux.security_context.CopyFrom(pb.LinuxContainerSecurityContext(**fields))  # pyright: ignore[reportArgumentType]
    return config


def require(cri: CRI, container: str, rows: dict[str, str]) -> None:
    """Each script's words, one after another, in one exec; the first that differs is named."""
    mark = "@@@"
    script = f"\necho {mark}\n".join(f"({row}) 2>&1" for row in rows)
    said = cri.sh(container, script).split(mark)
    found = {row: " ".join(part.split()) for row, part in zip(rows, said, strict=True)}
    assert found == rows


# --- process, users, capabilities, seccomp, paths ---


def test_who_a_container_is_and_what_it_may(cri: CRI, pod: str) -> None:
    config = security(
        cri.container_config(*SLEEP, working_dir="/made/here", env={"ONE": "1", "EMPTY": ""}),
        run_as_user=pb.Int64Value(value=1234),
        run_as_group=pb.Int64Value(value=5678),
        supplemental_groups=[77, 5678, 9],
        no_new_privs=True,
        readonly_rootfs=True,
        capabilities=pb.Capability(
            add_capabilities=["NET_ADMIN"], drop_capabilities=["CAP_CHOWN"], add_ambient_capabilities=["NET_RAW"]
        ),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        masked_paths=["/proc/keys", "/proc/acpi"],
        readonly_paths=["/proc/sys"],
    )
    config.linux.resources.oom_score_adj = 500
    config.annotations["io.atoll.container/rlimits"] = "nofile=321:654, core=0"
    made = started(cri, pod, config)
    require(
        cri,
        made,
        {
            "pwd": "/made/here",
            "echo $ONE,$EMPTY,${EMPTY-unset}": "1,,",
            f"grep -E '^(Uid|Gid):' {STATUS}": "Uid: 1234 1234 1234 1234 Gid: 5678 5678 5678 5678",
            f"grep ^Groups: {STATUS}": "Groups: 9 77 5678",
            f"grep NoNewPrivs {STATUS}": "NoNewPrivs: 1",
            f"grep Seccomp: {STATUS}": "Seccomp: 2",
            f"grep CapAmb: {STATUS}": "CapAmb: 0000000000002000",
            "touch /new || echo refused": "touch: /new: Read-only file system refused",
            "cat /proc/keys": "",
            "cat /proc/1/oom_score_adj": "500",
            "grep -E 'Max (open files|core file)' /proc/1/limits | awk '{print $(NF-2),$(NF-1)}'": "0 0 321 654",
        },
    )
    bounding = int(cri.sh(made, f"grep CapBnd: {STATUS}").split()[1], 16)
    assert bounding >> 12 & 1, "NET_ADMIN was added"
    assert not bounding & 1, "CHOWN was dropped"
    assert cri.exec(made, "/bin/sh", "-c", "echo 1 > /proc/sys/kernel/panic").code != 0
    user = cri.status(made).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (1234, 5678, [5678, 9, 77])


def test_names_groups_and_their_policy_come_from_the_image(cri: CRI, roots: Roots, handler: str) -> None:
    accounts = (
        member("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n"),
        member("etc/group", b"root:x:0:\nweb:x:44:\nlogs:x:55:web\n"),
    )
    config: dict[str, object] = {
        "User": "web",
        "WorkingDir": "/from-image",
        "Env": ["FROM=image", "BOTH=image"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["trap 'exit 9' USR1; echo started; while :; do sleep 0.05; done"],
        "StopSignal": "SIGUSR1",
    }
    with imported(cri, roots, "defaults", config, layer(*busybox(), *accounts)) as name:
        pod = cri.run_pod(cri.pod_config(namespaces=PRIVATE_PIDS), handler)
        made = started(cri, pod, cri.container_config(image=name, env={"BOTH": "request"}))
        groups = f"grep ^Groups: {STATUS}"
        require(
            cri,
            made,
            {
                "pwd": "/from-image",
                "echo $FROM,$BOTH": "image,request",
                f"grep -E '^(Uid|Gid):' {STATUS}": "Uid: 33 33 33 33 Gid: 44 44 44 44",
                groups: "Groups: 44 55",
            },
        )
        eventually(lambda: b"started" in cri.output(made), "the image's command runs")
        cri.stop(made, 20)
        assert cri.wait(made).code == 9, "the image's stop signal came first"
        strict = security(
            cri.container_config("sleep 1000", image=name),
            run_as_username="web",
            supplemental_groups=[66],
            supplemental_groups_policy=pb.Strict,
        )
        # A command takes the place of the entrypoint, and the image's arguments go with that.
        strict.command[:] = ["/bin/sleep"]
        strict.args[:] = ["1000"]
        require(
            cri,
            started(cri, pod, strict),
            {groups: "Groups: 44 66", "tr '\\0' ' ' < /proc/1/cmdline": "/bin/sleep 1000"},
        )
        # Arguments alone go to the image's entrypoint; a stop signal of the request is before the image's.
        script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
        config_ = cri.container_config(image=name, args=[script], stop_signal=pb.SIGTERM)
        made = started(cri, pod, config_)
        eventually(lambda: b"ready" in cri.output(made), "the request's arguments run")
        cri.stop(made, 20)
        assert cri.wait(made).code == 3
        assert cri.status(made).stop_signal == pb.SIGTERM
        for pod_ in cri.list_pods():
            cri.remove_pod(pod_.id)


def test_seccomp_and_privileges(cri: CRI, pod: str, roots: Roots, handler: str) -> None:
    profile = roots.base / "profile.json"
    rules = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    for asked, expected in (
        ({"seccomp": pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)}, ("Seccomp: 0", "made")),
        (
            {"seccomp": pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(profile))},
            ("Seccomp: 2", "not supported"),
        ),
        ({"seccomp_profile_path": f"localhost/{profile}"}, ("Seccomp: 2", "not supported")),
        ({}, ("Seccomp: 0", "made")),
    ):
        made = started(cri, pod, security(cri.container_config(*SLEEP), **asked))
        said = cri.sh(made, f"grep Seccomp: {STATUS}; mkdir /d 2>&1 && echo made; true")
        assert expected[0] in " ".join(said.split())
        assert expected[1] in said
    with refused(INVALID, "privileged", "pod"):
        cri.create(pod, security(cri.container_config(*SLEEP), privileged=True))
    config = cri.pod_config(namespaces=PRIVATE_PIDS)
    config.linux.security_context.privileged = True
    all_of_it = started(cri, cri.run_pod(config, handler), security(cri.container_config(*SLEEP), privileged=True))
    host = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    require(
        cri,
        all_of_it,
        {
            f"grep CapEff: {STATUS}": " ".join(host.split()),
            "test -e /dev/vda -o -e /dev/sda -o -e /dev/loop-control && echo devices": "devices",
            "mkdir /m && mount -t tmpfs none /m && echo mounted": "mounted",
        },
    )
    capable = pb.Capability(add_capabilities=["ALL"], drop_capabilities=["SYS_TIME"])
    made = started(cri, pod, security(cri.container_config(*SLEEP), capabilities=capable))
    bounding = int(cri.sh(made, f"grep CapBnd: {STATUS}").split()[1], 16)
    assert bounding == int(host.split()[1], 16) & ~(1 << 25)


def test_annotations_are_passed_as_the_handler_says(cri: CRI) -> None:
    config = cri.pod_config(namespaces=PRIVATE_PIDS, annotations={"of.pod/a": "1", "of.other": "2"})
    pod = cri.run_pod(config)
    container = cri.container_config(*SLEEP)
    container.annotations.update({"of.container": "3", "of.container/b": "4"})
    made = started(cri, pod, container)
    passed = info(cri, made)["runtimeSpec"]["annotations"]
    assert {key: value for key, value in passed.items() if key.startswith("of.")} == {
        "of.pod/a": "1",
        "of.container": "3",
    }
    assert dict(cri.pod_status(pod).annotations)["of.other"] == "2"
    assert dict(cri.status(made).annotations)["of.container/b"] == "4"


def test_relabeling_follows_no_link(roots: Roots) -> None:
    folder_ = roots.base / "labeled"
    (folder_ / "deep").mkdir(parents=True)
    outside = roots.base / "outside"
    outside.touch()
    (folder_ / "deep" / "link").symlink_to(outside)
    relabel(str(folder_), "system_u:object_r:container_file_t:s0")
    for path in (folder_, folder_ / "deep", folder_ / "deep" / "link"):
        assert os.getxattr(path, "security.selinux", follow_symlinks=False).startswith(b"system_u:object_r:container")
    if not HAS_SELINUX:
        assert os.listxattr(outside) == []


# --- namespaces ---


def test_a_container_joins_its_targets_processes(cri: CRI, pod: str) -> None:
    target = cri.script(pod, "exec sleep 4321")
    options = pb.NamespaceOption(pid=TARGET, target_id=target)
    made = started(cri, pod, security(cri.container_config(*SLEEP), namespace_options=options))
    assert "4321" in cri.sh(made, "cat /proc/1/cmdline")
    for wrong, words in (
        (pb.NamespaceOption(pid=TARGET, target_id="nobody"), "nobody"),
        (pb.NamespaceOption(pid=CONTAINER, target_id=target), "target_id"),
    ):
        with refused((INVALID, grpc.StatusCode.NOT_FOUND), words):
            cri.create(pod, security(cri.container_config(*SLEEP), namespace_options=wrong))


# --- mounts ---


@pytest.fixture
def shared_folder(roots: Roots) -> Iterator[Path]:
    """A mount of its own that others see the mounts of."""
    path = roots.base / "shared"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    subprocess.run(["mount", "--make-shared", str(path)], check=True)
    for name in ("in", "out", "below"):
        (path / name).mkdir()
    yield path
    subprocess.run(["umount", "--recursive", str(path)], check=True)


def test_mounts(cri: CRI, pod: str, roots: Roots, shared_folder: Path, handler: str) -> None:
    file = roots.base / "file"
    file.write_text("content")
    (roots.base / "link").symlink_to(file)
    missing = roots.base / "missing" / "folder"
    subprocess.run(["mount", "-t", "tmpfs", "none", str(shared_folder / "below")], check=True)
    config = cri.container_config(*SLEEP)
    at = {
        "/shared-" + kind.lower(): getattr(pb, f"PROPAGATION_{kind}")
        for kind in ("PRIVATE", "HOST_TO_CONTAINER", "BIDIRECTIONAL")
    }
    for path, propagation in at.items():
        config.mounts.add(container_path=path, host_path=str(shared_folder), propagation=propagation)
    config.mounts.add(container_path="/a/file", host_path=str(roots.base / "link"), readonly=True)
    config.mounts.add(container_path="/missing", host_path=str(missing))
    config.mounts.add(container_path="/read-only", host_path=str(shared_folder), readonly=True)
    config.mounts.add(
        container_path="/all-read-only", host_path=str(shared_folder), readonly=True, recursive_read_only=True
    )
    config.mounts.add(container_path="/etc/hosts", host_path=str(file), selinux_relabel=True)
    rro = features(cri)[handler].recursive_read_only_mounts
    if not rro:
        with refused(PRECONDITION, "/all-read-only", "recursively"):
            cri.create(pod, config)
        del config.mounts[-2]
    made = started(cri, pod, config)
    subprocess.run(["mount", "-t", "tmpfs", "of-host", str(shared_folder / "in")], check=True)
    require(
        cri,
        made,
        {
            "cat /a/file": "content",
            "echo x > /a/file || echo refused": "/bin/sh: can't create /a/file: Read-only file system refused",
            "cat /etc/hosts": "content",
            "touch /missing/new /read-only/below/new": "",
            "touch /read-only/new || echo refused": "touch: /read-only/new: Read-only file system refused",
            "grep -c ' /shared-private/in ' /proc/self/mounts": "0",
            "grep -c ' /shared-host_to_container/in ' /proc/self/mounts": "1",
        },
    )
    assert missing.stat().st_mode & 0o7777 == 0o755
    if rro:
        assert cri.exec(made, "/bin/touch", "/all-read-only/below/other").code != 0
    for path, propagation in (
        ("/shared-private", pb.PROPAGATION_HOST_TO_CONTAINER),
        ("/private", pb.PROPAGATION_BIDIRECTIONAL),
    ):
        unshared = cri.container_config(*SLEEP)
        unshared.mounts.add(container_path=path, host_path="/proc", propagation=propagation)
        with refused(PRECONDITION, path, "not shared"):
            cri.create(pod, unshared)


@pytest.mark.parametrize(
    ("mount", "code", "words"),
    [
        ({"container_path": "/", "host_path": "/etc"}, INVALID, "root"),
        ({"container_path": "", "host_path": "/etc"}, INVALID, "container_path"),
        ({"container_path": "/x", "host_path": "relative"}, INVALID, "absolute"),
        ({"container_path": "/x", "host_path": "/etc/hosts/no"}, INVALID, "/etc/hosts/no"),
        ({"container_path": "/x", "host_path": "/etc", "recursive_read_only": True}, INVALID, "recursive_read_only"),
        ({"container_path": "/x", "image": pb.ImageSpec(image="nobody/nothing")}, grpc.StatusCode.NOT_FOUND, "nothing"),
        (
            {"container_path": "/x", "host_path": "/etc", "image": pb.ImageSpec(image="atoll/busybox")},
            INVALID,
            "host_path",
        ),
        (
            {"container_path": "/x", "image": pb.ImageSpec(image="atoll/busybox"), "image_sub_path": "no"},
            INVALID,
            "'no'",
        ),
        (
            {"container_path": "/x", "image": pb.ImageSpec(image="atoll/busybox"), "image_sub_path": "../x"},
            INVALID,
            "..",
        ),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_mount_that_cannot_be_is_refused(
    cri: CRI, mount: dict[str, object], code: grpc.StatusCode, words: str
) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=PRIVATE_PIDS))
    config = cri.container_config(*SLEEP)
    config.mounts.add(**mount)
    with refused(code, words):
        cri.create(pod, config)


# --- image volumes ---


def busybox() -> list[tuple[tarfile.TarInfo, bytes]]:
    links = [symlink(f"bin/{name}", "busybox") for name in ("sh", "sleep", "cat", "grep", "tr")]
    return [folder("bin"), member("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755), *links]


class imported:  # noqa: N801  a context manager, used as a function
    """An image in the store for the time of the block; its name."""

    def __init__(self, cri: CRI, roots: Roots, name: str, config: dict[str, object], *tars: bytes) -> None:
        self._cri, self._name = cri, f"tests/{roots.prefix}-{name}:1"
        self._layout = write_layout(roots.base / name, (image(tars, config=config), self._name))

    def __enter__(self) -> str:
        request = own.ImportRequest(path=str(self._layout))
        self._cri.own.call("Import", request, own.ImportResponse)
        return self._name

    def __exit__(self, *_: object) -> None:
        remove(self._cri, self._name)


def remove(cri: CRI, name: str) -> None:
    cri.images.call("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), pb.RemoveImageResponse)


@pytest.mark.parametrize("kind", ["atoll", "runc", "pause", "foreign"])
@pytest.mark.parametrize("users", [False, True], ids=["host", "users"])
def test_an_image_is_mounted_as_a_volume(cri: CRI, roots: Roots, kind: str, users: bool) -> None:
    namespaces = pb.NamespaceOption(pid=CONTAINER)
    if users:
        ids = [pb.IDMapping(host_id=200_000, container_id=0, length=65_536)]
        namespaces.userns_options.CopyFrom(pb.UserNamespace(mode=POD, uids=ids, gids=ids))
        if kind == "foreign":  # another's shim maps no mounts
            assert not features(cri)[kind].user_namespaces
            with refused(PRECONDITION, "user namespace"):
                cri.run_pod(cri.pod_config(namespaces=namespaces), kind)
            return
        if not features(cri)[kind].user_namespaces:
            pytest.skip("needs the kernel's id-mapped mounts: this host has none")
    lower = layer(member("file", b"lower"), member("gone", b"x"), folder("deep"), member("deep/one", b"1"))
    upper = layer(
        member("file", b"upper"), member(".wh.gone"), member("deep/two", b"2", mode=0o755), symlink("out", "../../deep")
    )
    with imported(cri, roots, "two", {}, lower, upper) as two, imported(cri, roots, "one", {}, lower) as one:
        pod = cri.run_pod(cri.pod_config(namespaces=namespaces), kind)
        config = cri.container_config(*SLEEP)
        config.mounts.add(container_path="/two", image=pb.ImageSpec(image=two), readonly=True)
        config.mounts.add(container_path="/one", image=pb.ImageSpec(image=one), readonly=True)
        rows = {
            "cat /two/file /two/deep/one /two/deep/two /one/file": "upper12lower",
            "ls /two/gone": "ls: /two/gone: No such file or directory",
            "stat -c %u:%g /two/file /one/deep": "0:0 0:0",
            "touch /two/new 2>/dev/null || echo refused": "refused",
            "touch /one/new 2>/dev/null || echo refused": "refused",
            "/two/deep/two || echo refused": "/bin/sh: /two/deep/two: Permission denied refused",
        }
        sub = config.mounts.add(
            container_path="/sub", image=pb.ImageSpec(image=two), image_sub_path="out", readonly=True
        )
        if kind == "foreign":
            with refused(PRECONDITION, "image_sub_path", "own shim"):
                cri.create(pod, config)
            config.mounts.remove(sub)
        else:
            config.mounts.add(container_path="/one-file", image=pb.ImageSpec(image=one), image_sub_path="deep/one")
            rows["cat /sub/one /sub/two /one-file"] = "121"
        made = started(cri, pod, config)
        require(cri, made, rows)
        told = cri.status(made).mounts[0]
        assert (told.container_path, told.image.image) == ("/two", two)
        # The view of it keeps the files of an image that is removed.
        remove(cri, two)
        cri.require_clean_books()
        assert cri.sh(made, "cat /two/file") == "upper"
        cri.remove_pod(pod)


# --- devices ---


@pytest.fixture
def cdi() -> Iterator[tuple[Path, Path]]:
    low, high = (Path(path) for path in CDI_FOLDERS)
    for one in (low, high):
        one.mkdir(parents=True)
    yield low, high
    for one in (low, high):
        for file in one.iterdir():
            file.unlink()
        one.rmdir()
    low.parent.rmdir()


def test_devices(cri: CRI, pod: str, roots: Roots, cdi: tuple[Path, Path]) -> None:
    low, high = cdi
    source = roots.base / "driver"
    source.write_text("driver")
    hook = roots.base / "hook"
    hook.write_text(f"#!/bin/sh\ncat > /dev/null; echo $WHAT $1 > {roots.base}/hooked\n")
    hook.chmod(0o755)
    (low / "vendor.json").write_text(
        json.dumps(
            {
                "cdiVersion": "0.6.0",
                "kind": "example.com/gpu",
                "containerEdits": {"env": ["GPU=low"]},
                "devices": [{"name": "one", "containerEdits": {"env": ["ONE=low"]}}],
            }
        )
    )
    (high / "vendor.json").write_text(
        json.dumps(
            {
                "cdiVersion": "0.6.0",
                "kind": "example.com/gpu",
                "containerEdits": {"env": ["GPU=high"]},
                "devices": [
                    {
                        "name": "one",
                        "containerEdits": {
                            "env": ["ONE=high"],
                            "deviceNodes": [{"path": "/dev/gpu-one", "hostPath": "/dev/fuse", "permissions": "r"}],
                            "mounts": [{"hostPath": str(source), "containerPath": "/opt/driver", "options": ["ro"]}],
                            "hooks": [
                                {
                                    "hookName": "createRuntime",
                                    "path": str(hook),
                                    "args": ["hook", "ran"],
                                    "env": ["WHAT=it"],
                                }
                            ],
                            "additionalGids": [4321],
                        },
                    },
                    {"name": "two", "containerEdits": {"env": ["TWO=high"]}},
                ],
            }
        )
    )
    config = cri.container_config(*SLEEP)
    config.CDI_devices.add(name="example.com/gpu=one")
    config.annotations["cdi.k8s.io/driver_x"] = "example.com/gpu=two,example.com/gpu=one"
    config.devices.add(host_path="/dev/full", container_path="/dev/mine", permissions="rw")
    made = started(cri, pod, config)
    require(
        cri,
        made,
        {
            "echo $GPU $ONE $TWO": "high high high",
            ": < /dev/gpu-one && echo readable": "readable",
            "(: > /dev/gpu-one) || echo refused": "/bin/sh: can't create /dev/gpu-one: Operation not permitted refused",
            "cat /opt/driver": "driver",
            f"grep ^Groups: {STATUS} | grep -c 4321": "1",
            "stat -c %t:%T /dev/mine": "1:7",
        },
    )
    assert (roots.base / "hooked").read_text() == "it ran\n"
    (high / "broken.json").write_text("{")
    (high / "old.yaml").write_text("cdiVersion: 0.6.0")
    for name, code, words in (
        ("example.com/gpu=three", INVALID, ("three", "broken.json", "old.yaml", "YAML")),
        ("gpu=one", INVALID, ("gpu=one", "vendor.com/class=name")),
    ):
        config = cri.container_config(*SLEEP)
        config.CDI_devices.add(name=name)
        with refused(code, *words):
            cri.create(pod, config)
    for device, words in (
        ({"host_path": "/etc/hosts", "container_path": "/dev/x"}, "not a device"),
        ({"host_path": "/dev/none", "container_path": "/dev/x"}, "/dev/none"),
        ({"host_path": "/dev/zero", "container_path": "/dev/x", "permissions": "rz"}, "rwm"),
    ):
        config = cri.container_config(*SLEEP)
        config.devices.add(**device)
        with refused(INVALID, words):
            cri.create(pod, config)


# --- limits ---


def info(cri: CRI, container: str) -> dict[str, Any]:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return json.loads(cri.runtime.call("ContainerStatus", request, pb.ContainerStatusResponse).info["info"])


def cgroup(cri: CRI, container: str, controller: str) -> Path:
    pid = info(cri, container)["pid"]
    path = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}")
    return Path(f"/sys/fs/cgroup{path}")


on_v1 = pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="needs cgroup v1")


@on_v1
def test_limits_are_set_in_the_cgroup(cri: CRI, pod: str) -> None:
    config = cri.container_config(*SLEEP)
    asked = config.linux.resources
    asked.cpu_shares, asked.cpu_quota, asked.cpu_period = 512, 20_000, 50_000
    asked.memory_limit_in_bytes = 64 << 20
    asked.cpuset_cpus, asked.cpuset_mems = "0", "0"
    asked.unified["pids.max"] = "77"
    asked.hugepage_limits.add(page_size="2MB", limit=4 << 20)
    asked.hugepage_limits.add(page_size="1GB", limit=0)
    made = started(cri, pod, config)
    for controller, file, value in (
        ("cpu", "cpu.shares", 512),
        ("cpu", "cpu.cfs_quota_us", 20_000),
        ("cpu", "cpu.cfs_period_us", 50_000),
        ("memory", "memory.limit_in_bytes", 64 << 20),
        ("cpuset", "cpuset.cpus", 0),
        ("cpuset", "cpuset.mems", 0),
        ("pids", "pids.max", 77),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", 4 << 20),
    ):
        assert int((cgroup(cri, made, controller) / file).read_text()) == value, file


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"cpu_period": 10}, INVALID, "cpu_period"),
        ({"cpu_quota": 10}, INVALID, "cpu_quota"),
        ({"cpu_shares": -1}, INVALID, "cpu_shares"),
        ({"memory_limit_in_bytes": -5}, INVALID, "memory_limit"),
        ({"memory_limit_in_bytes": 1 << 30, "memory_swap_limit_in_bytes": 1 << 20}, (INVALID, PRECONDITION), "swap"),
        ({"oom_score_adj": 2000}, INVALID, "oom_score_adj"),
        ({"cpuset_cpus": "zero"}, INVALID, "cpuset_cpus"),
        ({"cpuset_cpus": "0-99999999"}, INVALID, "cpuset_cpus"),
        ({"cpuset_mems": "4095"}, INVALID, "cpuset_mems"),
        ({"hugepage_limits": [pb.HugepageLimit(page_size="3MB", limit=1)]}, INVALID, "3MB"),
        ({"unified": {"pids.max": "none"}}, INVALID, "pids.max"),
        pytest.param({"unified": {"memory.high": "1"}}, PRECONDITION, "unified", marks=on_v1),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_limit_that_cannot_be_is_refused(
    cri: CRI, fields: dict[str, object], code: grpc.StatusCode, words: str
) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=PRIVATE_PIDS))
    config = cri.container_config(*SLEEP)
    config.linux.resources.CopyFrom(pb.LinuxContainerResources(**fields))  # pyright: ignore[reportArgumentType]
    with refused(code, words):
        cri.create(pod, config)


@on_v1
def test_a_container_that_its_runtime_cannot_make_leaves_no_cgroup(cri: CRI, roots: Roots, handler: str) -> None:
    """The parent has a processor less than the host, which only the kernel tells."""
    parent = f"/{roots.prefix}-narrow-{handler}"
    folders = [Path(f"/sys/fs/cgroup/{name}{parent}") for name in ("cpuset", "memory", "cpu", "freezer")]
    for folder_ in folders:
        folder_.mkdir(parents=True)
    try:
        (folders[0] / "cpuset.mems").write_text((folders[0].parent / "cpuset.mems").read_text().strip() or "0")
        (folders[0] / "cpuset.cpus").write_text("0")
        config = cri.pod_config(namespaces=PRIVATE_PIDS)
        config.linux.cgroup_parent = parent
        pod = cri.run_pod(config, handler)
        wanted = cri.container_config(*SLEEP)
        wanted.linux.resources.cpuset_cpus = str((os.cpu_count() or 2) - 1)
        made = cri.create(pod, wanted)
        with refused(INVALID, "cpuset"):
            cri.start(made)
        assert [folder_ / made for folder_ in folders if (folder_ / made).exists()] == []
        cri.remove_pod(pod)
    finally:
        for folder_ in Path("/sys/fs/cgroup").glob(f"*{parent}"):
            with contextlib.suppress(FileNotFoundError):  # one hierarchy may have two names
                folder_.rmdir()


@pytest.mark.parametrize(
    ("source", "place"),
    [("", "/bin/busybox"), ("", "/dev"), ("/etc/passwd", "/bin"), ("", "/sys/none"), ("", "/proc")],
)
def test_a_mount_where_none_can_be_is_the_requests_fault(
    cri: CRI, pod: str, tmp_path: Path, source: str, place: str
) -> None:
    config = cri.container_config(*SLEEP)
    config.mounts.add(host_path=source or str(tmp_path), container_path=place, readonly=True)
    with refused(INVALID, place.lstrip("/").partition("/")[0]):
        cri.start(cri.create(pod, config))


HAS_SELINUX = Path("/sys/fs/selinux/enforce").exists()
HAS_APPARMOR = Path("/sys/module/apparmor/parameters/enabled").exists()
LOCAL = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/no/such")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda c: security(c, run_as_group=pb.Int64Value(value=1)), INVALID, "run_as_group"),
        (lambda c: security(c, run_as_user=pb.Int64Value(value=-1)), INVALID, "user -1"),
        (lambda c: security(c, run_as_username="nobody-here"), INVALID, "nobody-here"),
        (lambda c: security(c, supplemental_groups=[-4]), INVALID, "supplemental_groups"),
        (lambda c: security(c, capabilities=pb.Capability(add_capabilities=["NONE_SUCH"])), INVALID, "NONE_SUCH"),
        (lambda c: security(c, seccomp=LOCAL), INVALID, "/no/such"),
        (lambda c: security(c, masked_paths=["relative"]), INVALID, "masked_paths"),
        (lambda c: security(c, readonly_paths=["relative"]), INVALID, "readonly_paths"),
        (lambda c: security(c, namespace_options=pb.NamespaceOption(network=NODE)), INVALID, "network"),
        pytest.param(
            lambda c: security(c, selinux_options=pb.SELinuxOption(level="s0:c1,c2")),
            PRECONDITION,
            "SELinux",
            marks=pytest.mark.skipif(HAS_SELINUX, reason="this host has SELinux"),
        ),
        pytest.param(
            lambda c: security(c, apparmor=LOCAL),
            PRECONDITION,
            "AppArmor",
            marks=pytest.mark.skipif(HAS_APPARMOR, reason="this host has AppArmor"),
        ),
        (lambda c: c.envs.add(key="A=B", value=b"x"), INVALID, "A=B"),
        (lambda c: setattr(c, "working_dir", "relative"), INVALID, "working_dir"),
        (lambda c: setattr(c, "stop_signal", 4000), INVALID, "signal"),
        (lambda c: setattr(c, "log_path", "../x"), INVALID, "log_path"),
        (lambda c: c.annotations.update({"io.atoll.container/rlimits": "nofiles=1"}), INVALID, "nofiles=1"),
        (lambda c: c.annotations.update({"io.atoll.container/rlimits": "nofile=9:8"}), INVALID, "nofile=9:8"),
        (lambda c: setattr(c.windows.security_context, "run_as_username", "x"), INVALID, "windows"),
    ],
)
def test_what_a_container_cannot_have_is_refused(
    cri: CRI, change: Callable[[pb.ContainerConfig], object], code: grpc.StatusCode, words: str
) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=PRIVATE_PIDS))
    config = cri.container_config(*SLEEP)
    change(config)
    with refused(code, words):
        cri.create(pod, config)


# --- pods ---


@pytest.mark.parametrize("kind", ["atoll", "runc", "pause"])
def test_a_pods_options(cri: CRI, roots: Roots, kind: str) -> None:
    config = cri.pod_config(namespaces=PRIVATE_PIDS, hostname="named")
    config.dns_config.CopyFrom(pb.DNSConfig(servers=["192.0.2.1"], searches=["a.test", "b.test"], options=["ndots:3"]))
    config.labels["of"] = "the pod"
    linux = config.linux
    linux.cgroup_parent = f"/{roots.prefix}/pod-{kind}"
    linux.sysctls.update({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 2048"})
    linux.resources.CopyFrom(pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20, cpu_shares=100))
    linux.overhead.CopyFrom(pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20, cpu_shares=10))
    context = linux.security_context
    context.run_as_user.value = 65534
    context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    context.supplemental_groups.append(7)
    pod = cri.run_pod(config, kind)
    made = cri.run(pod, *SLEEP)
    require(
        cri,
        made,
        {
            "hostname; cat /etc/hostname": "named named",
            "cat /etc/resolv.conf": "search a.test b.test nameserver 192.0.2.1 options ndots:3",
            "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range": "1 1024 2048",
            "df -k /dev/shm | tail -1 | awk '{print $2}'": "65536",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
        },
    )
    if kind == "pause":
        status = Path(f"/proc/{cri.pod_info(pod)['pid']}/status").read_text()
        assert "Uid:\t65534\t" in status
        assert "7" in next(line for line in status.splitlines() if line.startswith("Groups:")).split()
        assert "Seccomp:\t2\n" in status
    folder_ = Path("/sys/fs/cgroup/memory", linux.cgroup_parent[1:])
    if Path("/sys/fs/cgroup/memory").is_dir():
        assert int((folder_ / "memory.limit_in_bytes").read_text()) == 272 << 20, "the sum and the overhead"
        assert cgroup(cri, made, "memory") == folder_ / made
        assert int(Path("/sys/fs/cgroup/cpu", linux.cgroup_parent[1:], "cpu.shares").read_text()) == 110
    cri.remove_pod(pod)
    if Path("/sys/fs/cgroup/memory").is_dir():
        assert not folder_.exists(), "what the pod made it takes away"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda p: p.linux.sysctls.update({"kernel.panic": "1"}), INVALID, "kernel.panic"),
        (lambda p: p.linux.sysctls.update({"vm.swappiness": "1"}), INVALID, "vm.swappiness"),
        (lambda p: p.dns_config.servers.append("1.2.3.4\nnameserver 6.6.6.6"), INVALID, "dns_config.servers"),
        (lambda p: setattr(p, "hostname", "evil\nroot"), INVALID, "hostname"),
        (lambda p: setattr(p, "hostname", "../x"), INVALID, "hostname"),
        (lambda p: setattr(p, "hostname", "x" * 65), INVALID, "hostname"),
        (lambda p: setattr(p, "log_directory", "relative"), INVALID, "log_directory"),
        (lambda p: setattr(p.linux, "cgroup_parent", "/../up"), INVALID, ".."),
        (lambda p: p.annotations.update({"io.atoll.network/none": "maybe"}), INVALID, "true or false"),
        (lambda p: setattr(p, "log_directory", "/dev/null"), INVALID, "log_directory"),
        (lambda p: p.port_mappings.add(host_port=70_000, container_port=80), INVALID, "70000"),
        (lambda p: setattr(p.linux.resources, "cpu_quota", 5), INVALID, "cpu_quota"),
        (lambda p: setattr(p.linux.security_context.run_as_group, "value", 5), INVALID, "run_as_group"),
        (lambda p: p.linux.security_context.seccomp.CopyFrom(LOCAL), INVALID, "/no/such"),
        (lambda p: setattr(p.linux.security_context.namespace_options, "target_id", "x"), INVALID, "target_id"),
        (lambda p: setattr(p.linux.security_context.namespace_options, "network", CONTAINER), INVALID, "network"),
        pytest.param(
            lambda p: setattr(p.linux.security_context.selinux_options, "level", "s0"),
            PRECONDITION,
            "SELinux",
            marks=pytest.mark.skipif(HAS_SELINUX, reason="this host has SELinux"),
        ),
        (lambda p: setattr(p.windows.security_context, "run_as_username", "x"), INVALID, "windows"),
    ],
)
def test_what_a_pod_cannot_have_is_refused(
    cri: CRI, change: Callable[[pb.PodSandboxConfig], object], code: grpc.StatusCode, words: str
) -> None:
    config = cri.pod_config(namespaces=PRIVATE_PIDS)
    change(config)
    with refused(code, words):
        cri.run_pod(config)


def features(cri: CRI) -> dict[str, pb.RuntimeHandlerFeatures]:
    answer = cri.runtime.call("Status", pb.StatusRequest(), pb.StatusResponse)
    return {handler.name: handler.features for handler in answer.runtime_handlers}
