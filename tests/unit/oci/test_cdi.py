from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.oci import cdi, spec

DEVICE = "example.com/gpu=one"


def built(uid: int = 0) -> spec.Spec:
    return spec.Spec(
        process=spec.Process(user=spec.User(uid=uid), args=("/x",), env=("A=1",)),
        mounts=(spec.Mount(destination="/dev"), spec.Mount(destination="/etc/hosts", source="/old")),
        linux=spec.Linux(resources=spec.Resources(devices=(spec.DeviceRule(allow=False, access="rwm"),))),
    )


def write(folder: Path, name: str = "x.json", **changes: object) -> Path:
    document: dict[str, Any] = {"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [{"name": "one"}]}
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({**document, **changes}))
    return path


def edited(folder: Path, edits: dict[str, object], uid: int = 0) -> spec.Spec:
    write(folder, devices=[{"name": "one", "containerEdits": edits}])
    return cdi.inject(built(uid), (DEVICE,), (folder,))


def test_names_come_from_both_places_each_once() -> None:
    annotations = {"cdi.k8s.io/b": "v.io/c=2,v.io/c=1", "cdi.k8s.io/a": "v.io/c=3", "other": "no"}
    assert cdi.requested(["v.io/c=1"], annotations) == ("v.io/c=1", "v.io/c=3", "v.io/c=2")


@pytest.mark.parametrize(
    "name", ["", "gpu", "v.io/c", "v.io=1", "/c=1", "v.io/c=", "v.io/c=../x", "1v/c=1", "v.io/c=a,b"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"vendor\.com/class=name"):
        cdi.requested([name], {})


def test_without_devices_nothing_is_read() -> None:
    same = built()
    assert cdi.inject(same, (), (Path("/no/such/folder"),)) is same


def test_edits_of_the_file_come_once_and_before_the_devices(tmp_path: Path) -> None:
    devices = [{"name": name, "containerEdits": {"env": [f"LAST={name}", f"{name}=1"]}} for name in ("one", "two")]
    write(tmp_path, devices=devices, containerEdits={"env": ["LAST=file", "A=2"], "additionalGids": [7, 0, 7]})
    found = cdi.inject(built(), (DEVICE, "example.com/gpu=two"), (tmp_path,))
    assert found.process is not None
    assert found.process.env == ("A=2", "LAST=two", "one=1", "two=1")
    assert found.process.user.additional_gids == (7,)


def test_a_node_says_what_the_file_says_and_asks_the_host_for_the_rest(tmp_path: Path) -> None:
    nodes = [
        {"path": "/dev/a", "hostPath": "/dev/null"},
        {
            "path": "/dev/b",
            "type": "b",
            "major": 8,
            "minor": 1,
            "permissions": "r",
            "fileMode": 384,
            "uid": 1,
            "gid": 2,
        },
        {"path": "/dev/p", "type": "p"},
    ]
    found = edited(tmp_path, {"deviceNodes": nodes}, uid=1000)
    assert found.linux is not None
    assert found.linux.resources is not None
    null, block, pipe = found.linux.devices
    assert (null.path, null.type, null.major, null.minor, null.uid, null.gid) == ("/dev/a", "c", 1, 3, 1000, None)
    assert (block.major, block.minor, block.file_mode, block.uid, block.gid) == (8, 1, 384, 1, 2)
    assert pipe == spec.Device(path="/dev/p", type="p", uid=1000)
    rules = [(rule.type, rule.major, rule.minor, rule.access) for rule in found.linux.resources.devices[1:]]
    assert rules == [("c", 1, 3, "rwm"), ("b", 8, 1, "r")]


def test_mounts_replace_and_hooks_are_appended(tmp_path: Path) -> None:
    mounts = [
        {"hostPath": "/new", "containerPath": "/etc/hosts", "options": ["ro"]},
        {"hostPath": "none", "containerPath": "/t", "type": "tmpfs", "options": ["size=1m"]},
    ]
    hooks = [{"hookName": name, "path": "/h", "args": ["a"], "timeout": 3} for name in ("createRuntime", "poststop")]
    found = edited(tmp_path, {"mounts": mounts, "hooks": hooks})
    assert [mount.destination for mount in found.mounts] == ["/dev", "/t", "/etc/hosts"]
    assert found.mounts[2] == spec.Mount(destination="/etc/hosts", type="bind", source="/new", options=("rbind", "ro"))
    assert found.mounts[1].type == "tmpfs"
    assert found.hooks is not None
    assert found.hooks.create_runtime == found.hooks.poststop == (spec.Hook(path="/h", args=("a",), timeout=3),)


def test_a_later_folder_counts_more_and_one_folder_says_a_thing_once(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    write(low, containerEdits={"env": ["FROM=low"]})
    write(high, containerEdits={"env": ["FROM=high"]})
    found = cdi.inject(built(), (DEVICE,), (low, tmp_path / "none", high))
    assert found.process is not None
    assert "FROM=high" in found.process.env
    write(high, "again.json")
    with pytest.raises(errors.InvalidArgument, match=r"is in .*again\.json and in .*x\.json"):
        cdi.inject(built(), (DEVICE,), (high,))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cdiVersion": "2.0.0"}, "0.3.0 to 1.1.0"),
        ({"cdiVersion": ""}, "0.3.0 to 1.1.0"),
        ({"kind": "gpu"}, "vendor.com/class"),
        ({"devices": [{"name": "-"}]}, "no name of a device"),
        ({"devices": 1}, "devices"),
        ({"more": 1}, "more"),
        ({"containerEdits": {"unknownEdit": []}}, "unknownEdit"),
    ],
)
def test_a_file_that_is_wrong_is_named_where_a_device_is_not_found(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    path = write(tmp_path, "x.json", **changes)
    with pytest.raises(errors.InvalidArgument) as caught:
        cdi.inject(built(), (DEVICE,), (tmp_path,))
    assert str(path) in str(caught.value)
    assert text in str(caught.value)


def test_yaml_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("kind: example.com/gpu")
    with pytest.raises(errors.InvalidArgument, match=r"x\.yaml: is YAML"):
        cdi.inject(built(), (DEVICE,), (tmp_path,))


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({"env": ["NOTHING"]}, "NAME=value"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "b"}]}, "absolute"),
        ({"mounts": [{"hostPath": "a", "containerPath": "/b"}]}, "absolute"),
        ({"hooks": [{"hookName": "later", "path": "/h"}]}, "later"),
        ({"hooks": [{"hookName": "poststop", "path": "h"}]}, "poststop"),
        ({"deviceNodes": [{"path": "dev"}]}, "absolute"),
        ({"deviceNodes": [{"path": "/no/such/device"}]}, "/no/such/device"),
        ({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}, "type b"),
        ({"deviceNodes": [{"path": "/etc"}]}, "no device"),
        ({"deviceNodes": [{"path": "/dev/null", "permissions": "x"}]}, "rwm"),
        ({"intelRdt": {"closID": "x"}}, "intelRdt"),
        ({"netDevices": [{"hostInterfaceName": "a"}]}, "netDevices"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(tmp_path: Path, edits: dict[str, object], text: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match=text):
        edited(tmp_path, edits)
