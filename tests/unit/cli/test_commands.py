"""Commands against a fake daemon: what they print, and how they end."""

from __future__ import annotations

import json
import re

import pytest

import atoll
from atoll.api import atoll_v1_pb2 as own
from atoll.testing.fake_daemon import FakeDaemon
from tests.unit.cli.conftest import Cli

IMAGE = "atoll/busybox"


async def test_ps_is_a_table_for_people_and_json_for_programs(cli: Cli, client: atoll.Client) -> None:
    pod = await client.run_pod("web", ports={8080: 80})
    running = await pod.run(IMAGE, ["sleep", "1000"], name="main")
    ended = await pod.run(IMAGE, ["exit", "3"], name="init")
    await ended.wait()
    said = await cli("ps")
    head, row = said.out.splitlines()
    assert head.split() == ["ID", "NAME", "IMAGE", "STATUS", "POD", "IP", "PORTS"]
    assert re.split(r"  +", row)[:3] == [running.id[:13], "main", IMAGE]
    assert re.split(r"  +", row)[4:] == ["web", "10.0.0.2", "8080->80/tcp"]
    assert "exited (3)" in (await cli("ps", "-a")).out
    assert (await cli("ps", "-q")).out.split() == [running.id[:13]]
    told = json.loads((await cli("ps", "--json")).out)
    assert [(one["name"], [c["name"] for c in one["containers"]]) for one in told] == [("web", ["main", "init"])]


async def test_a_wide_table_is_not_cut_in_a_pipe(cli: Cli, client: atoll.Client) -> None:
    name = "n" * 63
    pod = await client.run_pod(name)
    await pod.run(IMAGE, ["sleep", "1000"], name=name)
    assert (await cli("ps")).out.count(name) == 2


async def test_inspect_is_json_of_pods_and_containers(cli: Cli, client: atoll.Client) -> None:
    pod = await client.run_pod("web")
    container = await pod.run(IMAGE, ["sleep", "1000"], name="main")
    both = json.loads((await cli("inspect", "web", container.id[:10], "--timings")).out)
    assert [(one["id"], one["name"]) for one in both] == [(pod.id, "web"), (container.id, "main")]
    assert both[0]["phases"][0]["name"] == "record"


async def test_logs_keep_the_streams_apart(cli: Cli, client: atoll.Client) -> None:
    pod = await client.run_pod()
    words = await pod.run(IMAGE, ["echo", "a\nb\nc"], name="words")
    noise = await pod.run(IMAGE, ["complain", "oh"], name="noise")
    await words.wait()
    await noise.wait()
    said = await cli("logs", "words", "--tail", "2")
    assert (said.code, said.out, said.err) == (0, "b\nc\n", "")
    said = await cli("logs", "-f", "noise")
    assert (said.out, said.err) == ("", "oh\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z a\n.*", (await cli("logs", "-t", "words")).out, re.DOTALL)


async def test_stop_and_rm(cli: Cli, client: atoll.Client, daemon: FakeDaemon) -> None:
    pod = await client.run_pod("web")
    await pod.run(IMAGE, ["sleep", "1000"], name="main")
    said = await cli("rm", "web")
    assert (said.code, said.err) == (125, "atoll: pod web: a container runs in it; stop it first, or use -f\n")
    said = await cli("stop", "web", "nope")
    assert (said.code, said.out) == (125, "web\n")
    assert "nope" in said.err
    assert (await cli("rm", "web")).code == 0
    assert not daemon.pods


async def test_a_pod_of_atoll_run_goes_with_its_container(cli: Cli, client: atoll.Client, daemon: FakeDaemon) -> None:
    pod = await client.run_pod("web", labels={"io.atoll.run": "true"})
    container = await pod.run(IMAGE, ["sleep", "1000"], name="web")
    assert (await cli("rm", "-f", container.id)).code == 0
    assert not daemon.pods
    other = await client.run_pod("other")
    container = await other.run(IMAGE, ["sleep", "1000"], name="one")
    assert (await cli("rm", "-f", container.id)).code == 0
    assert list(daemon.pods) == [other.id]


async def test_rm_all_takes_what_has_ended_and_with_force_everything(
    cli: Cli, client: atoll.Client, daemon: FakeDaemon
) -> None:
    for name in ("up", "down"):
        pod = await client.run_pod(name)
        await pod.run(IMAGE, ["sleep", "1000"])
    await (await client.pod("down")).stop()
    assert (await cli("rm", "-a")).code == 0
    assert [pod.status.metadata.name for pod in daemon.pods.values()] == ["up"]
    assert (await cli("rm", "-fa")).code == 0
    assert not daemon.pods


async def test_images_pull_load_and_rmi(cli: Cli, daemon: FakeDaemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert (await cli("pull", "web:1")).out.startswith("sha256:")
    assert "docker.io/library/web:1" in (await cli("images")).out
    archive = tmp_path_factory.mktemp("images") / "made"
    archive.write_bytes(b"")
    assert (await cli("load", str(archive))).out == "docker.io/library/made:latest\n"
    assert len(json.loads((await cli("images", "--json")).out)) == 3
    assert (await cli("rmi", "web:1")).code == 0
    assert "docker.io/library/web:1" not in daemon.images
    said = await cli("rmi", "web:1")
    assert (said.code, said.out) == (125, "")
    assert "'web:1': is not here; `atoll images`" in said.err
    said = await cli("pull", "web:2")
    assert (said.code, said.err) == (125, "atoll: docker.io/library/web:2: the registry has no such image\n")


async def test_fsck_ends_with_one_where_it_found_something(cli: Cli, daemon: FakeDaemon) -> None:
    said = await cli("fsck")
    assert (said.code, said.out) == (0, "clean: 7 resources compared\n")
    daemon.findings = [own.Finding(kind="netns", key="x", owner="p", problem="leaked", remedy="drop it")]
    said = await cli("fsck")
    assert said.code == 1
    assert [line.split()[:3] for line in said.out.splitlines()] == [["KIND", "KEY", "OWNER"], ["netns", "x", "p"]]
    assert "leaked" in said.out
    assert "--repair" in said.err
    assert json.loads((await cli("fsck", "--json")).out)["findings"][0]["problem"] == "leaked"
    said = await cli("fsck", "--repair")
    assert (said.code, "repaired" in said.out) == (0, True)


async def test_phases_and_version(cli: Cli, client: atoll.Client) -> None:
    await client.run_pod("web")
    assert "1.5 ms" in (await cli("phases", "web")).out
    assert f"daemon  {atoll.__version__}" in (await cli("version")).out
    assert json.loads((await cli("version", "--json")).out)["daemon"] == atoll.__version__
    assert (await cli("--version")).out.splitlines()[0] == f"client  {atoll.__version__}"
