#!/bin/sh
# Every check that needs neither root nor a network on two cores. All run, then the result is told.
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

# The types take the longest by far, and one core.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
trap 'exit 130' INT TERM
$bin/pyright >"$types" 2>&1 &
types_pid=$!

check format $bin/ruff format --check
check lint $bin/ruff check
check imports $bin/lint-imports --no-logo

echo "unit tests:"
$bin/pytest -q tests/unit || failed="$failed unit-tests"

if wait $types_pid; then
    echo "ok      types"
else
    cat "$types"
    echo "FAILED  types: $bin/pyright"
    failed="$failed types"
fi

if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
