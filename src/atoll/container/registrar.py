"""Names and the keys that hold them, one to one."""

from __future__ import annotations

from atoll import errors


class Registrar:
    """Reserves names for keys: a key holds one name at most, a name is held by one key at most."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._keys: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def reserve(self, name: str, key: str) -> None:
        """Reserve `name` for `key`; the same pair again is fine.

        Raises `InvalidArgument` for an empty one, `AlreadyExists` where either belongs to another.
        """
        if not name or not key:
            raise errors.InvalidArgument(f"{self._what} name {name!r} for {key!r}: neither may be empty")
        if (holder := self._keys.get(name, key)) != key:
            raise errors.AlreadyExists(f"{self._what} name {name!r}: is held by {holder}")
        if (held := self._names.get(key, name)) != name:
            raise errors.AlreadyExists(f"{self._what} {key}: holds the name {held!r} already")
        self._keys[name] = key
        self._names[key] = name

    def key(self, name: str) -> str | None:
        """Who holds `name`."""
        return self._keys.get(name)

    def release_key(self, key: str) -> None:
        """Release by key; an unknown one is fine."""
        if (name := self._names.pop(key, None)) is not None:
            del self._keys[name]
