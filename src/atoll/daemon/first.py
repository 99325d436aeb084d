"""A root whose records are lost is told from a new one, before anything in it is swept as nobody's."""

from __future__ import annotations

import os
from pathlib import Path

from atoll import errors
from atoll.database import is_blank
from atoll.engine.paths import Paths
from atoll.identifiers import is_identifier


def require_records(paths: Paths) -> None:
    """Raise `DataLoss` where there are files of containers and images, and a database without a record of any. Blocks.

    They belong to what may run now; a start takes away what no record names.
    """
    if not is_blank(paths.database):
        return
    containers = [name for name in _names(paths.containers) if is_identifier(name)]
    snapshots = [name for name in _names(paths.images / "snapshots") if name.isdecimal()]
    if containers or snapshots:
        raise errors.DataLoss(
            f"{paths.database}: has no records, yet there are files of {len(containers)} containers and "
            f"{len(snapshots)} snapshots in {paths.root}: restore it (with its -wal file), or move {paths.root} away "
            "to begin anew; nothing was changed"
        )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
