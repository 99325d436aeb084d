"""CNI plugins that misbehave, and the verbs of spec 1.1, with plugins written as small scripts."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from atoll import errors
from atoll.network import config
from atoll.network.cache import AttachmentCache, AttachmentKey
from atoll.network.cni import CNI, Attach
from atoll.network.config import NetworkConfigList
from tests.integration.conftest import Roots
from tests.integration.leaks import wait_until

RECORDING = """
import json, os, sys
said = json.load(sys.stdin)
verb = os.environ["CNI_COMMAND"]
own = said.get("own", {})
with open(own.get("log", os.devnull), "a") as log:
    env = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    log.write(json.dumps({"verb": verb, "said": said, "env": env}) + "\\n")
if verb == "VERSION":
    print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}))
elif verb in own.get("fail", {}):
    print(json.dumps({"cniVersion": said["cniVersion"], **own["fail"][verb]}))
    sys.exit(1)
elif verb == "ADD":
    ips = [{"address": "10.0.0.5/24"}]
    print(json.dumps(said.get("prevResult") or {"cniVersion": said["cniVersion"], "ips": ips}))
"""


class Lab:
    """Scripts as plugins, a cache, and the log that the recording plugin writes."""

    def __init__(self, roots: Roots) -> None:
        self.bin = roots.base / "bin"
        self.bin.mkdir()
        self.log = roots.base / "plugin-calls"
        self.cache = AttachmentCache(roots.root / "cache")
        self.add_plugin("recorder", RECORDING)

    def add_plugin(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{sys.executable} -IS\n{script}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def cni(self, *, timeout_s: float = 20.0) -> CNI:
        return CNI(bin_dirs=(self.bin,), cache=self.cache, timeout_s=timeout_s)

    def network(self, *plugins: dict[str, object] | str, **said: object) -> NetworkConfigList:
        own = {"log": str(self.log)}
        full = [{"type": p, "own": own} if isinstance(p, str) else {"own": own, **p} for p in plugins]
        return config.parse(
            json.dumps({"cniVersion": "1.1.0", "name": "lab", "plugins": full, **said}).encode(), source="lab.conflist"
        )

    def calls(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def verbs(self) -> list[object]:
        return [call["verb"] for call in self.calls()]


ATTACH = Attach(
    container_id="c1", netns_path="/proc/self/ns/net", cni_args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "p"))
)
KEY = AttachmentKey(network="lab", container_id="c1", ifname="eth0")


@pytest.fixture
def lab(roots: Roots) -> Lab:
    return Lab(roots)


async def test_plugins_are_told_what_the_specification_says(lab: Lab) -> None:
    network = lab.network({"type": "recorder", "capabilities": {"mac": True}, "unknown": 1}, "recorder")
    attach = Attach(
        container_id="c1",
        netns_path="/ns",
        cni_args=(("A", "1"), ("B", "2")),
        capability_args={"mac": "02:00:00:00:00:01", "dns": {}},
    )
    added = await lab.cni().add(network, attach)
    assert [ip.ip for ip in added.result.ips] == ["10.0.0.5"]
    assert [(t.plugin, t.verb) for t in added.timings] == [("recorder", "ADD")] * 2
    assert all(0 < t.duration_s < 20 for t in added.timings)
    first, second = lab.calls()
    assert first["env"] == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/ns",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": str(lab.bin),
    }
    assert first["said"] == {
        "type": "recorder",
        "capabilities": {"mac": True},
        "unknown": 1,
        "own": {"log": str(lab.log)},
        "name": "lab",
        "cniVersion": "1.1.0",
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
    }
    assert second["said"]["prevResult"]["ips"] == [{"address": "10.0.0.5/24"}]  # type: ignore[index]
    assert "runtimeConfig" not in second["said"]  # type: ignore[operator]


async def test_del_runs_backwards_with_the_configuration_of_add_and_only_once(lab: Lab) -> None:
    await lab.cni().add(lab.network({"type": "recorder", "n": 1}, {"type": "recorder", "n": 2}), ATTACH)
    lab.log.unlink()
    await CNI(bin_dirs=(lab.bin,), cache=AttachmentCache(lab.cache.folder)).delete(KEY)
    await lab.cni().delete(KEY)
    assert [(call["verb"], call["said"]["n"]) for call in lab.calls()] == [("DEL", 2), ("DEL", 1)]  # type: ignore[index]
    assert all(call["said"]["prevResult"]["ips"] for call in lab.calls())  # type: ignore[index]


async def test_a_failing_plugin_is_named_in_one_line_and_its_chain_is_deleted(lab: Lab) -> None:
    lab.add_plugin("broken", RECORDING)
    fail = {"ADD": {"code": 42, "msg": "no\nway", "details": "because\x1b[31m"}}
    network = lab.network("recorder", {"type": "broken", "own": {"log": str(lab.log), "fail": fail}}, "recorder")
    with pytest.raises(errors.Unknown) as raised:
        await lab.cni().add(network, ATTACH)
    assert str(raised.value) == "network lab: cni plugin broken ADD for c1: failed with code 42: no way; because [31m"
    assert lab.verbs() == ["ADD", "ADD", "DEL", "DEL", "DEL"]
    assert lab.cache.recorded() == []


async def test_an_attachment_whose_del_fails_stays_recorded_and_every_plugin_had_its_turn(lab: Lab) -> None:
    fail = {"log": str(lab.log), "fail": {"DEL": {"code": 11, "msg": "busy"}}}
    await lab.cni().add(lab.network("recorder", {"type": "recorder", "own": fail}), ATTACH)
    for _ in range(2):
        lab.log.unlink()
        with pytest.raises(errors.Unavailable, match="busy"):
            await lab.cni().delete(KEY)
        assert lab.verbs() == ["DEL", "DEL"]
    assert lab.cache.recorded() == [KEY]


async def test_a_slow_plugin_is_killed_with_all_its_children(lab: Lab) -> None:
    pids = lab.bin / "pids"
    lab.add_plugin(
        "slow",
        f"""
import os, subprocess, sys, time
if os.environ["CNI_COMMAND"] == "ADD":
    child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"])
    escaped = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"], start_new_session=True)
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}} {{escaped.pid}} .")
    time.sleep(60)
""",
    )
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="cni plugin slow ADD for c1: slow did not end within 1 s"):
        await lab.cni(timeout_s=1).add(lab.network("slow"), ATTACH)
    assert time.monotonic() - started < 5
    for pid in pids.read_text().split()[:3]:
        assert wait_until(lambda pid=pid: _is_dead(pid)), f"process {pid} lives on"
    assert lab.cache.recorded() == []


def _is_dead(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_cancelling_add_kills_the_plugin_and_deletes_the_chain(lab: Lab) -> None:
    lab.add_plugin("waits", RECORDING + "\nimport time\nif verb == 'ADD': sys.stdout.flush(); time.sleep(60)\n")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.cni().add(lab.network("waits"), ATTACH))
        assert await asyncio.to_thread(wait_until, lambda: bool(lab.calls()), within=20)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
    assert task.cancelled()
    assert lab.verbs() == ["ADD", "DEL"]
    assert lab.cache.recorded() == []


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("print('garbage')", "printed what is not JSON: garbage"),
        ("pass", "succeeded but printed no result"),
        ("print('[1]')", "printed what is not JSON"),
        ('print(\'{"ips": [{"address": "x"}]}\')', "not an address in a CNI result"),
        ("import sys; sys.exit(3)", "failed with code 3: and said nothing"),
        ("import sys; sys.stderr.write('dire\\nstraits'); sys.exit(1)", "failed with code 1: dire straits"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("while True: print('x' * 65536)", "printed more than 1048576 bytes and was killed"),
        ("import sys\nwhile True: sys.stderr.write('x' * 65536)", "printed more than 1048576 bytes and was killed"),
    ],
)
async def test_nonsense_is_an_error_that_names_network_plugin_and_verb(lab: Lab, script: str, told: str) -> None:
    lab.add_plugin("odd", f"import os\nif os.environ['CNI_COMMAND'] == 'ADD':\n    exec({script!r})")
    with pytest.raises(errors.Unknown) as raised:
        await lab.cni().add(lab.network("odd"), ATTACH)
    assert str(raised.value).startswith("network lab: cni plugin odd ADD for c1: ")
    assert told in str(raised.value)
    assert lab.cache.recorded() == []


async def test_a_plugin_whose_child_keeps_its_output_open_does_not_hold_us_up(lab: Lab) -> None:
    lab.add_plugin(
        "daemonizes",
        RECORDING + "\nimport subprocess\nif verb == 'ADD':\n    sys.stdout.flush()\n"
        "    subprocess.Popen(['sleep', '2'], start_new_session=True)\n",
    )
    started = time.monotonic()
    await lab.cni().add(lab.network("daemonizes"), ATTACH)
    assert time.monotonic() - started < 1.5
    await asyncio.sleep(max(0.0, 2.2 - (time.monotonic() - started)))


async def test_a_missing_plugin_says_where_it_was_looked_for_before_anything_is_done(lab: Lab) -> None:
    with pytest.raises(errors.FailedPrecondition) as raised:
        await lab.cni().add(lab.network("recorder", "nowhere"), ATTACH)
    assert "cni plugin nowhere is not in" in str(raised.value)
    assert str(lab.bin) in str(raised.value)
    assert "containernetworking-plugins" in str(raised.value)
    assert lab.verbs() == []
    assert lab.cache.recorded() == []


async def test_a_file_that_is_no_program_is_named(lab: Lab) -> None:
    (lab.bin / "text").write_text("hello")
    (lab.bin / "text").chmod(0o755)
    with pytest.raises(errors.FailedPrecondition, match="text: cannot be executed"):
        await lab.cni().add(lab.network("text"), ATTACH)


async def test_check_passes_the_result_and_reports_what_the_plugin_says(lab: Lab) -> None:
    fail = {"log": str(lab.log), "fail": {"CHECK": {"code": 100, "msg": "route is gone"}}}
    await lab.cni().add(lab.network({"type": "recorder", "own": fail}), ATTACH)
    with pytest.raises(errors.Unknown, match="CHECK for c1: failed with code 100: route is gone"):
        await lab.cni().check(KEY)
    assert lab.calls()[-1]["said"]["prevResult"]["ips"]  # type: ignore[index]


@pytest.mark.parametrize("said", [{"disableCheck": True}, {"cniVersion": "0.3.1"}])
async def test_check_is_not_asked_of_lists_without_it(lab: Lab, said: dict[str, object]) -> None:
    await lab.cni().add(lab.network("recorder", **said), ATTACH)
    assert await lab.cni().check(KEY) is False
    assert lab.verbs() == ["ADD"]
    with pytest.raises(errors.NotFound):
        await lab.cni().check(AttachmentKey(network="lab", container_id="c2", ifname="eth0"))


async def test_gc_deletes_what_is_recorded_but_not_valid_and_tells_the_plugins(lab: Lab) -> None:
    network, cni = lab.network("recorder"), lab.cni()
    for container in ("c1", "c2", "c3"):
        await cni.add(network, Attach(container_id=container, netns_path="/ns"))
    lab.log.unlink()
    deleted = await cni.gc(network, [("c2", "eth0")])
    assert sorted(key.container_id for key in deleted) == ["c1", "c3"]
    assert sorted(call["env"]["CNI_CONTAINERID"] for call in lab.calls()[:2]) == ["c1", "c3"]  # type: ignore[index]
    assert lab.verbs() == ["DEL", "DEL", "GC"]
    assert lab.calls()[2]["said"]["cni.dev/valid-attachments"] == [{"containerID": "c2", "ifname": "eth0"}]  # type: ignore[index]
    assert [key.container_id for key in lab.cache.recorded()] == ["c2"]


@pytest.mark.parametrize("said", [{"disableGC": True}, {"cniVersion": "1.0.0"}])
async def test_gc_is_not_asked_of_lists_without_it(lab: Lab, said: dict[str, object]) -> None:
    await lab.cni().gc(lab.network("recorder", **said), [])
    assert lab.verbs() == []


async def test_status_is_the_plugins_word_from_spec_1_1_on(lab: Lab) -> None:
    fail = {"log": str(lab.log), "fail": {"STATUS": {"code": 50, "msg": "agent is down"}}}
    with pytest.raises(errors.Unavailable, match="cni plugin recorder STATUS: failed with code 50: agent is down"):
        await lab.cni().status(lab.network({"type": "recorder", "own": fail}))
    await lab.cni().status(lab.network("recorder"))
    assert lab.verbs() == ["STATUS", "STATUS"]
    await lab.cni().status(lab.network({"type": "recorder", "own": fail}, cniVersion="1.0.0"))
    assert lab.verbs() == ["STATUS", "STATUS"]


async def test_the_highest_version_that_all_plugins_speak_is_used(lab: Lab) -> None:
    lab.add_plugin("older", RECORDING.replace(', "1.1.0"]', "]"))
    cni = lab.cni()
    network = lab.network("recorder", "older", cniVersions=["0.4.0", "1.0.0", "1.1.0"])
    await cni.add(network, ATTACH)
    await cni.delete(KEY)
    said = [call["said"]["cniVersion"] for call in lab.calls() if call["verb"] != "VERSION"]  # type: ignore[index]
    assert said == ["1.0.0"] * 4
    assert await cni.version("older") == ("0.4.0", "1.0.0")
    lab.add_plugin("oldest", RECORDING.replace('["0.4.0", "1.0.0", "1.1.0"]', '["0.1.0"]'))
    with pytest.raises(errors.FailedPrecondition, match=r"share none of CNI 1\.0\.0, 1\.1\.0"):
        await cni.add(lab.network("oldest", cniVersions=["1.0.0", "1.1.0"]), ATTACH)


async def test_an_add_cut_off_by_a_crash_is_deleted_before_the_next_and_by_delete(lab: Lab) -> None:
    """The record is on disk before the first plugin runs, so a daemon that was killed in ADD still knows."""
    cni = lab.cni()
    lab.add_plugin("dies", RECORDING + "\nif verb == 'ADD': os.kill(os.getppid(), 9)\n")
    script = (
        "import asyncio, sys\n"
        "from tests.integration.test_network_plugins import ATTACH, config\n"
        "from atoll.network.cni import CNI\n"
        "from atoll.network.cache import AttachmentCache\n"
        "from pathlib import Path\n"
        f"network = config.parse({json.dumps(config.to_json(lab.network('dies')))!r}.encode(), source='x')\n"
        f"cni = CNI(bin_dirs=(Path({str(lab.bin)!r}),), cache=AttachmentCache(Path({str(lab.cache.folder)!r})))\n"
        "asyncio.run(cni.add(network, ATTACH))\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "src:."}
    )
    assert await child.wait() == -9
    assert lab.verbs() == ["ADD"]
    assert lab.cache.recorded() == [KEY]
    await cni.delete(KEY)
    assert lab.verbs() == ["ADD", "DEL"]
    assert lab.cache.recorded() == []
