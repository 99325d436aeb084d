"""User namespaces of pods: over both sandboxers and both OCI runtimes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, refused

RUNTIMES = """
[runtimes.atoll]
oci_runtime = "crun"

[runtimes.runc]
oci_runtime = "runc"

[runtimes.pause]
sandboxer = "podsandbox"
oci_runtime = "crun"

[runtimes.pause-runc]
sandboxer = "podsandbox"
oci_runtime = "runc"

[runtimes.foreign]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"
"""
HANDLERS = ("atoll", "runc", "pause", "pause-runc")
FIRST, COUNT = 100_000, 65_536
POD, CONTAINER, NODE = pb.POD, pb.CONTAINER, pb.NODE

pytestmark = pytest.mark.shared_daemon(config=RUNTIMES)


def users(**fields: object) -> pb.UserNamespace:
    ids = [pb.IDMapping(host_id=FIRST, container_id=0, length=COUNT)]
    return pb.UserNamespace(**{"mode": POD, "uids": ids, "gids": ids, **fields})


def handlers(cri: CRI) -> dict[str, pb.RuntimeHandlerFeatures]:
    answer = cri.runtime.call("Status", pb.StatusRequest(), pb.StatusResponse)
    return {handler.name: handler.features for handler in answer.runtime_handlers}


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest, cri: CRI) -> str:
    if not handlers(cri)[request.param].user_namespaces:
        pytest.skip(f"needs {request.param}'s OCI runtime, and ID-mapped mounts of this file system")
    return request.param


@pytest.fixture
def volume(roots: Roots) -> Path:
    """A folder that only the host's root may enter, with a file, as a kubelet makes a volume."""
    made = roots.base / "private" / "volume"
    made.mkdir(mode=0o700, parents=True)
    made.parent.chmod(0o700)
    (made / "file").write_text("of the host")
    (made / "file").chmod(0o600)
    return made


def test_a_pod_has_users_of_its_own(cri: CRI, handler: str, volume: Path) -> None:
    namespaces = pb.NamespaceOption(pid=CONTAINER, userns_options=users())
    config = cri.pod_config(namespaces=namespaces, hostname="mapped")
    config.linux.sysctls["kernel.msgmax"] = "9999"
    config.linux.sysctls["net.ipv4.ip_default_ttl"] = "77"
    pod = cri.run_pod(config, handler)
    container = cri.container_config("/bin/sleep", "1000")
    container.linux.security_context.namespace_options.CopyFrom(namespaces)
    ids = users().uids
    container.mounts.add(container_path="/volume", host_path=str(volume), uidMappings=ids, gidMappings=ids)
    container.mounts.add(container_path="/as-it-is", host_path=str(volume), readonly=True)
    file = volume / "file"
    container.mounts.add(
        container_path="/etc/one", host_path=str(file), readonly=True, uidMappings=ids, gidMappings=ids
    )
    made = cri.create(pod, container)
    cri.start(made)
    assert cri.sh(made, "cat /proc/self/uid_map /proc/self/gid_map").split() == ["0", str(FIRST), str(COUNT)] * 2
    pid = cri_pid(cri, made)
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}" in status
    assert f"Gid:\t{FIRST}\t{FIRST}" in status
    # The image's files are root's, as are the pod's and the volume's.
    owners = cri.sh(
        made, "stat -c '%u:%g' / /bin/busybox /etc/hostname /etc/hosts /etc/resolv.conf /volume /volume/file"
    )
    assert owners.split() == ["0:0"] * 7
    assert cri.sh(made, "stat -c '%u' /as-it-is") == "65534", "without mappings it is nobody's"
    assert cri.sh(made, "cat /volume/file /etc/one") == "of the hostof the host"
    cri.sh(made, "echo mine > /volume/new; echo x > /etc/new; chown 5:6 /volume/new /etc/new")
    assert (volume / "new").stat().st_uid == 5, "on the volume's disk the ids are as inside"
    assert cri.sh(made, "stat -c '%u:%g' /etc/new") == "5:6"
    assert cri.sh(made, "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl").split() == ["9999", "77"]
    assert cri.exec(made, "/bin/sh", "-c", "echo x > /etc/one").code != 0
    # The pod's namespaces are its users': root inside may change them, and nothing of the host.
    assert cri.exec(made, "/bin/sh", "-c", "echo 1 > /proc/sys/kernel/panic").code != 0
    spaces = f"/proc/{pid}/ns/"
    assert os.readlink(spaces + "user") != os.readlink("/proc/self/ns/user")
    second = cri.run(pod, "/bin/sleep", "1000")
    other = f"/proc/{cri_pid(cri, second)}/ns/"
    for kind in ("user", "net", "ipc", "uts"):
        assert os.readlink(spaces + kind) == os.readlink(other + kind)


def cri_pid(cri: CRI, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    answer = cri.runtime.call("ContainerStatus", request, pb.ContainerStatusResponse)
    return json.loads(answer.info["info"])["pid"]


def test_a_pod_with_users_has_the_networks_and_shares_pids(cri: CRI, handler: str) -> None:
    namespaces = pb.NamespaceOption(pid=POD, userns_options=users())
    pod = cri.run_pod(cri.pod_config(namespaces=namespaces, network=True), handler)
    made = cri.script(pod, "exec httpd -f -p 80 -h /etc")
    assert cri.pod_status(pod).network.ip in cri.sh(made, "ip -4 addr show eth0")
    assert cri.sh(made, "readlink /proc/self/ns/pid") == os.readlink(f"/proc/{cri.pod_info(pod)['pid']}/ns/pid")
    assert "root" in cri.sh(made, "wget -qO- http://127.0.0.1/passwd"), "port 80 is the pod's to bind"


def test_a_pod_with_users_outlives_its_daemon(cri: CRI, daemon: Daemon, handler: str, volume: Path) -> None:
    namespaces = pb.NamespaceOption(pid=CONTAINER, userns_options=users())
    pod = cri.run_pod(cri.pod_config(namespaces=namespaces), handler)
    config = cri.container_config("/bin/sleep", "1000")
    ids = users().uids
    config.mounts.add(container_path="/volume", host_path=str(volume), uidMappings=ids, gidMappings=ids)
    running = cri.create(pod, config)
    cri.start(running)
    config.metadata.name = "waiting"
    waiting = cri.create(pod, config)
    daemon.kill()
    daemon.start()
    cri.start(waiting)
    for one in (running, waiting, cri.run(pod, "/bin/sleep", "1000")):
        assert cri.sh(one, "cat /proc/self/uid_map").split() == ["0", str(FIRST), str(COUNT)]
    assert cri.sh(waiting, "cat /volume/file") == "of the host"
    cri.require_clean_books()
    cri.stop(running)
    cri.remove(running)
    cri.require_clean_books()


def test_a_pod_with_users_may_have_the_hosts_network(cri: CRI, handler: str) -> None:
    namespaces = pb.NamespaceOption(network=NODE, pid=CONTAINER, userns_options=users())
    pod = cri.run_pod(cri.pod_config(namespaces=namespaces), handler)
    made = cri.run(pod, "/bin/sleep", "1000")
    assert cri.sh(made, "cat /proc/self/uid_map").split() == ["0", str(FIRST), str(COUNT)]
    assert cri.sh(made, "readlink /proc/self/ns/net") == os.readlink("/proc/self/ns/net")
    assert cri.exec(made, "/bin/sh", "-c", "ip link set lo down").code != 0, "it is not the users' network"


def test_the_hosts_null_is_given_to_nobody(cri: CRI, handler: str) -> None:
    def host() -> tuple[int, int, int]:
        found = os.stat(os.devnull)
        return found.st_uid, found.st_gid, found.st_mode

    before = host()
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=CONTAINER, userns_options=users())), handler)
    config = cri.container_config("/bin/sh", "-c", "chmod 700 /proc/self/fd/0 /dev/stdin; exec sleep 1000")
    config.linux.security_context.run_as_user.value = 77
    config.log_path = ""  # its output goes nowhere too
    made = cri.create(pod, config)
    cri.start(made)
    assert cri.exec(made, "/bin/sh", "-c", "cat /dev/stdin; echo said >&0; true").code == 0
    assert host() == before


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"uids": []}, "uids: needs 1"),
        ({"mode": NODE}, "takes no mappings"),
        ({"mode": CONTAINER}, "must be POD or NODE"),
        ({"gids": [pb.IDMapping(host_id=1, container_id=1, length=1)]}, "0 is not mapped"),
    ],
)
def test_users_that_cannot_be_are_refused(cri: CRI, asked: dict[str, object], words: str) -> None:
    config = cri.pod_config(namespaces=pb.NamespaceOption(pid=CONTAINER, userns_options=users(**asked)))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, words):
        cri.run_pod(config)


def test_a_container_has_its_pods_users_or_is_refused(cri: CRI, volume: Path) -> None:
    pod = cri.run_pod()
    container = cri.container_config("/bin/true")
    container.linux.security_context.namespace_options.userns_options.CopyFrom(users())
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "userns_options", "must be the pod's"):
        cri.create(pod, container)
    # A mount may have other owners than the disk although the pod has the host's users.
    container = cri.container_config("/bin/sleep", "1000")
    ids = [pb.IDMapping(host_id=7, container_id=0, length=1)]
    container.mounts.add(container_path="/volume", host_path=str(volume), uidMappings=ids, gidMappings=ids)
    made = cri.create(pod, container)
    cri.start(made)
    assert cri.sh(made, "stat -c '%u:%g' /volume/file") == "7:7"


def test_what_no_user_namespace_can_map_is_named(cri: CRI) -> None:
    pod = cri.run_pod()
    container = cri.container_config("/bin/true")
    ids = users().uids
    container.mounts.add(container_path="/host-proc", host_path="/proc", uidMappings=ids, gidMappings=ids)
    made = cri.create(pod, container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "/proc", "ids cannot be mapped"):
        cri.start(made)


def test_a_handler_without_user_namespaces_says_so(cri: CRI) -> None:
    assert not handlers(cri)["foreign"].user_namespaces
    config = cri.pod_config(namespaces=pb.NamespaceOption(pid=CONTAINER, userns_options=users()))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "'foreign'", "own shim"):
        cri.run_pod(config, "foreign")
