"""The view of unmounted layers against what the kernel's overlay shows of the same layers."""

from __future__ import annotations

import os
import stat

import pytest

from atoll.linux import mounts
from atoll.oci.rootfs import RootfsView
from tests.integration.conftest import Roots

PATHS = (
    "/etc/passwd",
    "/etc/group",
    "/gone",
    "/folder/low",
    "/folder/high",
    "/link/passwd",
    "/etc/hosts",
    "/was-folder",
)


def test_view_agrees_with_the_kernels_overlay(roots: Roots) -> None:
    lower, middle, upper, merged = (roots.base / name for name in ("lower", "middle", "upper", "merged"))
    files = {
        lower / "etc/passwd": "low",
        lower / "etc/group": "low",
        lower / "gone": "low",
        lower / "folder/low": "low",
        lower / "was-folder/x": "low",
        middle / "etc/passwd": "mid",
        upper / "folder/high": "up",
        upper / "was-folder": "file",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    os.mknod(upper / "gone", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    (middle / "link").symlink_to("/etc")
    os.setxattr(upper / "folder", "trusted.overlay.opaque", b"y")
    merged.mkdir()
    mounts.mount("overlay", "overlay", merged, ["ro", f"lowerdir={upper}:{middle}:{lower}"])
    try:
        view = RootfsView((upper, middle, lower))
        for path in PATHS:
            shown = merged / path[1:] if not path.startswith("/link") else merged / "etc/passwd"
            expected = shown.read_bytes() if shown.is_file() else None
            assert view.read(path, limit_bytes=100) == expected, path
        assert view.read("/gone", limit_bytes=100) is None
        assert view.read("/folder/low", limit_bytes=100) is None
    finally:
        mounts.unmount_tree(merged)
    assert not mounts.is_mount_point(merged)
    mounts.unmount_tree(merged)


def test_mount_tree_is_unmounted_with_stacks_and_strange_names(roots: Roots) -> None:
    top = roots.base / "a mount"
    top.mkdir()
    mounts.mount("tmpfs", "tmpfs", top, ["size=64k", "nosuid", "mode=700"])
    for name in ("in ner", "back\\slash"):
        (top / name).mkdir()
        mounts.mount("tmpfs", "tmpfs", top / name)
        mounts.mount("tmpfs", "tmpfs", top / name)
    bound = roots.base / "bound"
    bound.mkdir()
    mounts.mount("", str(top), bound, ["rbind", "ro", "rprivate"])
    entry = next(e for e in mounts.read_mountinfo() if e.mount_point == str(bound))
    assert "ro" in entry.options
    with (top / "in ner/file").open("w"):  # busy: only a lazy unmount takes it away
        mounts.unmount_tree(bound)
        mounts.unmount_tree(top)
    assert not [e for e in mounts.read_mountinfo() if e.mount_point.startswith((str(top), str(bound)))]


def test_failed_mount_leaves_nothing(roots: Roots) -> None:
    target = roots.base / "target"
    target.mkdir()
    before = len(mounts.read_mountinfo())
    for filesystem, options in (("no-such-fs", []), ("tmpfs", ["size=nonsense"])):
        with pytest.raises(OSError, match=str(target)):
            mounts.mount(filesystem, "x", target, options)
    assert len(mounts.read_mountinfo()) == before
