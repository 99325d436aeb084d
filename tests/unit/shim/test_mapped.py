from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import pytest

from atoll import errors
from atoll.linux.userns import IDMap, IDRange
from atoll.shim import mapped
from atoll.shim.pod_holder import Holders
from atoll.shim.rootfs import RootMount
from atoll.snapshot.mount import Mount, with_users

ONE = (IDRange(container_id=0, host_id=1000, length=10), IDRange(container_id=10, host_id=5000, length=1))
USERS = IDMap(uids=ONE, gids=ONE[:1])
NOBODY = cast("Holders", None)  # what is refused asks nobody for a user namespace


def test_options_of_a_snapshot_are_read_back() -> None:
    overlay = Mount(type="overlay", source="overlay", options=("lowerdir=/a",))
    bind = Mount(type="bind", source="/a", options=("rbind",))
    asked = with_users((overlay, bind), USERS)
    assert asked[0].options == ("lowerdir=/a", "uidmap=0:1000:10,10:5000:1", "gidmap=0:1000:10")
    assert asked[1] == bind, "the only folder belongs to the users already"
    assert with_users((overlay, bind), None) == (overlay, bind)
    root = RootMount(type="overlay", source="overlay", options=asked[0].options)
    assert mapped.users_of_root((root,)) == USERS
    assert mapped.users_of_root((RootMount(type="bind", source="/a"),)) is None


@pytest.mark.parametrize(
    "options",
    [
        ("uidmap=0:1:1",),
        ("gidmap=0:1:1",),
        ("uidmap=", "gidmap=0:1:1"),
        ("uidmap=0:1", "gidmap=0:1:1"),
        ("uidmap=a:1:1",),
    ],
)
async def test_other_options_are_refused_before_anything_is_mounted(tmp_path: Path, options: tuple[str, ...]) -> None:
    root = RootMount(type="overlay", source="overlay", options=("lowerdir=/a", *options))
    with pytest.raises(errors.InvalidArgument, match="rootfs"):
        await mapped.mount_all(NOBODY, tmp_path, (root,), ())
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_was_made_is_bound_and_the_rest_of_the_spec_stays(tmp_path: Path) -> None:
    ids = [{"containerID": 0, "hostID": 1, "size": 1}]
    options = ["lowerdir=/l:/m", "x-atoll.volume=in", "ro"]
    spec = {
        "ociVersion": "1.2.0",
        "mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/a", "type": "bind", "source": "/x", "options": ["rbind", "ro"], "uidMappings": ids},
            {
                "destination": "/b",
                "type": "overlay",
                "options": options,
                "more": 1,
            },
        ],
        "unknown": {"deep": [1]},
    }
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode(spec))
    mapped.rename_sources(tmp_path, {1: "/m/1", 2: "/m/2/in"})
    found = msgspec.json.decode(path.read_bytes())
    assert found["mounts"] == [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/a", "type": "bind", "source": "/m/1", "options": ["rbind", "ro"]},
        {"destination": "/b", "type": "bind", "source": "/m/2/in", "options": ["rbind", "ro"], "more": 1},
    ]
    assert (found["ociVersion"], found["unknown"]) == ("1.2.0", {"deep": [1]})
