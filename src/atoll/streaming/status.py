"""How a command ended, as the error stream tells it.

From version 4 of the protocol on it is a `metav1.Status` in JSON, before that a text, which is empty for success.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

MAX_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Exit code 0, another one, or with `fault` why there is none."""

    exit_code: int = 0
    fault: str = ""


def as_json(end: End) -> bytes:
    """The status for versions 4 and 5."""
    if end.fault:
        fault = end.fault[:MAX_MESSAGE]
        return msgspec.json.encode(
            {
                "metadata": {},
                "status": "Failure",
                "message": f"Internal error occurred: {fault}",
                "reason": "InternalError",
                "details": {"causes": [{"message": fault}]},
                "code": 500,
            }
        )
    if end.exit_code == 0:
        return msgspec.json.encode({"metadata": {}, "status": "Success"})
    return msgspec.json.encode(
        {
            "metadata": {},
            "status": "Failure",
            "message": as_text(end).decode(),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(end.exit_code)}]},
        }
    )


def as_text(end: End) -> bytes:
    """The status for the versions before 4."""
    if end.fault:
        return f"Internal error occurred: {end.fault[:MAX_MESSAGE]}".encode()
    return f"command terminated with non-zero exit code: {end.exit_code}".encode() if end.exit_code else b""
