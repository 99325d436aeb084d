"""login, push, save, load, tag and rmi against a real registry that wants credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon
from tests.integration.registry import PASSWORD, USER, Registry, run, running_registry

pytestmark = pytest.mark.shared_daemon(config='\n[images.registries."*"]\nplain_http = true\n')

IMAGE = "atoll/busybox"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("images") / "registry", auth=True) as registry:
        yield registry


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def uploads(registry: Registry) -> int:
    """Requests that bring bytes, which the registry has answered so far."""
    return (registry.folder / "registry.log").read_text().count("http.request.method=PATCH")


def test_a_push_wants_credentials_sends_what_is_missing_and_nothing_twice(
    daemon: Daemon, registry: Registry, docker: Path
) -> None:
    name = f"{registry.address}/tests/app:1"
    assert daemon.run("tag", IMAGE, name).stdout == f"{name}\n"
    refused = daemon.run("push", name)
    assert (refused.returncode, f"`atoll login {registry.address}`" in refused.stderr) == (125, True)
    wrong = daemon.run("login", "-u", USER, "--password-stdin", registry.address, stdin="wrong\n")
    assert wrong.stderr == f"atoll: {registry.address}: refuses these credentials; check the name and the password\n"
    assert not docker.exists()
    assert daemon.run("login", "-u", USER, "--password-stdin", registry.address, stdin=f"{PASSWORD}\n").returncode == 0
    assert docker.stat().st_mode & 0o777 == 0o600

    done = daemon.run("push", name)
    assert done.returncode == 0, done.stderr
    told = run("skopeo", "inspect", "--tls-verify=false", f"--creds={USER}:{PASSWORD}", f"docker://{name}")
    assert done.stdout == f"{name}@{json.loads(told)['Digest']}\n"
    sent = uploads(registry)
    assert sent > 0
    assert daemon.run("push", name).returncode == 0
    assert uploads(registry) == sent

    assert daemon.run("rmi", name).returncode == 0
    assert daemon.run("pull", name).returncode == 0
    assert daemon.run("rmi", name).returncode == 0
    assert json.loads(daemon.run("inspect", IMAGE).stdout)[0]["tags"] == ["docker.io/atoll/busybox:latest"]
    assert daemon.run("logout", registry.address).returncode == 0
    assert daemon.run("pull", name).returncode == 125


@pytest.mark.parametrize(("form", "transport"), [("oci", "oci-archive"), ("docker", "docker-archive")])
def test_what_is_saved_is_read_by_others_and_loaded_again(
    daemon: Daemon, tmp_path: Path, form: str, transport: str
) -> None:
    name = "example.com/saved:2"
    archive = tmp_path / "image.tar"
    daemon.run("tag", IMAGE, name)
    image = json.loads(daemon.run("inspect", name).stdout)[0]["id"]
    done = daemon.run("save", "--format", form, "-o", str(archive), name, "atoll/pause")
    assert (done.returncode, done.stderr) == (0, "")
    place = f"{archive}:2" if form == "oci" else f"{archive}:{name}"
    config = run("skopeo", "inspect", "--config", "--raw", f"{transport}:{place}")
    assert json.loads(config)["rootfs"]["diff_ids"]
    run("skopeo", "inspect", f"docker-archive:{archive}:{name}")  # docker reads both forms
    assert daemon.run("rmi", name).returncode == 0
    assert name in daemon.run("load", str(archive)).stdout
    loaded = json.loads(daemon.run("inspect", name).stdout)[0]
    assert (loaded["id"], name in loaded["tags"]) == (image, True)
    assert daemon.run("rmi", name).returncode == 0


def test_an_archive_goes_through_a_pipe(daemon: Daemon) -> None:
    name = "example.com/piped:1"
    daemon.run("tag", IMAGE, name)
    environment = {**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)}
    command = [sys.executable, "-m", "atoll.cli.main"]
    with subprocess.Popen([*command, "save", name], env=environment, stdout=subprocess.PIPE) as saving:
        loading = subprocess.run(
            [*command, "load", "-i", "-"],
            env=environment,
            stdin=saving.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (loading.returncode, loading.stdout) == (0, f"{name}\n")
    daemon.run("rmi", name)


def test_rmi_of_a_name_leaves_the_others(daemon: Daemon) -> None:
    daemon.run("tag", IMAGE, "example.com/one:1")
    daemon.run("tag", IMAGE, "example.com/two:1")
    assert daemon.run("rmi", "example.com/one:1").returncode == 0
    listed = daemon.run("images").stdout
    assert ("example.com/one" in listed, "example.com/two" in listed, IMAGE in listed) == (False, True, True)
    daemon.run("rmi", "example.com/two:1")
    assert daemon.run("rmi", "example.com/one:1").returncode == 125


def test_prune_takes_what_is_not_used(daemon: Daemon) -> None:
    daemon.run("run", "--keep", "--network", "none", "--name", "ended", IMAGE, "true")
    daemon.run("run", "-d", "--network", "none", "--name", "runs", IMAGE, "sleep", "1000")
    assert daemon.run("prune").returncode == 125, "nobody could say yes"
    told = json.loads(daemon.run("prune", "-f", "--images", "--json").stdout)
    assert (told["pods"], told["images"]) == (["ended"], [])
    assert "runs" in daemon.run("ps").stdout
    daemon.run("rm", "-f", "runs")
