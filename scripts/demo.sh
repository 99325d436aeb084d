#!/usr/bin/env bash
# A tour of Atoll on this machine: a private daemon, one pod of two containers, and no trace of it at the end.
#
# Every command is shown before its output, and what it shows is checked. The daemon has its folders and its socket
# in a temporary folder (below TMPDIR, by default /var/tmp), so no other daemon is disturbed.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    heading=$'\e[1m' command=$'\e[36m' good=$'\e[32m' bad=$'\e[31m' plain=$'\e[0m'
else
    heading='' command='' good='' bad='' plain=''
fi

say() { printf '\n%s== %s%s\n' "$heading" "$*" "$plain"; }
ok() { printf '%sok: %s%s\n' "$good" "$*" "$plain"; }
fail() {
    printf '%sdemo failed: %s%s\n' "$bad" "$*" "$plain" >&2
    exit 1
}

# Shows a command, runs it and shows what it writes, which is then in $output.
show() { show_until '' "$@"; }

# show_until TEXT COMMAND...: as show, but the command is run again until it writes TEXT, for ten seconds at most.
show_until() {
    local text=$1 word line='' status=0 ends=$((SECONDS + 10))
    shift
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    printf '%s$%s%s\n' "$command" "$line" "$plain"
    while true; do
        status=0
        output=$("$@" 2>&1) || status=$?
        [[ $status -eq 0 && $output != *"$text"* && $SECONDS -lt $ends ]] || break
        sleep 0.1
    done
    [ -z "$output" ] || printf '%s\n' "$output"
    [ $status -eq 0 ] || fail "'$1 ${2:-}' ended with status $status"
}

# expect WHAT TEXT: the output of the last command must have TEXT in it.
expect() {
    [[ $output == *"$2"* ]] || fail "$1: expected '$2' in the output of the last command"
    ok "$1"
}

daemon=
work=
stop_daemon() {
    [ -n "$daemon" ] || return 0
    local pid=$daemon waited=0
    daemon=
    kill "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do
        [ $((waited += 1)) -le 200 ] || { kill -KILL "$pid"; break; }
        sleep 0.1
    done
    wait "$pid" 2>/dev/null
}

clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "$daemon" ]; then
        timeout 60 atoll rm --force --all >/dev/null 2>&1 || echo "demo: the pod could not be removed" >&2
        stop_daemon || true
    fi
    if [ -n "$work" ]; then
        if [ $status -ne 0 ] && [ -s "$work/daemon.log" ]; then
            printf '%s\n' "the daemon's log ends:" >&2
            tail -n 20 "$work/daemon.log" >&2
        fi
        if grep -q " $work/" /proc/self/mounts; then
            echo "demo: mounts are left below $work, which therefore stays" >&2
        else
            rm -rf --one-file-system "$work"
        fi
    fi
    exit $status
}

[ "$(id -u)" = 0 ] || fail "namespaces, mounts and cgroups need root: sudo make run"
[ -x .venv/bin/atoll ] || fail "there is no .venv/bin/atoll: make setup"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d "${TMPDIR:-/var/tmp}/atoll-demo.XXXXXX")
export ATOLL_SOCKET=$work/atoll.sock
unset ATOLL_CONFIG http_proxy HTTP_PROXY # nothing here is fetched from elsewhere
begun=$EPOCHREALTIME

say "A daemon of its own (\$DEMO is $work)"
printf '$ %s\n' 'atoll serve --root $DEMO/root --state $DEMO/state --socket $DEMO/atoll.sock &'
atoll serve --root "$work/root" --state "$work/state" --socket "$work/atoll.sock" \
    >"$work/daemon.log" 2>&1 </dev/null &
daemon=$!
until [ -S "$ATOLL_SOCKET" ]; do
    kill -0 "$daemon" 2>/dev/null || fail "the daemon did not start"
    sleep 0.05
done
show atoll version
expect "the daemon answers" "$ATOLL_SOCKET"

port=$(python3 - <<'PYTHON'
import socket
import subprocess

# A published port is a rule, which no socket shows.
rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, check=False).stdout
for port in (*range(8080, 8100), 0):
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            continue
        if b"--dport %d " % port in rules:
            continue
        print(probe.getsockname()[1])
        break
PYTHON
)
say "A pod: a web server, a client of it, limits, port $port of this host, made with the SDK"
show cat examples/web_pod.py
show python examples/web_pod.py "$port"
address=${output##* }
[[ $address =~ ^[0-9]+(\.[0-9]+){3}$ ]] || fail "the pod has no address: $output"
show atoll ps
expect "both containers are listed" client
expect "so are the pod's address and its port" "$address"

say "The client fetches the page over the pod's localhost"
show_until "hello from web" atoll logs web/client
expect "its log has the page" "hello from web"

say "This host fetches it through the published port, and at the pod's address"
show timeout 5 busybox wget -q -O - "http://127.0.0.1:$port/"
expect "port $port leads to the pod" "hello from web"
show timeout 5 busybox wget -q -O - "http://$address/"
expect "the bridge network works" "hello from web"

say "One more command in a running container"
show atoll exec web/server sh -c 'id -un; hostname; ps -o pid,args'
expect "the container has processes and a host name of its own" "1 httpd -f"

say "The limits, as the kernel has them for the container's cgroup"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    show atoll exec web/server cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max
    expect "half a CPU" "50000 100000"
else
    show atoll exec web/server cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us \
        /sys/fs/cgroup/memory/memory.limit_in_bytes
    expect "half a CPU" $'50000\n100000'
fi
expect "64 MiB of memory" 67108864

say "Where the time went"
show atoll phases web
expect "every step of the pod is told" "CNI plugin"

say "What the pod has on this machine agrees with the books"
show atoll fsck
expect "the books are right" clean

say "Stop it, and take it away"
show atoll stop --time 1 web
show atoll ps --all
expect "both containers have ended" "exited (137)"
show atoll rm web
show atoll ps --all
[[ $output != *web* ]] || fail "the pod is still listed"
ok "the pod is gone"
if timeout 5 busybox wget -q -O /dev/null "http://127.0.0.1:$port/" 2>/dev/null; then fail "port $port still answers"; fi
ok "its port is free"

say "Nothing is left"
show atoll fsck
expect "no resource is held" "clean: nothing is held"
instance=$(cat "$work/root/instance")
stop_daemon || fail "the daemon did not end well"
ok "the daemon has ended"
left=$(
    grep -F "$work" /proc/self/mounts || true
    grep -lsF "$work" /proc/[0-9]*/cmdline || true
    find /sys/fs/cgroup -maxdepth 4 -type d -name "$instance"
)
[ -z "$left" ] || fail "left on this machine: $left"
ok "no mount, no process, no cgroup"

printf '\n%sAll of it in %.1f s.%s Next: atoll run atoll/busybox echo hello, atoll doctor, README.md\n' \
    "$heading" "$(awk "BEGIN { print $EPOCHREALTIME - $begun }")" "$plain"
