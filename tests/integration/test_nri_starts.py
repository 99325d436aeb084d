"""Plugins that the daemon starts, plugins over a restart of the daemon, and those of version 0.1."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from atoll.api import nri_v1alpha1_pb2 as pb
from tests.integration.cri_client import connected
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import wait_until
from tests.integration.nri_client import Plugin
from tests.integration.test_nri import refused

REPOSITORY = Path(__file__).resolve().parents[2]


def configure(roots: Roots, extra: str = "") -> Path:
    """NRI in the private folders of a test; its socket."""
    path = roots.state / "nri.sock"
    with roots.config.open("a") as file:
        file.write(
            f'{extra}\n[nri]\nenable = true\nsocket_path = "{path}"\nplugin_path = "{roots.base}/plugins"\n'
            f'plugin_config_path = "{roots.base}/conf.d"\nlegacy_config = "{roots.base}/conf.json"\n'
            f'legacy_plugin_path = "{roots.base}/plugins"\n'
        )
    return path


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_an_installed_plugin_is_started_and_ended_with_the_daemon(roots: Roots) -> None:
    configure(roots)
    plugins, told = roots.base / "plugins", roots.base / "told"
    executable(
        plugins / "30-python", f"#!/bin/sh\ncd {REPOSITORY}\nexec {sys.executable} -m tests.integration.nri_client\n"
    )
    executable(plugins / "no-index", "#!/bin/sh\nexit 1\n")
    executable(plugins / "20-dies", "#!/bin/sh\nexit 1\n")
    (plugins / "10-data").write_text("is not executable")
    conf = roots.base / "conf.d"
    conf.mkdir()
    (conf / "python.conf").write_text(str(told))
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            cri.fsck()  # answered once plugins have joined
            assert wait_until(told.is_file)
            name, pid = told.read_text().split()
            assert name == "30-python"
            os.kill(int(pid), 0)
            log = roots.log.read_text()
            assert "plugin 30-python" in log
            assert "no-index: is not started" in log
            assert "plugin 20-dies does not join" in log
            assert "10-data" not in log
        assert daemon.stop() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
        assert not (roots.state / "nri.sock").exists()
    finally:
        daemon.kill()


def test_plugins_join_again_after_a_restart_and_see_what_lives(roots: Roots) -> None:
    path = configure(roots)
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            plugin = Plugin.connect(path, "test").start()
            pod = cri.run_pod()
            container = cri.run(pod, "sleep", "1000")
        daemon.kill()
        assert plugin.ended.wait(5.0)
        plugin.close()
        daemon.start()
        again = Plugin.connect(path, "test").start()
        [sync] = again.of("Synchronize", pb.SynchronizeRequest)
        assert [one.id for one in sync.pods] == [pod]
        assert [(one.id, one.state) for one in sync.containers] == [(container, pb.CONTAINER_RUNNING)]
        with connected(roots) as cri:
            cri.remove_pod(pod)
        assert again.names() == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"]
        assert daemon.stop() == 0
        assert again.names()[-1] == "Shutdown"
        assert again.ended.wait(5.0)
        again.close()
    finally:
        daemon.kill()


def test_a_socket_that_somebody_listens_on_is_left_alone(roots: Roots) -> None:
    path = configure(roots)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        daemon = Daemon(roots)
        daemon.start()
        try:
            with connected(roots) as cri:
                pod = cri.run_pod()
                cri.remove_pod(pod)
            assert "no plugin can connect" in roots.log.read_text()
            assert daemon.stop() == 0
            assert path.exists()
        finally:
            daemon.kill()
            path.unlink()


def test_plugins_of_version_0_1_are_called_for_a_pause_container(roots: Roots) -> None:
    configure(roots, '[runtimes.pause]\nsandboxer = "podsandbox"\n[runtimes.atoll]\n')
    base = roots.base
    executable(
        base / "plugins" / "first",
        f'#!/bin/sh\ncat >> {base}/calls\necho >> {base}/calls\necho \'{{"plugin":"first","version":"0.1"}}\'\n',
    )
    executable(
        base / "plugins" / "second",
        f"#!/bin/sh\ncat >> {base}/calls\necho >> {base}/calls\ncat {base}/answer\n",
    )
    (base / "answer").write_text('{"plugin":"second"}')
    listed = {"version": "0.1", "plugins": [{"type": "first", "conf": {"a": 1}}, {"type": "second"}]}
    (base / "conf.json").write_text(json.dumps(listed))
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            pod = cri.run_pod(cri.pod_config(labels={"l": "1"}), "pause")
            cri.remove_pod(pod)
            first, second, *ends = [json.loads(line) for line in (base / "calls").read_text().splitlines()]
            assert (first["state"], first["id"], first["sandboxID"], first["conf"]) == ("create", pod, pod, {"a": 1})
            assert first["labels"]["l"] == "1"
            assert first["pid"] > 0
            assert pod in first["spec"]["cgroupsPath"]
            assert "mount" in first["spec"]["namespaces"]
            assert second["results"] == [{"plugin": "first", "version": "0.1"}]
            assert [one["state"] for one in ends] == ["delete", "delete"]
            (base / "answer").write_text('{"error":"no room"}')
            assert "no room" in refused(lambda: cri.run_pod(handler="pause"))[1]
            (base / "answer").write_text("no json")
            assert "second" in refused(lambda: cri.run_pod(handler="pause"))[1]
            assert cri.list_pods() == []
            cri.require_clean_books()
        assert daemon.stop() == 0
    finally:
        daemon.kill()
