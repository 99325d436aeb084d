"""A CNI configuration made of a template and the ranges of a node's pods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll import errors
from atoll.network import pod_cidr

TEMPLATE = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "ipam": {"type": "host-local", "ranges": "{{pod_ranges}}", "routes": "{{pod_routes}}"},
            "args": {"first": "{{pod_cidr}}", "as it is": [1, None, "{{other}}"]},
        }
    ],
}


def test_a_template_is_filled_with_every_range(tmp_path: Path) -> None:
    template, folder = tmp_path / "template", tmp_path / "net.d"
    template.write_text(json.dumps(TEMPLATE))
    written = pod_cidr.write(folder, template, pod_cidr.ranges("10.1.0.0/24, fd00::/64"))
    plugin = json.loads(written.read_text())["plugins"][0]
    assert plugin["ipam"] == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    assert plugin["args"] == {"first": "10.1.0.0/24", "as it is": [1, None, "{{other}}"]}
    assert (list(folder.iterdir()), written.stat().st_mode & 0o777) == ([written], 0o644)


@pytest.mark.parametrize("told", ["", "x", "10.1.0.0/33", "10.1.0.1/24", "10.1.0.0/24,,", "10.1.0.0/24," * 17])
def test_what_is_no_range_is_refused(told: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="pod_cidr"):
        pod_cidr.ranges(told)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "x", "plugins": "{{pod_ranges}}"}', b"[" * 100_000])
def test_a_template_that_makes_no_configuration_is_named_and_nothing_written(tmp_path: Path, content: bytes) -> None:
    template = tmp_path / "template"
    template.write_bytes(content)
    with pytest.raises(errors.FailedPrecondition, match="template"):
        pod_cidr.write(tmp_path / "net.d", template, pod_cidr.ranges("10.1.0.0/24"))
    assert not (tmp_path / "net.d").exists()


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition, match="nowhere"):
        pod_cidr.write(tmp_path, tmp_path / "nowhere", pod_cidr.ranges("10.1.0.0/24"))
