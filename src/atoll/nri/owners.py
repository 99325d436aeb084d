"""Which plugin set what of a container: two that set the same conflict, unless the later one removed it first.

A field is either set as a whole, such as the memory limit, or by keys, such as an annotation's name.
"""

from __future__ import annotations

import copy

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb

REMOVAL = "-"
"""Before a key: the thing is to be removed. Before a plugin's name: it removed what an earlier one had set."""


def removed(key: str) -> str | None:
    """What a key marked for removal stands for; None for one that is not marked."""
    return key[1:] if key.startswith(REMOVAL) else None


class Owners:
    """Of the containers that one request is about, by their IDs."""

    def __init__(self) -> None:
        self._simple: dict[tuple[str, int], str] = {}
        self._keyed: dict[tuple[str, int, str], str] = {}

    def copy(self) -> Owners:
        """The same, to try something on."""
        return copy.deepcopy(self)

    def claim(self, container: str, field: int, plugin: str, key: str | None = None) -> None:
        """Say that `plugin` sets the field; raises `FailedPrecondition` where another one did."""
        known = self._simple.get((container, field)) if key is None else self._keyed.get((container, field, key))
        if known is not None:
            clearer = removed(known)
            if clearer != plugin:
                what = pb.Field.Name(field) if key is None else f"{pb.Field.Name(field)} {key}"
                raise errors.FailedPrecondition(f"nri plugins {plugin} and {clearer or known} both set {what}")
        if key is None:
            self._simple[container, field] = plugin
        else:
            self._keyed[container, field, key] = plugin

    def clear(self, container: str, field: int, plugin: str, key: str | None = None) -> None:
        """Say that `plugin` takes away what another one has set; nothing where none has."""
        if key is None:
            if (container, field) in self._simple:
                self._simple[container, field] = REMOVAL + plugin
        elif (container, field, key) in self._keyed:
            self._keyed[container, field, key] = REMOVAL + plugin

    def join(self, container: str, field: int, plugin: str) -> None:
        """Say that `plugin` is one of those that set the field: what they set adds up."""
        known = self._simple.get((container, field))
        self._simple[container, field] = plugin if known is None else f"{known},{plugin}"

    def message(self) -> pb.OwningPlugins:
        """In the words of the protocol."""
        message = pb.OwningPlugins()
        for (container, field), plugin in self._simple.items():
            message.owners[container].simple[field] = plugin
        for (container, field, key), plugin in self._keyed.items():
            message.owners[container].compound[field].owners[key] = plugin
        return message
