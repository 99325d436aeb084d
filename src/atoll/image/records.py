"""The image records: their schema, and the SQL that reads and changes them.

images        one row an image
  id            digest of the config
  document      JSON of `Stored`: everything that does not change by tagging
  pinned        not for automatic removal
image_names   one row a reference
  name          canonical, by tag or by digest
  image         images.id
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.database import Connection, Schema, legible_key, quarantine
from atoll.image.model import ImageConfig
from atoll.unreadable import UNREADABLE

SCHEMA = Schema(
    component="image",
    migrations=(
        """
        CREATE TABLE images (
            id TEXT PRIMARY KEY,
            document TEXT NOT NULL,
            pinned INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE image_names (
            name TEXT PRIMARY KEY,
            image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
        ) STRICT;
        CREATE INDEX image_names_by_image ON image_names (image);
        """,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is recorded of an image; `blobs` maps every digest that it needs to a size in bytes."""

    id: str
    manifest_digest: str
    blobs: dict[str, int]
    size: int
    config: ImageConfig
    chain_ids: tuple[str, ...]
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image with its names."""

    stored: Stored
    names: tuple[str, ...]
    pinned: bool


def load(connection: Connection) -> tuple[list[Row], list[str]]:
    """Every image, and the IDs of records that cannot be read, which go to quarantine (hence a change)."""
    names: dict[str, list[str]] = {}
    for row in connection.execute("SELECT name, image FROM image_names ORDER BY name"):
        if isinstance(row["name"], str):  # a damaged one is no name: its image is there by the others, or by its ID
            names.setdefault(row["image"], []).append(row["name"])
    rows: list[Row] = []
    broken: list[str] = []
    for row in connection.execute("SELECT *, rowid FROM images ORDER BY rowid").fetchall():
        try:
            stored = _decode(row)
        except UNREADABLE as error:
            quarantine(connection, "images", legible_key(row["id"]), row, str(error))
            broken.append(legible_key(row["id"]))
            connection.execute("DELETE FROM images WHERE rowid = ?", (row["rowid"],))
            continue
        rows.append(Row(stored=stored, names=tuple(names.get(row["id"], ())), pinned=bool(row["pinned"])))
    return rows, broken


def _decode(row: sqlite3.Row) -> Stored:
    stored = msgspec.json.decode(row["document"], type=Stored)
    if stored.id != row["id"]:
        raise msgspec.ValidationError("the document is that of another image")
    return stored


def save(connection: Connection, stored: Stored, names: Iterable[str], *, pinned: bool) -> None:
    """Record an image, or the newer facts about it, and move `names` to it."""
    connection.execute(
        "INSERT INTO images VALUES (?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET document = excluded.document, pinned = max(pinned, excluded.pinned)",
        (stored.id, msgspec.json.encode(stored).decode(), int(pinned)),
    )
    name(connection, stored.id, names)


def name(connection: Connection, image: str, names: Iterable[str]) -> None:
    """Move `names` to `image`; raises `NotFound` where it has been removed meanwhile."""
    if connection.execute("SELECT 1 FROM images WHERE id = ?", (image,)).fetchone() is None:
        raise errors.NotFound(f"image {image}: is not there")
    for one in names:
        connection.execute(
            "INSERT INTO image_names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image",
            (one, image),
        )


def forget_names(connection: Connection, names: Iterable[str]) -> None:
    """Drop names; idempotent."""
    connection.executemany("DELETE FROM image_names WHERE name = ?", [(one,) for one in names])


def forget(connection: Connection, image: str) -> None:
    """Drop an image with its names; idempotent."""
    connection.execute("DELETE FROM images WHERE id = ?", (image,))


def pin(connection: Connection, image: str, pinned: bool) -> None:
    """Set whether an image is pinned."""
    connection.execute("UPDATE images SET pinned = ? WHERE id = ?", (int(pinned), image))
