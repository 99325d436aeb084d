"""The layer of the built-in images, without running anything."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from atoll import errors
from atoll.image import builtin
from atoll.image.config import Auth


def test_layer_depends_on_nothing_but_busybox() -> None:
    layer = builtin._layer(b"binary", ["bin/sh", "usr/bin/env", "sbin/init", "opt/odd"])
    assert layer == builtin._layer(b"binary", ["bin/sh", "usr/bin/env", "sbin/init", "opt/odd"])
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        members = {member.name: member for member in archive}
    assert members["bin/sh"].islnk()
    assert members["bin/sh"].linkname == "bin/busybox"
    assert members["tmp"].mode == 0o1777
    assert "opt/odd" not in members, "its folder is not there"
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, 0, "")}


def test_only_a_static_busybox_is_taken(tmp_path: Path) -> None:
    script = tmp_path / "busybox"
    script.write_text("#!/bin/sh\n" + "#" * 100)
    with pytest.raises(errors.FailedPrecondition, match="apt-get install busybox-static"):
        builtin.find_busybox([str(script), str(tmp_path / "missing")])


def test_credentials_are_not_shown() -> None:
    auth = Auth(username="ada", password="secret-1", identity_token="secret-2")
    assert "secret" not in repr(auth)
    with pytest.raises(errors.InvalidArgument):
        Auth(username="a:b", password="x")
