"""Exec, attach and port forward where other shims and sandboxers keep the pod: the client sees no difference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.integration.cri_client import CRI
from tests.integration.stream_client import Spdy, SpdyCommand
from tests.integration.test_streaming import PODS_PORT, attach_url, echo_server, exec_url, forward_url, pair

GO_SHIM = "containerd-shim-runc-v2"
pytestmark = [
    pytest.mark.skipif(shutil.which(GO_SHIM) is None, reason=f"needs {GO_SHIM}: apt install containerd"),
    pytest.mark.shared_daemon(
        config="""
[runtimes.atoll]

[runtimes.pod]
sandboxer = "podsandbox"

[runtimes.runc]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"
"""
    ),
]


@pytest.fixture(params=["pod", "runc"])
def pod(cri: CRI, request: pytest.FixtureRequest) -> Iterator[str]:
    pod = cri.run_pod(handler=request.param)
    yield pod
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def test_exec_attach_and_port_forward(cri: CRI, pod: str) -> None:
    of = cri.script(pod, "while read x; do echo got $x; done; sleep 1000", stdin=True)
    url = exec_url(cri, of, "sh", "-c", "cat; echo err >&2; exit 6", stdin=True)
    with SpdyCommand(url, "v4.channel.k8s.io", stdin=True) as command:
        block = bytes(range(256)) * 4096
        command.session.feed(command.ids["stdin"], block, 8)
        command.wait()
        assert command.text("stdout") == block * 8
        assert command.text("stderr") == b"err\n"
        assert json.loads(command.text("error"))["details"]["causes"][0]["message"] == "6"
    with SpdyCommand(exec_url(cri, of, "tty", tty=True), "v4.channel.k8s.io", tty=True) as command:
        assert b"/dev/pts/" in command.wait().text("stdout")
    with SpdyCommand(attach_url(cri, of), "v4.channel.k8s.io", stdin=True) as command:
        command.stdin(b"line\n")
        command.until("stdout", b"got line\n")
    with echo_server(cri, pod), Spdy(forward_url(cri, pod), "portforward.k8s.io") as session:
        data, _ = pair(session, PODS_PORT, 0)
        session.send(data, b"there and back", fin=True)
        session.until(lambda: data in session.ended)
        assert session.data[data] == b"there and back"
