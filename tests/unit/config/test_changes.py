"""What of a configuration file counts at once in a running daemon, and what waits for its next start."""

from __future__ import annotations

import msgspec
import pytest

from atoll.config import Config, ImageSection, NetworkSection, Registry, RuntimeHandler
from atoll.config.changes import AT_ONCE, between
from atoll.config.rules import Mistake
from atoll.config.text import ANY

OLD = Config(
    runtimes={"atoll": RuntimeHandler(), "other": RuntimeHandler()},
    images=ImageSection(registries={"a.example": Registry(mirrors=("m.example",)), "b.example": Registry()}),
)


def test_nothing_new_changes_nothing() -> None:
    changes = between(OLD, OLD)
    assert (changes.config, changes.applied, changes.waiting) == (OLD, (), ())


def test_keys_count_at_once_or_wait() -> None:
    new = msgspec.structs.replace(
        OLD,
        log_level="debug",
        network=NetworkSection(pool_size=9),
        images=ImageSection(registries={"a.example": Registry(plain_http=True)}, max_concurrent_unpacks=3),
    )
    changes = between(OLD, new)
    assert changes.waiting == ("[images] max_concurrent_unpacks", "[network] pool_size")
    assert "log_level" in changes.applied
    assert '[images.registries."a.example"] mirrors' in changes.applied
    assert '[images.registries."b.example"] plain_http' in changes.applied
    assert changes.config == msgspec.structs.replace(
        OLD, log_level="debug", images=msgspec.structs.replace(new.images, max_concurrent_unpacks=2)
    )


def test_a_handler_passes_other_annotations_at_once_and_is_another_at_the_next_start() -> None:
    changed = RuntimeHandler(pod_annotations=("a.example/*",), oci_runtime="runc")
    changes = between(OLD, msgspec.structs.replace(OLD, runtimes={"atoll": changed, "third": RuntimeHandler()}))
    assert changes.applied == ("[runtimes.atoll] pod_annotations",)
    assert "[runtimes.atoll] oci_runtime" in changes.waiting
    assert {"[runtimes.other] shim", "[runtimes.third] shim"} <= set(changes.waiting)
    expected = {"atoll": RuntimeHandler(pod_annotations=("a.example/*",)), "other": RuntimeHandler()}
    assert changes.config.runtimes == expected


def test_a_default_that_only_the_next_start_knows_waits_for_it() -> None:
    new = msgspec.structs.replace(OLD, default_runtime="third", runtimes={**OLD.runtimes, "third": RuntimeHandler()})
    changes = between(OLD, new)
    assert "default_runtime" in changes.waiting
    assert changes.config == OLD
    assert between(OLD, msgspec.structs.replace(OLD, default_runtime="other")).config.default_runtime == "other"


def test_what_would_be_in_force_is_checked() -> None:
    broken = msgspec.structs.replace(OLD, images=ImageSection(registries={"a b": Registry(plain_http=True)}))
    with pytest.raises(Mistake):
        between(OLD, broken)


@pytest.mark.parametrize("place", AT_ONCE, ids="/".join)
def test_every_key_that_counts_at_once_is_one(place: tuple[str, ...]) -> None:
    values: object = msgspec.to_builtins(OLD)
    for word in place:
        assert isinstance(values, dict)
        values = values[next(iter(values)) if word == ANY else word]
