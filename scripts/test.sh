#!/bin/sh
# Every test, as root, with a bound on the whole run; more arguments go to pytest. Many tests time a real kernel beside
# real programs, so what failed is run once more, by itself; both outcomes are told, and the second one counts.
set -eu
cd "$(dirname "$0")/.."
limit_s=4200
again_s=900

if [ "$(id -u)" != 0 ]; then
    echo "the integration tests make namespaces, mounts and cgroups: run them as root (sudo make test)" >&2
    exit 1
fi
scripts/test-cgroups.sh
# Thousands of daemons, shims and commands start from this clone; where Python writes no caches, each would compile it.
.venv/bin/python -m compileall -q src
status=0
timeout --foreground --kill-after=60 "$limit_s" .venv/bin/pytest "$@" || status=$?
if [ "$status" = 1 ]; then
    echo "some tests failed: those once more, by themselves"
    status=0
    timeout --foreground --kill-after=60 "$again_s" .venv/bin/pytest --last-failed --last-failed-no-failures none "$@" || status=$?
    if [ "$status" = 0 ]; then
        echo "what failed at first passed when it was run once more, by itself; both runs are above" >&2
    fi
fi
exit "$status"
