"""What is outside the machine that is struck: a registry with an image, and an archive of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.images import image, layer, member, write_docker_archive, write_layout
from tests.integration.leaks import MARKER
from tests.integration.registry import running_registry

SHARED, PULLED, ARCHIVED = (os.urandom(64 << 10) for _ in range(3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Where it is; see `World`. `address` is the registry's."""

    address: str
    reference: str
    archive: Path
    archived: str
    marks: tuple[tuple[str, bytes], ...]


@contextmanager
def outside(folder: Path) -> Iterator[Outside]:
    """A registry with an image whose lower layer is the archive's lower layer too; its files are below `folder`."""
    tars = {name: layer(member(name, data)) for name, data in (("below", SHARED), ("mine", PULLED), ("own", ARCHIVED))}
    layout = write_layout(folder / "layout", (image([tars["below"], tars["mine"]]), "one"))
    archive = folder / "two.tar"
    write_docker_archive(archive, [tars["below"], tars["own"]], ["chaos.invalid/two:1"])
    marker = os.environ.pop(MARKER, None)  # it is no process of whoever is struck
    try:
        with running_registry(folder / "registry") as registry:
            yield Outside(
                address=registry.address,
                reference=registry.push(f"oci:{layout}:one", "chaos/one:1"),
                archive=archive,
                archived="chaos.invalid/two:1",
                marks=(("below", SHARED), ("mine", PULLED), ("own", ARCHIVED)),
            )
    finally:
        if marker is not None:
            os.environ[MARKER] = marker
