"""containerd's sandbox API on the daemon's socket: lives, namespaces, limits, events, and who else is there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from atoll.api import containerd_services_version_v1_pb2 as version_pb2
from atoll.api import containerd_types_pb2 as types
from atoll.api import cri_runtime_v1_pb2 as cri_pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually, in_parallel, refused
from tests.integration.leaks import wait_until
from tests.integration.sandbox_client import (
    NOTREADY,
    READY,
    SandboxAPI,
    new_id,
    pod_options,
    sandbox_api,
    sandbox_event,
)

pytestmark = pytest.mark.shared_daemon

CODE = grpc.StatusCode
YEAR_ONE = Timestamp(seconds=-62135596800)


@pytest.fixture
def api(daemon: Daemon, roots: Roots) -> Iterator[SandboxAPI]:
    with sandbox_api(roots.socket) as client:
        yield client


def fds(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def is_own(pid: int, kind: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def fsck(daemon: Daemon) -> str:
    check = daemon.run("fsck")
    return "" if check.returncode == 0 else check.stdout


def is_unknown(api: SandboxAPI, sandbox_id: str) -> bool:
    try:
        api.status(sandbox_id)
    except grpc.RpcError as error:
        return error.code() is CODE.NOT_FOUND
    return False


def test_a_life_in_full(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    record = api.record(new_id(), labels={"name": "n_ns_u_0"})
    made = api.create(record.sandbox_id, sandbox=record, options=pod_options(hostname=os.uname().nodename))
    created = api.status(made)
    assert (created.state, created.pid) == (NOTREADY, 0)
    assert not created.HasField("exited_at")
    started = api.start(made)
    assert started.sandbox_id == made
    assert started.address.startswith("ttrpc+unix:///")
    assert started.version == 3
    assert dict(started.labels) == {"name": "n_ns_u_0"}
    assert started.spec.type_url.endswith("/Spec")
    assert [is_own(started.pid, kind) for kind in ("net", "ipc", "pid")] == [False, True, True]
    status = api.status(made)
    assert (status.state, status.pid, status.address, status.version) == (
        READY,
        started.pid,
        started.address,
        started.version,
    )
    assert status.created_at == started.created_at
    assert (api.platform(made).os, api.platform(made).architecture) == ("linux", "amd64")
    told = json.loads(api.status(made, verbose=True).info["info"])
    assert told["pid"] == started.pid
    assert Path(told["files"], "resolv.conf").exists()
    assert api.metrics(made).id == made
    api.own_call("Ping", made)
    with refused(CODE.FAILED_PRECONDITION, "started already"):
        api.start(made)
    with refused(CODE.ALREADY_EXISTS, made):
        api.create(made)
    api.stop(made)
    api.stop(made)
    ended = api.wait(made)
    assert ended.exit_status == 137
    after = api.status(made)
    assert (after.state, after.pid, after.exited_at) == (NOTREADY, 0, ended.exited_at)
    assert after.created_at == started.created_at
    assert api.platform(made).os == "linux"
    with refused(CODE.FAILED_PRECONDITION, "ended"):
        api.start(made)
    assert fsck(daemon) == ""
    api.shutdown(made)
    api.shutdown(made)
    assert is_unknown(api, made)
    assert not Path(told["files"]).exists()
    assert not list((roots.state / "shims").iterdir())
    assert not list((roots.state / "s").iterdir())


def test_pause_stops_every_process_and_resume_lets_it_go(api: SandboxAPI) -> None:
    made = api.run()
    api.own_call("Pause", made)
    api.own_call("Pause", made)
    assert api.status(made).state == READY
    api.own_call("Resume", made)
    api.own_call("Pause", made)
    api.shutdown(made)
    with refused(CODE.NOT_FOUND):
        api.own_call("Resume", made)


def test_update_reaches_the_sandbox_and_its_record(api: SandboxAPI, daemon: Daemon) -> None:
    made = api.run()
    record = api.record(made, labels={"tier": "front", "other": "x"})
    api.update(record, "labels.tier")
    assert json.loads(api.status(made, verbose=True).info["info"])["labels"] == {"tier": "front"}
    with refused(CODE.INVALID_ARGUMENT, "sandboxer"):
        api.update(record, "sandboxer")
    daemon.kill()
    daemon.start()
    assert json.loads(api.status(made, verbose=True).info["info"])["labels"] == {"tier": "front"}
    api.shutdown(made)


@pytest.mark.parametrize("sandboxer", ["shim", "podsandbox"])
def test_what_has_ended_is_told_of_after_a_restart(api: SandboxAPI, daemon: Daemon, sandboxer: str) -> None:
    api = api.by(sandboxer)
    record = api.record(new_id())
    record.runtime.name = "io.containerd.atoll.v1"
    made = api.create(record.sandbox_id, sandbox=record, annotations={"asked": "besides"})
    api.start(made)
    assert json.loads(api.status(made, verbose=True).info["info"])["annotations"] == {"asked": "besides"}
    api.stop(made)
    before = api.status(made, verbose=True)
    daemon.kill()
    daemon.start()
    after = api.status(made, verbose=True)
    assert (after.state, after.exited_at) == (NOTREADY, before.exited_at)
    told = [json.loads(status.info["info"]) for status in (before, after)]
    assert [info["runtimeType"] for info in told] == [told[0]["runtimeType"]] * 2 != ["", ""]
    api.shutdown(made)
    assert is_unknown(api, made)
    assert fsck(daemon) == ""


def test_namespaces_hold_the_same_id_apart(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    made = new_id()
    spaces = [api, api.inside("moby"), api.inside("a.b")]
    pids = []
    for space in spaces:
        space.create(made)
        pids.append(space.start(made).pid)
    assert len(set(pids)) == 3
    assert len({space.status(made).address for space in spaces}) == 3
    daemon.kill()
    daemon.start()
    assert [space.status(made).pid for space in spaces] == pids
    assert fsck(daemon) == ""
    spaces[1].shutdown(made)
    assert is_unknown(spaces[1], made)
    assert [space.status(made).state for space in (spaces[0], spaces[2])] == [READY, READY]
    with refused(CODE.NOT_FOUND):
        api.inside("elsewhere").wait(made)
    for space in spaces:
        space.shutdown(made)
    assert not list((roots.state / "s").iterdir())


def test_the_network_namespace_is_the_callers_and_stays(api: SandboxAPI, roots: Roots) -> None:
    name = f"{roots.prefix}ns"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        path = f"/run/netns/{name}"
        options = pod_options(network=cri_pb.POD, hostname="of-a-caller")
        made = api.create(options=options, netns_path=path)
        pid = api.start(made).pid
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(path).st_ino
        api.shutdown(made)
        listed = subprocess.run(["ip", "netns", "exec", name, "ip", "link"], check=True, capture_output=True, text=True)
        assert "lo:" in listed.stdout
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_client_that_names_nothing_but_an_id_gets_the_hosts_network(api: SandboxAPI) -> None:
    made = new_id()
    api.later("Create", sandbox_id=made).result()
    assert not is_own(api.start(made).pid, "net")
    api.shutdown(made)


def test_records_of_every_size_and_time_are_kept(api: SandboxAPI, daemon: Daemon) -> None:
    made = new_id()
    record = api.record(made, created_at=YEAR_ONE, updated_at=YEAR_ONE, labels={"k": "v" * 4000})
    blob = os.urandom(1 << 20)
    record.extensions["big"].CopyFrom(AnyMessage(type_url="nobody.knows/this.Type", value=blob))
    record.spec.CopyFrom(AnyMessage(type_url="also.unknown", value=b"\0\1"))
    stored = api.store("Create", sandbox=record).sandbox
    assert stored.created_at == stored.updated_at
    assert stored.created_at.seconds > 0
    api.create(made, sandbox=record)
    api.start(made)
    daemon.kill()
    daemon.start()
    assert api.status(made).state == READY
    kept = api.store("Get", sandbox_id=made).sandbox
    assert kept == stored
    assert kept.extensions["big"].value == blob
    api.shutdown(made)
    api.store("Delete", sandbox_id=made)


def test_what_can_be_no_sandbox_is_refused_and_leaves_nothing(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    many = {f"label-{n}": "value" for n in range(10_000)}
    for labels in (many, {"k": "v" * 4096}, {"k" * 5000: ""}):
        made = new_id()
        record = api.record(made, labels=labels)
        with refused(CODE.INVALID_ARGUMENT, "label"):
            api.create(made, sandbox=record)
        with refused(CODE.INVALID_ARGUMENT, "label"):
            api.store("Create", sandbox=record)
        assert is_unknown(api, made)
    for bad in ("..", "a/b", "-x", "a..b", "x" * 77, "a b", "a\nb"):
        with refused(CODE.INVALID_ARGUMENT):
            api.create(bad)
        with refused(CODE.INVALID_ARGUMENT):
            api.store("Create", sandbox=api.record(bad))
    with refused(CODE.INVALID_ARGUMENT):
        api.later("Create").result()
    unknown = AnyMessage(type_url="example.com/no.such.Type", value=b"x")
    with refused(CODE.INVALID_ARGUMENT, "no.such.Type"):
        api.create(options=unknown)
    broken = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=b"\xff\xff")
    with refused(CODE.INVALID_ARGUMENT, "decoded"):
        api.create(options=broken)
    with refused(CODE.INVALID_ARGUMENT, "network namespace"):
        api.create(options=pod_options(network=cri_pb.POD))
    with refused(CODE.INVALID_ARGUMENT, "path"):
        api.create(options=pod_options(network=cri_pb.POD), netns_path="../../etc")
    for netns in ("/nosuch", "/etc/passwd", "/dev/null", "/proc/self/ns/mnt"):
        there, made = api.inside("r4"), new_id()  # where our name for it is another one
        with refused(CODE.INVALID_ARGUMENT, made, netns):
            there.create(made, options=pod_options(network=cri_pb.POD), netns_path=netns)
    os.mkfifo(roots.base / "pipe")
    for sandboxer in ("atoll", "podsandbox"):
        there, made = api.inside("r4").by(sandboxer), new_id()
        with refused(CODE.INVALID_ARGUMENT, made, "pipe"):
            there.create(made, options=pod_options(network=cri_pb.POD), netns_path=str(roots.base / "pipe"))
    with refused(CODE.INVALID_ARGUMENT, "nosuchfs"):
        api.create(rootfs=[types.Mount(type="nosuchfs", source="/nosuch")])
    too_large = api.record(new_id())
    too_large.extensions["x"].value = bytes(17 << 20)
    with refused(CODE.RESOURCE_EXHAUSTED):
        api.create(too_large.sandbox_id, sandbox=too_large)
    assert fsck(daemon) == ""


def test_namespace_and_sandboxer_are_required(api: SandboxAPI) -> None:
    with refused(CODE.FAILED_PRECONDITION, "namespace"):
        api.inside("").create()
    with refused(CODE.FAILED_PRECONDITION, "namespace"):
        api.inside("").store("List")
    with refused(CODE.FAILED_PRECONDITION, "namespace"):
        api.inside("").publish("/a/b")
    for bad in ("a b", "../x", "x" * 77):
        with refused(CODE.INVALID_ARGUMENT, "namespace"):
            api.inside(bad).store("List")
    with refused(CODE.INVALID_ARGUMENT, "sandboxer"):
        api.by("").status(new_id())
    with refused(CODE.NOT_FOUND, "nobody", "atoll, shim, podsandbox"):
        api.by("nobody").status(new_id())


def test_kinds_honour_the_records_runtime(api: SandboxAPI, daemon: Daemon) -> None:
    shims = api.by("shim")
    record = shims.record(new_id())
    record.runtime.name = "io.containerd.atoll.v1"
    made = shims.create(record.sandbox_id, sandbox=record)
    shims.start(made)
    with refused(CODE.NOT_FOUND, "sandboxer"):
        api.status(made)
    record.runtime.name = "io.example.nosuch.v7"
    record.sandbox_id = new_id()
    with refused(CODE.NOT_FOUND, "containerd-shim-nosuch-v7"):
        shims.create(record.sandbox_id, sandbox=record)
    pauses = api.by("podsandbox")
    record = pauses.record(new_id())
    record.runtime.name = ""
    held = pauses.create(record.sandbox_id, sandbox=record)
    assert pauses.start(held).pid
    daemon.kill()
    daemon.start()
    assert (shims.status(made).state, pauses.status(held).state) == (READY, READY)
    assert fsck(daemon) == ""
    shims.shutdown(made)
    pauses.shutdown(held)


def test_a_sandbox_that_is_never_started_is_freed(daemon: Daemon, roots: Roots, api: SandboxAPI) -> None:
    daemon.stop()
    roots.write_config("[sandboxes]\nunstarted_timeout_s = 2.0\n")
    daemon.start()
    idle, before, used = (api.create() for _ in range(3))
    api.start(used)
    assert api.status(idle).state == NOTREADY
    waiting = api.later("Wait", sandbox_id=idle)
    api.stop(before)
    eventually(lambda: is_unknown(api, idle) and is_unknown(api, before), "they are freed", within=6.0)
    with refused(CODE.NOT_FOUND):
        waiting.result()
    assert api.status(used).state == READY
    later = api.create()
    daemon.kill()
    daemon.start()
    eventually(lambda: is_unknown(api, later), "it is freed by the next daemon", within=6.0)
    assert fsck(daemon) == ""
    api.shutdown(used)


# --- events ---


def test_events_come_once_whoever_waits(api: SandboxAPI, cri: CRI) -> None:
    with api.subscribed() as stream, api.subscribed("namespace==moby,topic~=^/sandboxes/") as moby:
        waited, unwatched, other = api.run(), api.run(), api.inside("moby").run()
        waiters = [api.later("Wait", sandbox_id=waited) for _ in range(3)]
        pod = cri.run_pod()
        api.stop(waited)
        assert len({waiter.result().exited_at.nanos for waiter in waiters}) == 1
        os.kill(api.status(unwatched).pid, 9)
        cri.stop_pod(pod)
        api.inside("moby").shutdown(other)
        want = {
            (space, f"/sandboxes/{what}", one)
            for space, one in (("k8s.io", waited), ("k8s.io", unwatched), ("moby", other), ("k8s.io", pod))
            for what in ("create", "start", "exit")
        }
        seen: list[tuple[str, str, str]] = []
        while want - set(seen):
            seen.append(sandbox_event(next(stream)))
        api.publish("/end/of/it")
        while (envelope := next(stream)).topic != "/end/of/it":
            seen.append(sandbox_event(envelope))
        assert sorted(seen) == sorted(want)
        for one in (waited, unwatched, other, pod):
            assert [topic for _, topic, found in seen if found == one] == [
                "/sandboxes/create",
                "/sandboxes/start",
                "/sandboxes/exit",
            ]
        assert [sandbox_event(next(moby))[1:] for _ in range(3)] == [
            ("/sandboxes/create", other),
            ("/sandboxes/start", other),
            ("/sandboxes/exit", other),
        ]
    for made in (waited, unwatched):
        api.shutdown(made)


def test_events_are_filtered_by_their_fields(api: SandboxAPI) -> None:
    first, second = new_id(), new_id()
    with api.subscribed(f"event.sandbox_id=={second}", "topic==/mine") as stream:
        for made in (first, second):
            api.shutdown(api.run(made))
        api.publish("/mine", AnyMessage(type_url="who.knows", value=b"?"))
        seen = [next(stream) for _ in range(4)]
    assert [one.topic for one in seen] == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit", "/mine"]
    assert {sandbox_event(one)[2] for one in seen[:3]} == {second}
    assert seen[3].event.value == b"?"
    assert seen[3].namespace == "k8s.io"
    for bad in ("", "relative", "/", "/a//b", "/a/b!"):
        with refused(CODE.INVALID_ARGUMENT, "topic"):
            api.publish(bad)
    with refused(CODE.INVALID_ARGUMENT, "filter"), api.subscribed("topic=~x") as stream:
        next(stream)


def test_a_slow_subscriber_is_told_and_slows_nobody(api: SandboxAPI, daemon: Daemon) -> None:
    blob = AnyMessage(type_url="x", value=bytes(64 << 10))
    with api.subscribed() as slow, api.subscribed("topic==/last") as quick:
        for _ in range(5):
            in_parallel([lambda: [api.publish("/noise", blob) for _ in range(125)] for _ in range(8)])
        api.publish("/last")
        assert next(quick).topic == "/last"
        got = 0
        with refused(CODE.RESOURCE_EXHAUSTED, "late"):
            for _ in slow:
                got += 1
        assert 4096 <= got < 5001


# --- pods of our own CRI ---


def test_pods_of_cri_are_seen_and_left_to_it(api: SandboxAPI, cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(name="seen"))
    assert [one.sandbox_id for one in api.store("List").list] == [pod]
    record = api.store("Get", sandbox_id=pod).sandbox
    assert record.labels["name"].startswith("seen_tests_")
    assert record.extensions["metadata"].type_url.endswith("/Metadata")
    asked = api.by(record.sandboxer)
    waiting = asked.later("Wait", sandbox_id=pod)
    for one in (api, asked):
        status = one.status(pod)
        assert (status.state, status.pid) == (READY, cri.pod_info(pod)["pid"])
        assert one.platform(pod).os == "linux"
        for call in (one.shutdown, one.stop, one.start):
            with refused(CODE.FAILED_PRECONDITION, "CRI"):
                call(pod)
    with refused(CODE.ALREADY_EXISTS):
        api.create(pod)
    for name, fields in (("Delete", {"sandbox_id": pod}), ("Update", {"sandbox": record})):
        with refused(CODE.FAILED_PRECONDITION, "RemovePodSandbox"):
            api.store(name, **fields)
    with refused(CODE.NOT_FOUND):
        api.inside("moby").status(pod)
    assert cri.sh(cri.script(pod, "sleep 100"), "echo here") == "here"
    cri.stop_pod(pod)
    assert waiting.result().exit_status == 137
    assert api.status(pod).state == NOTREADY
    cri.remove_pod(pod)
    assert is_unknown(api, pod)
    assert not api.store("List").list


def test_records_of_the_store_are_not_taken_for_pods(api: SandboxAPI, cri: CRI, daemon: Daemon) -> None:
    made = new_id()
    api.store("Create", sandbox=api.record(made))
    daemon.kill()
    daemon.start()
    assert cri.list_pods() == []
    wait_until(lambda: False, within=0.5)  # the clean-up behind a start has had its time
    assert api.store("Get", sandbox_id=made).sandbox.sandbox_id == made
    api.store("Delete", sandbox_id=made)


# --- the store ---


def test_the_store_follows_containerds_rules(api: SandboxAPI, daemon: Daemon) -> None:
    one, two = sorted((new_id(), new_id()))
    record = api.record(one, labels={"app": "web", "empty": ""})
    record.extensions["a"].CopyFrom(AnyMessage(type_url="t", value=b"1"))
    stored = api.store("Create", sandbox=record).sandbox
    assert dict(stored.labels) == {"app": "web"}
    api.store("Create", sandbox=api.record(two, labels={"app": "db", "example.com/tier": "back"}))
    with refused(CODE.ALREADY_EXISTS, one):
        api.store("Create", sandbox=record)
    with refused(CODE.INVALID_ARGUMENT, "runtime"):
        api.store("Create", sandbox=types.Sandbox(sandbox_id=new_id()))

    def listed(*filters: str) -> list[str]:
        return sorted(found.sandbox_id for found in api.store("List", filters=filters).list)

    assert listed() == [one, two]
    assert listed("labels.app==web") == [one]
    assert listed('labels."example.com/tier"==back', f"id=={one}") == [one, two]
    assert listed("labels.app==web,labels.app==db") == []
    assert listed("labels.app~=^d") == [two]
    assert listed("labels.missing") == []
    assert api.inside("empty").store("List").list == []
    with refused(CODE.INVALID_ARGUMENT, "filter"):
        listed("labels.app=web")

    changed = api.record(one, labels={"app": "new", "b": "c"})
    changed.extensions["b"].CopyFrom(AnyMessage(type_url="t", value=b"2"))
    changed.sandboxer = "another"
    after = api.store("Update", sandbox=changed, fields=["labels.b", "extensions.b", "labels.gone"]).sandbox
    assert dict(after.labels) == {"app": "web", "b": "c"}
    assert sorted(after.extensions) == ["a", "b"]
    assert (after.sandboxer, after.created_at) == (stored.sandboxer, stored.created_at)
    assert (after.updated_at.seconds, after.updated_at.nanos) > (stored.updated_at.seconds, stored.updated_at.nanos)
    with refused(CODE.INVALID_ARGUMENT, "sandboxer"):
        api.store("Update", sandbox=changed, fields=["labels", "sandboxer"])
    changed.runtime.name = "io.other.v1"
    with refused(CODE.INVALID_ARGUMENT, "runtime"):
        api.store("Update", sandbox=changed)
    assert api.store("Update", sandbox=changed, fields=["runtime"]).sandbox.runtime.name == "io.other.v1"
    daemon.kill()
    daemon.start()
    assert api.store("Get", sandbox_id=one).sandbox.runtime.name == "io.other.v1"
    with refused(CODE.NOT_FOUND):
        api.store("Update", sandbox=api.record(new_id()))
    for made in (one, two):
        api.store("Delete", sandbox_id=made)
    with refused(CODE.NOT_FOUND):
        api.store("Delete", sandbox_id=one)
    with refused(CODE.NOT_FOUND):
        api.store("Get", sandbox_id=one)


# --- a containerd above ---


def test_links_lead_a_containerd_to_the_pods_files(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    daemon.stop()
    root, state = roots.base / "c-root", roots.base / "c-state"
    for place in (root, state):
        (place / "io.containerd.grpc.v1.cri").mkdir(parents=True)
    roots.write_config(f'[sandboxes]\ncontainerd_root = "{root}"\ncontainerd_state = "{state}"\n')
    daemon.start()
    record = api.record(new_id())
    record.extensions["metadata"].CopyFrom(
        AnyMessage(type_url="github.com/containerd/cri/pkg/store/sandbox/Metadata", value=b"{}")
    )
    made = api.create(record.sandbox_id, sandbox=record)
    pods = [place / "io.containerd.grpc.v1.cri" / "sandboxes" for place in (root, state)]
    api.start(made)
    assert (pods[0] / made / "resolv.conf").read_text() == Path("/etc/resolv.conf").read_text()
    assert (pods[0] / made / "hostname").exists()
    assert os.path.ismount((pods[1] / made / "shm").resolve())
    assert fsck(daemon) == ""
    daemon.kill()
    daemon.start()
    assert fsck(daemon) == ""
    plain = api.run()
    assert not (pods[0] / plain).is_symlink()
    for one in (made, plain):
        api.shutdown(one)
    assert [list(folder.iterdir()) for folder in pods] == [[], []]


# --- the other services ---


def test_version_health_and_reflection(api: SandboxAPI, daemon: Daemon) -> None:
    method = version_pb2.DESCRIPTOR.services_by_name["Version"].methods_by_name["Version"]
    assert api.inside("").future(method, Empty()).result().version
    serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    watch = api.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    for service in ("", "containerd.services.sandbox.v1.Controller", "runtime.v1.RuntimeService"):
        call = watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert any(answer == serving for answer in call)
        call.cancel()
    call = watch(health_pb2.HealthCheckRequest(service="no.such"), timeout=10)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    call.cancel()
    for package in ("v1alpha", "v1"):
        reflect = api.channel.stream_stream(
            f"/grpc.reflection.{package}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="atoll.sandbox.v1.Controller"),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol=f"grpc.reflection.{package}.ServerReflection"
            ),
        ]
        listed, *files = reflect(iter(asked), timeout=10)
        names = {one.name for one in listed.list_services_response.service}
        assert {
            "containerd.services.sandbox.v1.Controller",
            "containerd.services.sandbox.v1.Store",
            "containerd.services.events.v1.Events",
            "containerd.services.version.v1.Version",
            "atoll.sandbox.v1.Controller",
            "grpc.health.v1.Health",
            f"grpc.reflection.{package}.ServerReflection",
        } <= names
        assert all(one.file_descriptor_response.file_descriptor_proto for one in files)


def test_a_private_daemon_does_not_end_under_a_sandbox(api: SandboxAPI, daemon: Daemon, roots: Roots) -> None:
    daemon.stop()
    roots.write_config("idle_exit_s = 0.5\n")
    daemon.start()
    made = api.run()
    wait_until(lambda: not daemon.is_running(), within=1.5)
    assert daemon.is_running()
    api.shutdown(made)
    eventually(lambda: not daemon.is_running(), "it ends when nothing is left", within=5.0)
