"""Status follows the folder of network configurations: one that appears, goes, breaks, or lacks its plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, refused
from tests.integration.daemons import Roots

pytestmark = pytest.mark.shared_daemon(config="default_network = false\n")


@pytest.fixture
def conflist(roots: Roots) -> Iterator[Path]:
    """The only configuration there is, taken away for the test and put back behind it."""
    path = next(roots.conf_dir.iterdir())
    content = path.read_bytes()
    path.unlink()
    yield path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def conditions(cri: CRI, *, verbose: bool = False) -> dict[str, pb.RuntimeCondition]:
    answer = cri.runtime.call("Status", pb.StatusRequest(verbose=verbose), pb.StatusResponse)
    return {one.type: one for one in answer.status.conditions}


def network(cri: CRI, *, verbose: bool = False) -> pb.RuntimeCondition:
    found = conditions(cri, verbose=verbose)
    assert found["RuntimeReady"].status
    return found["NetworkReady"]


def require_not_ready(found: pb.RuntimeCondition, *words: str) -> None:
    assert (found.status, found.reason) == (False, "NetworkPluginNotReady")
    for word in words:
        assert word in found.message, found.message


def test_the_network_is_ready_as_its_folder_is(cri: CRI, roots: Roots, conflist: Path) -> None:
    require_not_ready(network(cri), "cni config not initialized", str(roots.conf_dir))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "cni config not initialized"):
        cri.run_pod(cri.pod_config(network=True))
    roots.write_network()
    found = network(cri)
    assert (found.status, found.reason, found.message) == (True, "", "")
    content = conflist.read_bytes()
    conflist.write_bytes(content[:40])
    require_not_ready(network(cri), conflist.name, "not a CNI network configuration")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, conflist.name):
        cri.run_pod(cri.pod_config(network=True))
    conflist.write_bytes(content.replace(b'"type": "bridge"', b'"type": "nowhere"'))
    require_not_ready(network(cri), "nowhere")
    conflist.write_bytes(content)
    assert network(cri).status
    pod = cri.run_pod(cri.pod_config(network=True))
    conflist.unlink()
    require_not_ready(network(cri), "cni config not initialized")
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    cri.remove_pod(pod)
    roots.conf_dir.rmdir()
    require_not_ready(network(cri))
    roots.conf_dir.mkdir()
    conflist.write_bytes(content)
    assert network(cri).status


def test_a_verbose_status_asks_the_plugins_themselves(cri: CRI, roots: Roots, conflist: Path) -> None:
    plugin = roots.base / "bin" / "moody"
    plugin.parent.mkdir()
    plugin.write_text(
        "#!/bin/sh\n"
        'case "$CNI_COMMAND" in\n'
        """STATUS) echo '{"cniVersion":"1.1.0","code":50,"msg":"not in the mood"}'; exit 1;;\n"""
        """VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;\n"""
        "esac\n"
    )
    plugin.chmod(0o755)
    conflist.write_text('{"cniVersion":"1.1.0","name":"m","plugins":[{"type":"moody"}]}')
    assert network(cri).status
    require_not_ready(network(cri, verbose=True), "not in the mood")
