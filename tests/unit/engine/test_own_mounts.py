"""Mounts by annotations: what is asked for, and what is refused."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.engine.own_mounts import POD_VOLUMES, pod_volumes


def test_volumes_are_on_the_disk_or_in_memory() -> None:
    found = pod_volumes({POD_VOLUMES: "data; fast:memory=4096;free:memory"})
    assert found == {"data": None, "fast": 4096, "free": 0}
    assert pod_volumes({}) == {}


@pytest.mark.parametrize("text", ["Data", "a/b", "..", "a:disk", "a:memory=lots", "-a", "a" * 64])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not like data"):
        pod_volumes({POD_VOLUMES: text})
