#!/bin/sh
# Let the tests drive both OCI runtimes on a hybrid cgroup host. For test machines only; nothing else calls it.
#
# Where all controllers but some are mounted the v1 way, crun refuses to start while one stays in the v2
# hierarchy; runc does not mind. Mounting each that stays there the v1 way as well gives crun what it wants. Undo: umount.
set -eu
unified=/sys/fs/cgroup/unified/cgroup.controllers
[ -r "$unified" ] || exit 0

for controller in $(cat "$unified"); do
    folder=/sys/fs/cgroup/$controller
    if ! mountpoint -q "$folder"; then
        mkdir -p "$folder"
        if mount -t cgroup -o "$controller" cgroup "$folder"; then
            echo "test-cgroups: mounted the $controller controller at $folder"
        else
            rmdir "$folder"
            echo "test-cgroups: cannot mount the $controller controller at $folder; tests that need crun will fail" >&2
        fi
    fi
done
