"""The entry of the `atoll` command: dispatch, and how it ends."""

from __future__ import annotations

import os
import signal
import sys

from atoll import errors
from atoll.cli import outcome

QUICK = (["version"], ["--version"])
"""What is answered without reading the whole command line's grammar."""


def main() -> None:
    """Run the command line of this process and exit; no traceback for an error that has a name."""
    # gRPC's own log lines are no errors of ours, and would stand between them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A server that listens its newer way needs a quarter more of a processor for each call.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    outcome.guard_stdout()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and write out what it said; its exit code."""
    try:
        code = _outcome(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, outcome.ReaderGone):
        outcome.drop_stdout()
        return outcome.BROKEN_PIPE
    except outcome.Unwritable as error:
        outcome.drop_stdout()
        outcome.say(str(error))
        return outcome.FAILED
    return code


def _outcome(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except outcome.Ended as ended:
        return ended.code
    except errors.AtollError as error:
        outcome.say(str(error))
        return outcome.code_of(error)
    except KeyboardInterrupt:
        return outcome.INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    for number, argument in enumerate(arguments, 1):
        if not argument.isascii() and any("\udc80" <= letter <= "\udcff" for letter in argument):
            raise errors.InvalidArgument(f"argument {number}, {os.fsencode(argument)[:80]!r}: is not UTF-8")
    if arguments in QUICK:
        from atoll.cli.version import show_version

        return show_version(None, as_json=False)
    if arguments[:1] == ["serve"]:
        from atoll.cli import serving

        asked = serving.plain(arguments)
        if asked is not None:
            return serving.run(asked)
    from atoll.cli.commands import run_app

    return run_app(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
