"""Reading a manifest field by field: a field that is not read is refused by its path, so that nothing is passed over.

    with Fields("spec", value) as spec:
        name = spec.text("hostname")
        for one in spec.objects("containers"): ...

A field whose value is null is as one that is not there, as in Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Self, cast

from atoll import errors

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|Ki|k|[MGTPE]i?|e\d+|E\d+)?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY_UNITS = {f"{prefix}i": 1 << 10 * power for power, prefix in enumerate("kMGTPE", 1)} | {"Ki": 1 << 10}


class Fields:
    """The fields of one object of a manifest; leaving the block raises `InvalidArgument` for those not read."""

    def __init__(self, path: str, value: object) -> None:
        if not isinstance(value, Mapping):
            raise errors.InvalidArgument(f"{path or 'the manifest'}: must be an object, not {_kind(value)}")
        self.path = path
        fields = cast("Mapping[object, object]", value)
        self._values = {str(key): one for key, one in fields.items() if one is not None}
        self._read: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [name for name in self._values if name not in self._read]
        if kind is None and left:
            more = f", and {len(left) - 1} more fields here" if len(left) > 1 else ""
            raise errors.InvalidArgument(f"{self.at(left[0])}: is not supported{more}")

    def at(self, name: str) -> str:
        """The path of one of the fields."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        return name in self._values

    def _take(self, name: str, kinds: type | tuple[type, ...], what: str) -> object:
        value = self._values.get(name)
        self._read.add(name)
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise errors.InvalidArgument(f"{self.at(name)}: must be {what}, not {_kind(value)}")
        return value

    def text(self, name: str, default: str = "") -> str:
        found = self._take(name, str, "a text")
        return default if found is None else cast("str", found)

    def need(self, name: str) -> str:
        """A text that must be there."""
        if not (found := self.text(name)):
            raise errors.InvalidArgument(f"{self.at(name)}: is missing")
        return found

    def one_of(self, name: str, choices: tuple[str, ...], default: str = "", instead: str = "") -> str:
        """A text that must be one of those; `instead` tells what to do for another."""
        found = self.text(name, default)
        if found not in choices:
            said = "is not supported" if instead else "must be " + " or ".join(choices)
            raise errors.InvalidArgument(f"{self.at(name)}: {found}: {said}{f'; {instead}' if instead else ''}")
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        found = self._take(name, bool, "true or false")
        return default if found is None else cast("bool", found)

    def number(self, name: str) -> int | None:
        return cast("int | None", self._take(name, int, "a number"))

    def texts(self, name: str) -> list[str]:
        found = cast("list[object]", self._take(name, list, "a list") or [])
        for number, one in enumerate(found):
            if not isinstance(one, str):
                raise errors.InvalidArgument(f"{self.at(name)}[{number}]: must be a text, not {_kind(one)}; quote it")
        return cast("list[str]", found)

    def numbers(self, name: str) -> list[int]:
        found = cast("list[object]", self._take(name, list, "a list") or [])
        for number, one in enumerate(found):
            if not isinstance(one, int) or isinstance(one, bool):
                raise errors.InvalidArgument(f"{self.at(name)}[{number}]: must be a number, not {_kind(one)}")
        return cast("list[int]", found)

    def mapping(self, name: str) -> dict[str, str]:
        found = cast("Mapping[object, object]", self._take(name, Mapping, "an object") or {})
        for key, one in found.items():
            if not isinstance(key, str) or not isinstance(one, str):
                raise errors.InvalidArgument(f"{self.at(name)}.{key}: must be a text, not {_kind(one)}; quote it")
        return cast("dict[str, str]", dict(found))

    def object(self, name: str) -> Fields | None:
        found = self._take(name, Mapping, "an object")
        return None if found is None else Fields(self.at(name), found)

    def objects(self, name: str) -> Iterator[Fields]:
        found = cast("list[object]", self._take(name, list, "a list") or [])
        for number, one in enumerate(found):
            yield Fields(f"{self.at(name)}[{number}]", one)

    def quantity(self, name: str) -> Decimal | None:
        """A quantity such as 250m, 1.5 or 64Mi (Kubernetes API conventions, "Quantity")."""
        found = self._take(name, (str, int, float), "a quantity")
        if found is None:
            return None
        match = _QUANTITY.fullmatch(str(found))
        if match is None:
            raise errors.InvalidArgument(f"{self.at(name)}: {found!r} is no quantity like 250m, 1.5 or 64Mi")
        number, unit = Decimal(match[1]), match[2] or ""
        if unit == "m":
            return number / 1000
        if unit[1:].isdecimal():
            return number * 10 ** int(unit[1:])
        return number * (_BINARY_UNITS[unit] if unit in _BINARY_UNITS else _UNITS[unit])


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object" if isinstance(value, Mapping) else type(value).__name__
