"""`atoll version`, without what it does not need: it must be quick."""

from __future__ import annotations

from pathlib import Path

import atoll
from atoll import errors
from atoll.cli.outcome import say

ANSWER_WITHIN_S = 3.0


def show_version(socket: Path | None, *, as_json: bool) -> int:
    """Print both versions; a daemon that is not there is no error."""
    from atoll.client.places import socket_path
    from atoll.client.private import answers

    path = socket_path(socket)
    daemon = ""
    try:
        if answers(path):
            daemon = _ask(path)
    except errors.AtollError as error:
        say(str(error))
    if as_json:
        import json

        print(json.dumps({"client": atoll.__version__, "daemon": daemon or None, "socket": str(path)}))
        return 0
    print(f"client  {atoll.__version__}")
    print(f"daemon  {daemon or 'none'} at {path}")
    return 0


def _ask(path: Path) -> str:
    import asyncio

    from atoll.api import atoll_v1_pb2 as own
    from atoll.client import wire

    async def ask() -> str:
        connection = wire.Wire(path)
        try:
            answer = await connection.call(wire.INFO, own.InfoRequest(), timeout_s=ANSWER_WITHIN_S)
        finally:
            await connection.aclose()
        return answer.version

    return asyncio.run(ask())
