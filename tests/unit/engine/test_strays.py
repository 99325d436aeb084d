"""Records of OCI runtimes are told apart by the bundle that each names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.engine.paths import Paths
from atoll.engine.strays import StrayContainerKind, make
from atoll.ledger.kind import Entry, Found
from atoll.linux.process import PidfdSpawner


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.prepare(tmp_path / "root", tmp_path / "state")


def kind(paths: Paths) -> StrayContainerKind:
    return StrayContainerKind(paths, PidfdSpawner(), Blocking())


def crun(root: Path, name: str, bundle: Path) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "status").write_text(json.dumps({"pid": 1, "bundle": str(bundle)}))


async def test_a_record_whose_bundle_is_gone_is_a_stray(paths: Paths, tmp_path: Path) -> None:
    alive = tmp_path / "bundle"
    alive.mkdir()
    default, other = paths.oci("k8s.io"), paths.oci("moby")
    crun(default, "runs", alive)
    crun(default, "lost", tmp_path / "gone")
    crun(other, "lost-too", tmp_path / "gone")
    (default / "of-runc").mkdir()
    (default / "of-runc" / "state.json").write_text(
        json.dumps({"config": {"labels": ["a=b", f"bundle={tmp_path / 'gone'}"]}})
    )
    (default / "a-namespace" / "c").mkdir(parents=True)
    (default / "torn").mkdir()
    (default / "torn" / "status").write_text("{")
    (default / "a-file").write_text("")
    assert await kind(paths).scan() == [
        Found(kind="oci", key="oci/lost"),
        Found(kind="oci", key="oci/of-runc"),
        Found(kind="oci", key="oci.d/moby/lost-too"),
    ]


async def test_nothing_outside_is_ever_taken_for_a_record(paths: Paths, entry_of: Entry) -> None:
    with pytest.raises(errors.InvalidArgument, match="not in a folder"):
        await kind(paths).release(entry_of)


@pytest.fixture(params=["../../etc/x", "bundles/x", "oci/../pods/x", "oci.d/../x"])
def entry_of(request: pytest.FixtureRequest) -> Entry:
    return Entry(seq=1, owner="fsck", kind="oci", key=request.param, data={}, entered_at=datetime.now(UTC), boot_id="b")


def test_every_kind_is_named_by_what_it_is(paths: Paths) -> None:
    found = make(paths, frozenset, PidfdSpawner(), Blocking())
    assert sorted(found) == ["helper", "mount", "oci", "shim", "socket"]
    assert all(name == one.name for name, one in found.items())
