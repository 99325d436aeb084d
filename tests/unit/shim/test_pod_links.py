"""Links for a containerd: where its bundles say, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.shim import pod_links
from atoll.shim.pod_links import CONTROLLER, CRI


def bundle_in(tmp_path: Path, *, namespace: str = "k8s.io", controller: str = CONTROLLER, work: str = "pod") -> Path:
    bundle = tmp_path / "state" / controller / namespace / "pod"
    bundle.mkdir(parents=True)
    (bundle / "work").symlink_to(tmp_path / "root" / controller / namespace / work)
    return bundle


def test_a_bundle_of_its_shim_sandboxer_has_links_in_its_root_and_its_state(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path)
    files = bundle / "files"
    wanted = [tmp_path / place / CRI / "sandboxes" / "pod" for place in ("root", "state")]
    for _ in range(2):
        pod_links.make(bundle, files)
        assert [link.readlink() for link in wanted] == [files, files]
    for _ in range(2):
        pod_links.remove(bundle, files)
        assert not any(link.is_symlink() for link in wanted)


def test_what_is_not_ours_there_stays(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path)
    folder, other = (tmp_path / place / CRI / "sandboxes" / "pod" for place in ("root", "state"))
    folder.mkdir(parents=True)
    other.parent.mkdir(parents=True)
    other.symlink_to("/elsewhere")
    pod_links.make(bundle, bundle / "files")
    pod_links.remove(bundle, bundle / "files")
    assert folder.is_dir()
    assert other.readlink() == Path("/elsewhere")


@pytest.mark.parametrize(
    "changed", [{"namespace": "default"}, {"controller": "io.containerd.runtime.v2.task"}, {"work": "other"}]
)
def test_other_bundles_have_none(tmp_path: Path, changed: dict[str, str]) -> None:
    assert pod_links.links(bundle_in(tmp_path, **changed)) == ()


def test_a_bundle_without_work_has_none(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path)
    (bundle / "work").unlink()
    assert pod_links.links(bundle) == ()
