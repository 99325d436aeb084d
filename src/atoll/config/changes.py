"""A configuration that replaces another in a running daemon: what counts at once, and what at the next start.

At once counts what is read anew for each use, and what concerns only what is made from then on. A folder, a socket, a
network, an OCI runtime or a shim that pods stand on does not change below them; a restart takes it up, and no pod
notices that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from atoll.config import rules
from atoll.config.sections import Config
from atoll.config.text import ANY, Place, named

AT_ONCE: tuple[Place, ...] = (
    ("log_level",),
    ("default_runtime",),
    ("runtimes", ANY, "pod_annotations"),
    ("runtimes", ANY, "container_annotations"),
    ("runtimes", ANY, "privileged_without_host_devices"),
    ("sandboxes", "unstarted_timeout_s"),
    ("images", "registries", ANY, ANY),
    ("images", "auth_file"),
    ("images", "pinned"),
    ("images", "max_layer_bytes"),
    ("images", "stall_timeout_s"),
)
"""The keys that count at once."""


@dataclass(slots=True)
class Live:
    """The configuration in force, which a reload replaces."""

    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The configuration in force from now on, the keys that changed with it, and those that wait for a start."""

    config: Config
    applied: tuple[str, ...]
    waiting: tuple[str, ...]


def between(old: Config, new: Config) -> Changes:
    """What becomes of `old` where `new` was read. A handler comes, goes or changes its kind at the next start."""
    before, after = dict(_leaves(msgspec.to_builtins(old))), dict(_leaves(msgspec.to_builtins(new)))
    handlers = {("runtimes", name) for name in old.runtimes.keys() & new.runtimes.keys()}
    applied: list[Place] = []
    waiting: list[Place] = []
    for place in sorted(before.keys() | after.keys()):
        if before.get(place) == after.get(place):
            continue
        is_handler = place[0] == "runtimes"
        at_once = any(_is_at(place, one) for one in AT_ONCE) and (not is_handler or place[:2] in handlers)
        (applied if at_once else waiting).append(place)
    if new.default_runtime not in old.runtimes and ("default_runtime",) in applied:
        applied.remove(("default_runtime",))
        waiting.append(("default_runtime",))
    merged = {place: value for place, value in before.items() if place not in applied}
    merged |= {place: after[place] for place in applied if place in after}
    config = msgspec.convert(_tree(merged), Config)
    rules.check(config)
    return Changes(config=config, applied=_told(applied), waiting=_told(waiting))


def _is_at(place: Place, pattern: Place) -> bool:
    pairs = zip(place, pattern, strict=False)
    return len(place) == len(pattern) and all(wanted in (ANY, word) for word, wanted in pairs)


def _told(places: list[Place]) -> tuple[str, ...]:
    return tuple(named(place) for place in sorted(places))


def _leaves(values: Mapping[str, object], place: Place = ()) -> Iterator[tuple[Place, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(msgspec.convert(value, dict[str, object]), (*place, key))
        else:
            yield (*place, key), value


def _tree(leaves: Mapping[Place, object]) -> dict[str, object]:
    tree: dict[str, object] = {}
    tables: dict[str, dict[Place, object]] = {}
    for (name, *rest), value in leaves.items():
        if rest:
            tables.setdefault(name, {})[tuple(rest)] = value
        else:
            tree[name] = value
    return tree | {name: _tree(table) for name, table in tables.items()}
