"""An update of a sandbox by field names: checked as a whole before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.oci.spec import Resources
from atoll.sandbox import resources as limits
from atoll.sandbox.controller import Sandbox, TypedAny
from atoll.sandbox.resources import UpdatedResources
from atoll.sandbox.store import merge

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
ANNOTATIONS = "annotations"
ALL = ("labels", ANNOTATIONS, "extensions", "spec", "runtime")
KEYED = ("labels", ANNOTATIONS, "extensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationChange:
    """`values` are set and `removed` are dropped; with `is_all`, so is every other one."""

    values: Mapping[str, str]
    removed: tuple[str, ...] = ()
    is_all: bool = False

    def applied(self, now: Mapping[str, str]) -> dict[str, str]:
        kept = {} if self.is_all else {key: value for key, value in now.items() if key not in self.removed}
        return {**kept, **self.values}


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update comes to: the record afterwards, and what of it concerns the running sandbox."""

    sandbox: Sandbox
    annotations: AnnotationChange | None = None
    resources: Resources | None = None
    updated: UpdatedResources | None = None

    @property
    def reaches_the_sandbox(self) -> bool:
        """Whether more than what is told of the record changes."""
        return self.annotations is not None or self.has_limits

    @property
    def has_limits(self) -> bool:
        return self.resources is not None or self.updated is not None

    @property
    def resources_json(self) -> bytes:
        """For our shim; empty for none."""
        return msgspec.json.encode(self.resources) if self.resources is not None else b""

    @property
    def updated_json(self) -> bytes:
        return msgspec.json.encode(self.updated) if self.updated is not None else b""


def plan(now: Sandbox, asked: Sandbox, fields: tuple[str, ...]) -> Update:
    """What `fields` of `asked` make of `now`; raises `InvalidArgument` where they cannot be followed (C36)."""
    for path in fields:
        _require(path)
    if asked.runtime.name != now.runtime.name and (not fields or "runtime" in fields):
        raise errors.InvalidArgument(
            f"sandbox {now.id}: runs under {now.runtime.name!r}, which cannot become {asked.runtime.name!r}"
        )
    kept = tuple(path for path in fields if path.partition(".")[0] != ANNOTATIONS)
    paths = fields or ALL
    resources, annotations = _of_spec(asked.spec, paths)
    return Update(
        sandbox=merge(now, asked, kept) if kept or not fields else now,
        annotations=_annotation_change(annotations, paths, has_spec=asked.spec is not None),
        resources=resources,
        updated=_updated(asked, paths),
    )


def _require(path: str) -> None:
    part, dot, key = path.partition(".")
    if path not in ALL and not (dot and key and part in KEYED):
        raise errors.InvalidArgument(
            f"field path {path[:100]!r}: cannot be updated; {', '.join(ALL)} and a key of labels, annotations and "
            "extensions can"
        )


def _of_spec(spec: TypedAny | None, paths: tuple[str, ...]) -> tuple[Resources | None, dict[str, str]]:
    if spec is None or not any(path.partition(".")[0] in ("spec", ANNOTATIONS) for path in paths):
        return None, {}
    if spec.type_url.rpartition("types.containerd.io/")[2] != SPEC_URL.rpartition("types.containerd.io/")[2]:
        raise errors.InvalidArgument(f"spec {spec.type_url[:100]!r}: must be a {SPEC_URL}")
    resources, annotations = limits.of_spec(spec.value)
    return resources if "spec" in paths else None, annotations


def _annotation_change(found: dict[str, str], paths: tuple[str, ...], *, has_spec: bool) -> AnnotationChange | None:
    if ANNOTATIONS in paths or "spec" in paths:
        # A record without a spec says nothing of annotations.
        return AnnotationChange(values=found, is_all=True) if has_spec else None
    keys = [path.partition(".")[2] for path in paths if path.partition(".")[0] == ANNOTATIONS]
    if not keys:
        return None
    return AnnotationChange(
        values={key: found[key] for key in keys if key in found},
        removed=tuple(key for key in keys if key not in found),
    )


def _updated(asked: Sandbox, paths: tuple[str, ...]) -> UpdatedResources | None:
    name = limits.EXTENSION
    value = asked.extensions.get(name)
    if value is None or not {"extensions", f"extensions.{name}"} & set(paths):
        return None
    if value.type_url.rpartition("/")[2] != limits.URL.rpartition("/")[2]:
        raise errors.InvalidArgument(f"extension {name}: {value.type_url[:100]!r} must be {limits.URL}")
    return limits.decode_updated(value.value)
