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
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code."""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except outcome.Ended as ended:
        return ended.code
    except errors.AtollError as error:
        outcome.say(str(error))
        return outcome.code_of(error)
    except KeyboardInterrupt:
        return outcome.INTERRUPTED
    except (BrokenPipeError, outcome.ReaderGone):
        # Nobody reads any more: what is buffered must not be written at exit either (Python docs, note on SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return outcome.BROKEN_PIPE
    return code


def _dispatch(arguments: list[str]) -> int:
    if arguments in QUICK:
        from atoll.cli.version import show_version

        return show_version(None, as_json=False)
    from atoll.cli.commands import run_app

    return run_app(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
