"""The one rule for identifiers: sandbox, container, exec and bundle IDs, namespaces, ledger owners.

What passes is safe as a file name and as a word of a command line.
"""

from __future__ import annotations

import re

from atoll import errors

MAX_LENGTH = 76

_RULE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def is_identifier(value: str) -> bool:
    """Whether `value` is 1 to 76 ASCII letters and digits, in parts joined by single `.`, `_` or `-`."""
    return len(value) <= MAX_LENGTH and _RULE.fullmatch(value) is not None


def require_identifier(value: str, what: str) -> str:
    """`value` where it is an identifier, else `InvalidArgument` that names `what` it was meant for."""
    if not is_identifier(value):
        raise errors.InvalidArgument(
            f"{what} {value[: MAX_LENGTH + 1]!r}: must be 1 to {MAX_LENGTH} letters and digits, "
            "in parts joined by single '.', '_' or '-'"
        )
    return value
