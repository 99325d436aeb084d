#!/bin/sh
# Every test, as root, with a bound on the whole run; more arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
limit_s=4500

if [ "$(id -u)" != 0 ]; then
    echo "the integration tests make namespaces, mounts and cgroups: run them as root (sudo make test)" >&2
    exit 1
fi
scripts/test-cgroups.sh
exec timeout --foreground --kill-after=60 "$limit_s" .venv/bin/pytest "$@"
