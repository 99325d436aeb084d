"""The configuration file read again by a running daemon: by call, by signal and by command."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, eventually, refused
from tests.integration.daemons import Daemon, Roots
from tests.integration.images import image, layer, member, write_layout
from tests.integration.registry import running_registry

pytestmark = pytest.mark.shared_daemon


@pytest.fixture(autouse=True)
def config(roots: Roots, cri: CRI) -> Iterator[Path]:
    """The daemon's file; as it was, and in force, at the end."""
    before = roots.config.read_text()
    yield roots.config
    roots.config.write_text(before)
    reload(cri)


def reload(cri: CRI) -> own.ReloadResponse:
    return cri.own.call("Reload", own.ReloadRequest(), own.ReloadResponse)


def add(config: Path, text: str) -> None:
    with config.open("a") as file:
        file.write(f"\n{text}\n")


def pull(cri: CRI, name: str) -> str:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
    return cri.images.call("PullImage", request, pb.PullImageResponse).image_ref


def remove(cri: CRI, name: str) -> None:
    request = pb.RemoveImageRequest(image=pb.ImageSpec(image=name))
    cri.images.call("RemoveImage", request, pb.RemoveImageResponse)


def test_a_mirror_counts_at_once_and_a_network_at_the_next_start(cri: CRI, config: Path, roots: Roots) -> None:
    files = image([layer(member("a", b"a"))])
    write_layout(roots.base / "layout", (files, ""))
    with refused((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND), "registry.invalid"):
        pull(cri, "registry.invalid/team/app:v1")
    with running_registry(roots.base / "registry") as registry:
        registry.push(f"oci:{roots.base}/layout", "hub/team/app:v1")
        text = config.read_text()
        config.write_text(text.replace("[network]", "[network]\nmax_conf_num = 2", 1))
        mirrors = f'mirrors = ["127.0.0.1:1", "{registry.address}/hub"]'
        add(config, f'[images.registries."*"]\n{mirrors}\n[images.registries."{registry.address}"]\nplain_http = true')
        answer = reload(cri)
        assert answer.file == str(config)
        assert list(answer.waiting) == ["[network] max_conf_num"]
        assert "[images.registries.*] mirrors" in answer.applied
        assert pull(cri, "registry.invalid/team/app:v1") == files.id
        with refused((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND), "its mirrors", registry.address):
            pull(cri, "registry.invalid/team/none:v1")
    remove(cri, files.id)


def test_a_file_with_a_mistake_is_refused_and_changes_nothing(cri: CRI, config: Path, daemon: Daemon) -> None:
    lines = len(config.read_text().splitlines())
    add(config, '[images]\npinned = ["a b"]')
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"line {lines + 3}: [images] pinned: 'a b'", str(config)):
        reload(cri)
    config.write_text("root = \n")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "line 1: is not TOML"):
        reload(cri)
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: "the configuration stays as it was" in daemon.log_tail(), "the refusal is logged")
    assert daemon.is_running()


def test_a_signal_has_images_pinned(cri: CRI, config: Path, daemon: Daemon) -> None:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image="example.com/mine:1"))

    def is_pinned() -> bool:
        return cri.images.call("ImageStatus", request, pb.ImageStatusResponse).image.pinned

    files = image([layer(member("b", b"b"))])
    write_layout(config.parent / "pinned", (files, ""))
    imported = own.ImportRequest(path=str(config.parent / "pinned"), reference="example.com/mine:1")
    cri.own.call("Import", imported, own.ImportResponse)
    assert not is_pinned()
    add(config, '[images]\npinned = ["example.com/mine:1"]')
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(is_pinned, "the image is pinned")
    add(config, "max_concurrent_unpacks = 3")
    config.write_text(config.read_text().replace("mine:1", "mine:2"))
    assert list(reload(cri).waiting) == ["[images] max_concurrent_unpacks"]
    assert not is_pinned()
    remove(cri, files.id)


def test_a_container_gets_the_annotations_that_its_handler_passes_now(cri: CRI, config: Path) -> None:
    add(config, '[runtimes.atoll]\ncontainer_annotations = ["example.com/*"]')
    assert "[runtimes.atoll] container_annotations" in reload(cri).applied
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("true", annotations={"example.com/a": "1", "other": "2"}))
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    info = cri.runtime.call("ContainerStatus", request, pb.ContainerStatusResponse).info["info"]
    assert '"example.com/a":"1"' in info.partition('"runtimeSpec"')[2].partition('"config"')[0]
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def test_the_command_says_what_counts_and_what_waits(config: Path, cri: CRI, daemon: Daemon) -> None:
    config.write_text('pods_per_shim = 7\nlog_level = "debug"\n' + config.read_text())
    done = daemon.run("reload")
    assert done.returncode == 0
    assert [line.split(maxsplit=2) for line in done.stdout.splitlines()[1:]] == [
        ["-", "log_level", "now"],
        ["-", "pods_per_shim", "at the next start"],
    ]
    assert daemon.run("reload").stdout.count("pods_per_shim") == 1
