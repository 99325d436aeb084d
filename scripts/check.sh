#!/bin/sh
# Every check that needs neither root nor a network, in under a minute. All run, then the result is told.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=

check() {
    name=$1
    shift
    if output=$("$@" 2>&1); then
        echo "ok      $name"
    else
        printf '%s\nFAILED  %s: %s\n' "$output" "$name" "$*"
        failed="$failed $name"
    fi
}

check format $bin/ruff format --check
check lint $bin/ruff check
check types $bin/pyright
check imports $bin/lint-imports --no-logo

echo "unit tests:"
$bin/pytest -q tests/unit || failed="$failed unit-tests"

if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
