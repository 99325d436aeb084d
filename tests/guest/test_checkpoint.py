"""A checkpoint by CRIU, which needs a kernel that Debian's CRIU knows: the guest's."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.guest.conftest import Host
from tests.integration.cri_client import eventually, refused


def criu_works() -> bool:
    program = shutil.which("criu")
    return program is not None and subprocess.run([program, "check"], check=False, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    not criu_works(), reason="needs the kernel's interfaces as Debian's CRIU knows them: this host has none"
)

TICKS = "echo begun; echo kept > /kept; rm /etc/passwd; while :; do cat /proc/uptime > /next; mv /next /now; done"


def checkpoint(host: Host, container: str, target: Path) -> None:
    request = pb.CheckpointContainerRequest(container_id=container, location=str(target))
    host.cri.runtime.call("CheckpointContainer", request, pb.CheckpointContainerResponse, timeout=120)


def test_a_checkpoint_has_all_that_a_kubelet_asks_for_and_the_container_goes_on(host: Host) -> None:
    target = host.roots.base / "checkpoint.tar"
    container = host.cri.script(host.cri.run_pod(), TICKS)
    if host.oci_runtime == "crun":  # Debian's was built without CRIU
        with refused(grpc.StatusCode.UNIMPLEMENTED, "runc"):
            checkpoint(host, container, target)
        return
    eventually(lambda: host.cri.exec(container, "test", "-e", "/now").code == 0, "it runs")
    checkpoint(host, container, target)
    first = host.cri.sh(container, "cat /now")
    time.sleep(0.2)
    assert host.cri.sh(container, "cat /now") != first, "it stands still"
    with tarfile.open(target) as archive:
        names = archive.getnames()
        held = {name: archive.extractfile(name) for name in names if archive.getmember(name).isfile()}
        content = {name: file.read() for name, file in held.items() if file is not None}
    assert "checkpoint/inventory.img" in names
    told = {"config.dump", "spec.dump", "status.dump", "status", "dump.log", "stats-dump", "container.log"}
    assert told <= set(names)
    config, status = json.loads(content["config.dump"]), json.loads(content["status.dump"])
    assert (config["id"], config["rootfsImageName"]) == (container, "docker.io/atoll/busybox:latest")
    assert status["Pid"] > 0
    assert json.loads(content["spec.dump"])["process"]["args"][-1] == TICKS
    assert b"begun" in content["container.log"]
    with tarfile.open(fileobj=io.BytesIO(content["rootfs-diff.tar"])) as layer:
        assert {"kept", "etc/.wh.passwd"} <= set(layer.getnames())
    assert target.stat().st_mode & 0o777 == 0o600
    checkpoint(host, container, target)
